"""Models and data rows from the package index, the hub, or a local path."""
