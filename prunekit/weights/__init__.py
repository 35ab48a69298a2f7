"""Weight pruning of causal language models: importance, masks, repair. Knows nothing of tokens, data or methods."""
