"""Where models and rows come from: the package index, the hub, or a local path."""
