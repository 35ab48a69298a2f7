"""The folder of a run, its identity and its result; sweeps over many runs."""
