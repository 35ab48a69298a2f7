"""Views of metrics.jsonl in tracking libraries: a logger is one module here and one file in conf/logger/."""
