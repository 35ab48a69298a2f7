"""Text corpora for the pruning of language models."""
