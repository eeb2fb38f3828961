"""Feynman-Kac steering: particles that are resampled by intermediate rewards."""

from __future__ import annotations

from dataclasses import dataclass

from samplers.smc import SMC


@dataclass(frozen=True)
class FKSteering(SMC):
    """Sequential Monte Carlo with a look every few steps. Singhal et al. 2025 (2501.06848).

    The reference implementation differs in eight ways; here log-weights are carried when no
    resampling happens, everything stays in log space, the terminal correction uses r(x_0) itself,
    negative rewards count, the effective sample size can be low for two particles, too, and a reward
    weights the very state whose x_0 was predicted (no lag). The authors look at steps 20, 40, 60 and
    80 of 100; ``potential`` is ``"difference"``, ``"max"`` or ``"sum"``; attributes as in
    :class:`samplers.smc.SMC`.
    """

    start: int = 5
    every: int = 5
