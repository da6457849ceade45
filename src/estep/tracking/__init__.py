"""Experiment trackers: TensorBoard, Weights & Biases, trackio and MLflow (`report_to`).

A run in estep is one run of a tracker, with all of its iterations. Trackers read committed iterations and nothing else,
so they cannot change a run, and one that fails cannot stop it.
"""

from estep.tracking.session import check_installed, tracked

__all__ = ["check_installed", "tracked"]
