"""The encoder architectures that can be pruned, one module each."""
