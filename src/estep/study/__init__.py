"""Studies: grids of runs, and estimates of their cost."""
