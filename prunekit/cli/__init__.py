"""The command line: one module and one settings file per verb."""
