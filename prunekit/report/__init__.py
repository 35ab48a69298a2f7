"""Comparisons of many runs: tables, checks of fairness, and the HTML page."""
