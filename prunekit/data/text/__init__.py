"""Text corpora for pruning language models."""
