"""Searches, one idea a file."""

from samplers.adaptive import AdaptiveBestOfN
from samplers.best_first import BestFirst
from samplers.best_of_n import BestOfN, BestOfNState
from samplers.chunk_level import ChunkLevel
from samplers.depth_first import DepthFirst
from samplers.dlbs import DLBS
from samplers.dts import DTS
from samplers.dts_star import DTSStar
from samplers.evo_search import EvoSearch
from samplers.fk import FKSteering
from samplers.frames_state import FramesState
from samplers.gate import Gate
from samplers.gibbs import ParticleGibbs, RetainedPath
from samplers.guidance import Gradient
from samplers.halving import Halving
from samplers.initial import InitialNoise, Prior, Resampled, TopB
from samplers.keep import Best, Diverse, Keep
from samplers.metropolis import Metropolis
from samplers.noise_paths import NoisePaths
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
from samplers.reno import ReNO
from samplers.repair import Repair
from samplers.repair_state import RepairState
from samplers.smc import SMC
from samplers.stopping import ExpectedGain
from samplers.store import Room
from samplers.temperature import Adaptive, Auto, Constant, Exponential, Signal
from samplers.tree_g import TreeG
from samplers.tree_of_frames import TreeOfFrames
from samplers.tree_state import TreeState
from samplers.values import LookAhead, Predicted, SoftValue, Successor
from samplers.zeno import ZeNO
from samplers.zero_order import ZeroOrder

__all__ = [
    "BFS",
    "DAS",
    "DLBS",
    "DTS",
    "PCNL",
    "RBF",
    "SMC",
    "SVDD",
    "TDS",
    "Adaptive",
    "AdaptiveBestOfN",
    "Auto",
    "AutoSMC",
    "Best",
    "BestFirst",
    "BestOfN",
    "BestOfNState",
    "BootstrapSMC",
    "ChunkLevel",
    "CoDe",
    "Constant",
    "DTSStar",
    "DepthFirst",
    "Diverse",
    "EntropicPF",
    "EvoSearch",
    "ExpectedGain",
    "Exponential",
    "FKSteering",
    "FramesState",
    "FunnelSMC",
    "Gate",
    "Gradient",
    "Halving",
    "InitialNoise",
    "IslandSMC",
    "Keep",
    "LookAhead",
    "Metropolis",
    "NoisePaths",
    "ParticleGibbs",
    "Predicted",
    "Prior",
    "ReNO",
    "Repair",
    "RepairState",
    "Resampled",
    "RetainedPath",
    "Room",
    "Signal",
    "SoftValue",
    "Successor",
    "TemperedSMC",
    "TopB",
    "TreeG",
    "TreeOfFrames",
    "TreeState",
    "ZeNO",
    "ZeroOrder",
]
