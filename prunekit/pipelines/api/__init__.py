"""What Python calls besides `prunekit.load`: prune, fit, evaluate and push, over the same runs as the command line."""
