"""One module per method: the only place where scorers, policies, objectives and data meet."""
