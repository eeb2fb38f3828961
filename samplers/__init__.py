"""Searches, one idea a file."""

from samplers.best_of_n import BestOfN, BestOfNState
from samplers.fk import FKSteering

__all__ = ["BestOfN", "BestOfNState", "FKSteering"]
