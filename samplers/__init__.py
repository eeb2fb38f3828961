"""Searches, one idea a file."""

from samplers.best_first import BestFirst
from samplers.best_of_n import BestOfN, BestOfNState
from samplers.depth_first import DepthFirst
from samplers.dts import DTS
from samplers.dts_star import DTSStar
from samplers.fk import FKSteering
from samplers.gibbs import ParticleGibbs, RetainedPath
from samplers.guidance import Gradient
from samplers.initial import InitialNoise, Prior, Resampled, TopB
from samplers.metropolis import Metropolis
from samplers.pcnl import PCNL
from samplers.presets import (
    BFS,
    DAS,
    SVDD,
    TDS,
    AutoSMC,
    BootstrapSMC,
    CoDe,
    EntropicPF,
    FunnelSMC,
    IslandSMC,
    TemperedSMC,
)
from samplers.rbf import RBF
from samplers.smc import SMC
from samplers.store import Room
from samplers.temperature import Adaptive, Auto, Constant, Exponential, Signal
from samplers.tree_g import TreeG
from samplers.tree_state import TreeState
from samplers.values import Predicted, SoftValue, Successor

__all__ = [
    "BFS",
    "DAS",
    "DTS",
    "PCNL",
    "RBF",
    "SMC",
    "SVDD",
    "TDS",
    "Adaptive",
    "Auto",
    "AutoSMC",
    "BestFirst",
    "BestOfN",
    "BestOfNState",
    "BootstrapSMC",
    "CoDe",
    "Constant",
    "DTSStar",
    "DepthFirst",
    "EntropicPF",
    "Exponential",
    "FKSteering",
    "FunnelSMC",
    "Gradient",
    "InitialNoise",
    "IslandSMC",
    "Metropolis",
    "ParticleGibbs",
    "Predicted",
    "Prior",
    "Resampled",
    "RetainedPath",
    "Room",
    "Signal",
    "SoftValue",
    "Successor",
    "TemperedSMC",
    "TopB",
    "TreeG",
    "TreeState",
]
