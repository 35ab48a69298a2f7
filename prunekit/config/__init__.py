"""Configuration: composed by Hydra, checked by the comments of conf/, named by a hash."""
