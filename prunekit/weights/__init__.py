"""Weight pruning of causal language models: importance, masks, repair. Independent of tokens, data and methods."""
