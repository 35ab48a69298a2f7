"""Runs that prune tokens."""
