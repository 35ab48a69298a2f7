"""Running pruned models fast, and measuring how fast."""
