"""The plots of reports and plans."""
