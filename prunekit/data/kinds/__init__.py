"""The kinds of tasks, one module each: how rows are read, generated, divided and encoded, and what a batch holds."""
