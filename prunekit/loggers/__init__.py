"""Where metrics go beside metrics.jsonl: one module per logger."""
