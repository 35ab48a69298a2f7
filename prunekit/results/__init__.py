"""The results of one run for people to read: summary, model card, plots, examples."""
