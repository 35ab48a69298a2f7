"""Runs that prune weights."""
