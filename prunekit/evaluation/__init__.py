"""Judge a model: scores, executed FLOPs, and whether two executions agree."""
