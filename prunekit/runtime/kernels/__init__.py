"""The operators under the packed engine: attention, linear layers, and their native code."""
