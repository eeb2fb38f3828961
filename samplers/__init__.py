"""Searches, one idea a file."""

from samplers.best_of_n import BestOfN, BestOfNState
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
from samplers.temperature import Adaptive, Auto, Constant, Exponential, Signal
from samplers.values import Predicted, SoftValue, Successor

__all__ = [
    "BFS",
    "DAS",
    "PCNL",
    "RBF",
    "SMC",
    "SVDD",
    "TDS",
    "Adaptive",
    "Auto",
    "AutoSMC",
    "BestOfN",
    "BestOfNState",
    "BootstrapSMC",
    "CoDe",
    "Constant",
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
    "Signal",
    "SoftValue",
    "Successor",
    "TemperedSMC",
    "TopB",
]
