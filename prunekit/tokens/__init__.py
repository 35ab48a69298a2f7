"""Token pruning: tensors and Hugging Face layers, nothing else."""
