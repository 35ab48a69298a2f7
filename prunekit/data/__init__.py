"""Data: descriptions of tasks, their sources, and batches whose order depends only on seed, epoch and position."""
