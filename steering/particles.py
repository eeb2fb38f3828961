"""Weighted particles: log-weights in one immutable object, and the resamplers.

Every resampler has one signature, ``(weights, uniforms, n) -> ancestors``: normalised float64 weights
``(k,)``, uniforms ``(max(k, n),)`` and the number of children, to ``n`` ancestor indices. All but
``greedy`` are unbiased: particle ``i`` has ``n w_i`` expected children. Source: Douc, Cappe and
Moulines 2005 (cs/0507025); SSP is Srinivasan's sampling process (Gerber, Chopin and Whiteley 2019,
1708.02230).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Resampler = Callable[[Tensor, Tensor, int], Tensor]

ALL_ZERO = (
    "all weights are zero: no particle is possible under the potential; lower lambda, raise the number "
    "of particles, or check the reward for -inf"
)


@dataclass(frozen=True, eq=False)
class Weights:
    """Log-weights of ``k`` particles and the evidence that was already divided out.

    Attributes:
        log_w: unnormalised log-weights, float64 ``(k,)``.
        log_norm: log of the mean weights that resampling divided out so far.
    """

    log_w: Tensor
    log_norm: float = 0.0

    @classmethod
    def uniform(cls, k: int) -> Weights:
        """All weights 1."""
        return cls(torch.zeros(k, dtype=torch.float64))

    def __len__(self) -> int:
        return self.log_w.shape[0]

    def times(self, log_factor: Tensor, *, may_die: bool = False) -> Weights:
        """Multiply each weight by ``exp(log_factor)``, ``(k,)``.

        Args:
            log_factor: of each particle.
            may_die: where all weights become zero, return :attr:`dead` ones instead of an error: right
                for one of several groups, whose evidence is then zero.

        Raises:
            ValueError: a factor is NaN or +inf, or all weights have become zero.
        """
        log_w = self.log_w + log_factor
        top = float(log_w.max())  # NaN if any is
        if -math.inf < top < math.inf:
            return Weights(log_w, self.log_norm)
        if top != -math.inf:
            bad = int(torch.nonzero(torch.isnan(log_w) | torch.isposinf(log_w))[0])
            raise ValueError(f"the log-weight of particle {bad} became {float(log_w[bad])}")
        if may_die:
            return Weights(torch.zeros_like(log_w), -math.inf)
        raise ValueError(ALL_ZERO)

    @property
    def dead(self) -> bool:
        """Whether no particle was possible at some time: even weights, but no evidence."""
        return self.log_norm == -math.inf

    @property
    def normalised(self) -> Tensor:
        """Weights that sum to 1, ``(k,)``."""
        return torch.softmax(self.log_w, 0)

    @property
    def ess(self) -> float:
        """Effective sample size, 1 / sum of squared normalised weights, from 1 to k."""
        return 1.0 / float(self.normalised.square().sum())

    @property
    def log_z(self) -> float:
        """Estimate of the log normalising constant so far."""
        return self.log_norm + float(torch.logsumexp(self.log_w, 0)) - math.log(len(self))

    def resample(
        self,
        resampler: Resampler,
        uniforms: Tensor,
        children: int | None = None,
        power: float = 1.0,
    ) -> tuple[Tensor, Weights]:
        """Draw ancestors in proportion to ``w ** power``; what was not applied stays as a weight.

        Args:
            resampler: one of :data:`RESAMPLERS`.
            uniforms: float64 on [0, 1), ``(max(k, n),)``.
            children: their number ``n``; None: as many as there are particles.
            power: in (0, 1]; 1 leaves uniform weights.

        Returns:
            Ancestor indices ``(n,)`` and the weights after resampling, which carry the evidence: the
            estimate :attr:`log_z` is unbiased whatever the power.
        """
        n = len(self) if children is None else children
        if power == 1:
            ancestors = resampler(self.normalised, uniforms, n)
            return ancestors, Weights(torch.zeros(n, dtype=torch.float64), self.log_z)
        drawn_by = Weights(power * self.log_w, self.log_norm)
        ancestors = resampler(drawn_by.normalised, uniforms, n)
        return ancestors, Weights((1 - power) * self.log_w[ancestors], drawn_by.log_z)


def multinomial(weights: Tensor, uniforms: Tensor, n: int) -> Tensor:
    """Independent draws: the noisiest of those that do not collapse."""
    return _invert(weights, torch.sort(uniforms[:n]).values)


def stratified(weights: Tensor, uniforms: Tensor, n: int) -> Tensor:
    """One draw in each of n equal strata."""
    return _invert(weights, (torch.arange(n) + uniforms[:n]) / n)


def systematic(weights: Tensor, uniforms: Tensor, n: int) -> Tensor:
    """One common offset in n equal strata: between floor and ceil of ``n w_i`` children each."""
    return _invert(weights, (torch.arange(n) + uniforms[0]) / n)


def residual(weights: Tensor, uniforms: Tensor, n: int) -> Tensor:
    """floor(n w_i) children for sure, the rest drawn independently from what is left."""
    expected = weights * n
    sure = torch.floor(expected + 1e-12).long()
    ancestors = torch.repeat_interleave(torch.arange(len(weights)), sure)[:n]
    left = n - len(ancestors)
    if left == 0:
        return ancestors
    rest = (expected - sure).clamp(min=0)
    drawn = _invert(rest / rest.sum(), torch.sort(uniforms[:left]).values)
    return torch.sort(torch.cat([ancestors, drawn])).values


def ssp(weights: Tensor, uniforms: Tensor, n: int) -> Tensor:
    """Srinivasan's sampling process: floor or ceil of ``n w_i`` children, negatively associated."""
    k = len(weights)
    expected = (weights * n).tolist()
    children = [math.floor(x + 1e-12) for x in expected]
    fraction = [max(x - c, 0.0) for x, c in zip(expected, children, strict=True)]
    i = 0  # the particle whose fraction is being settled against m's
    for m, u in zip(range(1, k), uniforms.tolist(), strict=False):
        up = min(1 - fraction[i], fraction[m])  # i gains, m loses
        down = min(fraction[i], 1 - fraction[m])  # i loses, m gains
        gain = u * (up + down) < down
        shift = up if gain else -down
        fraction[i] += shift
        fraction[m] -= shift
        settled = m if fraction[m] <= 1e-12 or fraction[m] >= 1 - 1e-12 else i
        children[settled] += round(fraction[settled])
        fraction[settled] = 0.0
        i = i + m - settled if settled in (i, m) else i
    children[i] += n - sum(children)  # the last fraction is whole but for rounding
    return torch.repeat_interleave(torch.arange(k), torch.tensor(children))


def single(weights: Tensor, uniforms: Tensor, n: int) -> Tensor:
    """One ancestor for all children: what keeps a lineage (SVDD). Unbiased, and as noisy as can be."""
    return _invert(weights, uniforms[:1]).repeat(n)


def greedy(weights: Tensor, uniforms: Tensor, n: int) -> Tensor:
    """The heaviest particle for all children: the limit of a large lambda; claims no law."""
    return weights.argmax().repeat(n)


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """Index of the weight under each of the sorted ``points`` on [0, 1)."""
    cumulative = torch.cumsum(weights, 0)
    cumulative = cumulative / cumulative[-1]
    last = int(torch.nonzero(weights > 0)[-1])  # rounding must not reach a zero weight at the end
    return torch.searchsorted(cumulative, points, right=True).clamp(max=last)


RESAMPLERS: dict[str, Resampler] = {
    "systematic": systematic,
    "multinomial": multinomial,
    "stratified": stratified,
    "residual": residual,
    "ssp": ssp,
    "single": single,
    "greedy": greedy,
}

#: Resamplers under which every particle's expected number of children is in proportion to its weight.
UNBIASED = tuple(name for name in RESAMPLERS if name != "greedy")
