"""Benchmarks: prunekit's engines beside the peers', interleaved in one run."""
