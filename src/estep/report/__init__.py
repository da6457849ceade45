"""Turning a run folder into tables and figures. Reads the store and nothing else."""
