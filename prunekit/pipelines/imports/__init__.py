"""Published checkpoints of other repositories, read into prunekit's folder layout."""
