"""The families of encoders that tests go through; importing this loads no model."""

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
