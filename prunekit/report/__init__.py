"""What is said about many runs: the comparison table and the report page."""
