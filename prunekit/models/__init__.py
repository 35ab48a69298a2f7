"""Hugging Face models in, pruned models out."""
