"""What studies are held against: papers' published rows and their claims."""
