"""Fast inference of pruned models, and a model of its latency."""
