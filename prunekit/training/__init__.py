"""Training with Lightning: the fit, checkpoints, random states, progress, the metrics log and hardware."""
