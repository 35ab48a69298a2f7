"""What one run leaves to look at: summary, model card, plots, examples."""
