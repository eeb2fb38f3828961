"""Published particle methods, each a setting of :class:`samplers.smc.SMC` with its paper's defaults.

They differ in nothing but their options, so that any of them can be changed into another, or into
something new, by an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from samplers.anneal import AnnealingName
from samplers.guidance import Gradient
from samplers.potentials import PotentialName
from samplers.smc import SMC, ResamplerName
from samplers.temperature import Temperature, TemperatureName


@dataclass(frozen=True)
class AutoSMC(SMC):
    """The default of this package: an early tilt that fits the strength of the reward.

    A look every step; intermediate rewards are averaged along each lineage, which stills late flicker;
    lambda follows :class:`samplers.temperature.Auto`; systematic resampling below 90 % of the effective
    particles. Weights are exact, as everywhere; the schedule is fitted, see docs/samplers/auto.md. No
    single published schedule is good on weak and strong tilts, with few and many particles; on the
    exactness problems this one stays near the best known sampler in every cell (docs/results.md).
    """

    potential: PotentialName = "smooth"
    temperature: Temperature | TemperatureName = "auto"
    ess_threshold: float = 0.9


@dataclass(frozen=True)
class BootstrapSMC(SMC):
    """Textbook sequential Monte Carlo: a look every step, systematic resampling below half.

    The differences of intermediate rewards weigh the particles from the first step on, untempered; log
    weights are carried between resamplings. Doucet and Johansen 2009, "A tutorial on particle filtering
    and smoothing".
    """


@dataclass(frozen=True)
class TemperedSMC(SMC):
    """Sequential Monte Carlo whose lambda rises along the way: early rewards weigh little.

    ``temperature`` is ``"signal"`` (linear in alpha-bar), ``"exponential"`` (DAS) or ``"adaptive"``
    (as fast as the effective sample size allows). Kim et al. 2025 (2501.05803) for tempering along the
    denoising steps.
    """

    temperature: Temperature | TemperatureName = "signal"
    ess_threshold: float = 0.9


@dataclass(frozen=True)
class SVDD(SMC):
    """Soft value-based decoding: each lineage draws children at every step and keeps one of them.

    A child is kept with probability in proportion to exp(lambda r); ``resampler="greedy"`` keeps the
    best, the limit of the paper's small alpha. Lineages are islands: ``particles / islands`` children
    each. All children of one state share its value, so the kept one is a draw by differences of
    rewards, and the carried evidence lets independent lineages be joined without bias; the paper
    drops it. The first choice is among as many initial noises, where the paper draws one. Li et al.
    2024 (2408.08252), whose images take 20 children.
    """

    particles: int = 20
    resampler: ResamplerName = "single"
    ess_threshold: float = 1.0


@dataclass(frozen=True)
class CoDe(SVDD):
    """Blockwise SVDD: children are carried for a block of steps before one is kept.

    A block of one step is SVDD, a block of the whole grid best-of-N. Singh et al. 2025 (2502.00968);
    the block of 5 steps and 4 children are our choice, since the paper's defaults could not be verified.
    """

    particles: int = 4
    start: int | float = 5
    every: int | float = 5


@dataclass(frozen=True)
class BFS(SMC):
    """Breadth-first search: rising lambda, running maximum of rewards, SSP resampling.

    The best combination of the design space {temperature} x {score} x {resampling} measured by Zhang
    et al. 2025 (2505.23614), looked at after each quarter of the way as in their code. The published
    population can shrink and favours low indices; here it does neither, and the final weights are
    corrected to exp(lambda r(x_0)).
    """

    potential: PotentialName = "max"
    temperature: Temperature | TemperatureName = "exponential"
    resampler: ResamplerName = "ssp"
    ess_threshold: float = 1.0
    start: int | float = 0.25
    every: int | float = 0.25


@dataclass(frozen=True)
class EntropicPF(SMC):
    """Entropic particle filtering: early resampling by a flattened power of the weights.

    Where the effective sample size is low in the first half of the way, particles are resampled by
    ``w ** (1 / tau)``; the rest of each weight is carried, so the search stays exact, which the
    published form is not. ``value=Successor()`` adds the look-ahead modulation, as a one-step auxiliary
    particle filter (its formula could not be verified); it costs one more denoiser call a particle and
    look. 2510.05825.
    """

    anneal: AnnealingName = "ess"


@dataclass(frozen=True)
class FunnelSMC(SMC):
    """Many particles early, few late, at the denoiser calls of a constant number.

    Early rewards weigh less, too. 2508.12361, whose formulas could not be verified: the number falls
    linearly, ``funnel`` to 1, and lambda is linear in alpha-bar.
    """

    funnel: float = 3.0
    temperature: Temperature | TemperatureName = "signal"
    every: int | float = 0.1
    start: int | float = 0.1


@dataclass(frozen=True)
class IslandSMC(SMC):
    """Independent groups of particles, joined at the end by their evidence.

    Groups do not collapse onto one ancestor together, and may run on different machines. Verge et al.
    2015 (1306.3911) for islands; Puri et al. 2025 (2502.01618) found groups of 16 to scale better than
    one large filter on language models.
    """

    particles: int = 64
    islands: int = 4


@dataclass(frozen=True)
class TDS(SMC):
    """Twisted diffusion sampling: the transition follows the reward's gradient, weights make up for it.

    Wu et al. 2023 (2306.17775). Needs a differentiable reward and decoder.
    """

    gradient: Gradient | None = Gradient()


@dataclass(frozen=True)
class DAS(SMC):
    """Diffusion alignment as sampling: tempered, gradient proposals, SSP resampling.

    Kim et al. 2025 (2501.05803). Their code keeps gradients and earlier rewards in the old order after
    a resampling and returns the particle that gained most since; here all is re-indexed, and the
    returned particle goes by its final reward. Needs a differentiable reward and decoder.
    """

    temperature: Temperature | TemperatureName = "exponential"
    resampler: ResamplerName = "ssp"
    gradient: Gradient | None = Gradient()
