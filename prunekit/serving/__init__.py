"""The HTTP server of trained models: `prunekit serve`."""
