"""Weights in: pretrained encoders, their tokenizers and their anatomy."""
