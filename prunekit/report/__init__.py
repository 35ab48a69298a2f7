"""What a person reads about a run: the table on the terminal and the model card."""
