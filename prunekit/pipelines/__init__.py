"""A run from its configuration to its result, one pipeline per kind of run."""
