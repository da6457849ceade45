"""Where a run samples and trains: on this machine, or on several nodes with Ray."""

from estep.cluster.engine import launch_of, open_engine
from estep.cluster.session import connected

__all__ = ["connected", "launch_of", "open_engine"]
