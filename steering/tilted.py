"""Target laws known exactly: ``p(x) exp(lambda r(x)) / Z`` on Gaussian mixtures.

A linear or quadratic reward turns a Gaussian mixture into another one, in closed form and in any
dimension. Any other reward is integrated by quadrature in the plane.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from steering.mixtures import GaussianMixture
from steering.reward import Item


@dataclass(frozen=True, eq=False)
class QuadraticReward:
    """``r(x) = offset + slope . x - x' Q x / 2``; linear where ``Q`` is 0.

    Attributes:
        slope: ``(d,)``.
        curvature: ``Q``, symmetric and not negative, ``(d, d)``.
        offset: a constant.
        name: key of its scores.
    """

    slope: Tensor
    curvature: Tensor
    offset: float = 0.0
    name: str = "quadratic"
    differentiable: bool = True
    calls_per_row: int = 1

    def __post_init__(self) -> None:
        for field_name in ("slope", "curvature"):
            value = torch.as_tensor(getattr(self, field_name), dtype=torch.float64)
            object.__setattr__(self, field_name, value)

    @classmethod
    def linear(cls, slope: Sequence[float], name: str = "linear") -> QuadraticReward:
        """``slope . x``."""
        d = len(slope)
        return cls(torch.tensor(slope, dtype=torch.float64), torch.zeros(d, d), name=name)

    @classmethod
    def around(
        cls,
        centre: Sequence[float],
        curvature: Sequence[Sequence[float]] | Tensor,
        name: str = "quadratic",
    ) -> QuadraticReward:
        """``-(x - centre)' Q (x - centre) / 2``."""
        c = torch.as_tensor(centre, dtype=torch.float64)
        q = torch.as_tensor(curvature, dtype=torch.float64)
        return cls(q @ c, q, -0.5 * float(c @ q @ c), name)

    def prepare(self, item: Item) -> None:
        """Nothing: the prompt does not matter."""

    def __call__(self, media: Tensor, features: Sequence[object] = ()) -> Tensor:
        """Rewards of points ``media (B, d)``, float64 ``(B,)``."""
        x = media.double()
        slope, curvature = self.slope.to(x.device), self.curvature.to(x.device)
        return self.offset + x @ slope - 0.5 * ((x @ curvature) * x).sum(-1)

    def tilt(self, mixture: GaussianMixture, lam: float) -> tuple[GaussianMixture, float]:
        """The law ``mixture * exp(lam r) / Z``, again a mixture, and ``log Z``.

        Raises:
            ValueError: ``lam`` is so negative that the tilted law has no finite integral.
        """
        precision = torch.linalg.inv(mixture.covariances)
        tilted_precision = precision + lam * self.curvature
        if bool((torch.linalg.eigvalsh(tilted_precision) <= 0).any()):
            raise ValueError(f"exp({lam} r) has no finite mean under this mixture")
        covariances = torch.linalg.inv(tilted_precision)
        pull = torch.einsum("jab,jb->ja", precision, mixture.means)
        means = torch.einsum("jab,jb->ja", covariances, pull + lam * self.slope)
        gain = ((pull + lam * self.slope) * means).sum(-1) - (pull * mixture.means).sum(-1)
        shrink = torch.logdet(covariances) - torch.logdet(mixture.covariances)
        log_w = mixture.weights.log() + lam * self.offset + 0.5 * (gain + shrink)
        return (
            GaussianMixture(torch.softmax(log_w, 0), means, covariances),
            float(torch.logsumexp(log_w, 0)),
        )

    def mean_under(self, mixture: GaussianMixture) -> float:
        """``E[r]`` under a mixture."""
        trace = torch.einsum("ab,jba->j", self.curvature, mixture.covariances)
        return float(mixture.weights @ (self(mixture.means) - 0.5 * trace))


@dataclass(frozen=True)
class HalfRingReward:
    """1 where the radius exceeds a bound and the second coordinate is positive, else 0.

    Attributes:
        radius: the bound.
        name: key of its scores.
    """

    radius: float
    name: str = "indicator"
    differentiable: bool = False
    calls_per_row: int = 1

    def prepare(self, item: Item) -> None:
        """Nothing: the prompt does not matter."""

    def __call__(self, media: Tensor, features: Sequence[object] = ()) -> Tensor:
        """Rewards of points ``media (B, 2)``, float64 ``(B,)``."""
        return ((media.norm(dim=-1) > self.radius) & (media[:, 1] > 0)).double()


@dataclass(frozen=True, eq=False)
class TiltedProblem:
    """A base mixture, a reward and lambda: a target whose every figure is known.

    Attributes:
        name: what tables call it.
        mixture: the base law ``p``.
        reward: a reward on points ``(B, d)``, in the protocol of :class:`steering.reward.Reward`.
        lam: lambda, in raw units of the reward.
        jump: radius at which the reward jumps, where it does; quadrature is split there.
    """

    name: str
    mixture: GaussianMixture
    reward: QuadraticReward | HalfRingReward
    lam: float
    jump: float | None = None

    @property
    def log_z(self) -> float:
        """Log of ``Z = E_p[exp(lambda r)]``."""
        return self._conjugate[1] if self._conjugate else self._integrals[0]

    @property
    def reward_mean(self) -> float:
        """``E[r]`` under the target."""
        if self._conjugate and isinstance(self.reward, QuadraticReward):
            return self.reward.mean_under(self._conjugate[0])
        return self._integrals[1]

    @property
    def kl(self) -> float:
        """KL(target, base) in nats."""
        return self.lam * self.reward_mean - self.log_z

    @property
    def masses(self) -> Tensor:
        """Target mass of the region where each component is the most probable, ``(J,)``.

        In the plane by quadrature. In other dimensions the weights of the tilted components, which
        differ from it by the overlap of the modes (6e-4 at most on the four problems).
        """
        if self.mixture.dim == 2 or self._conjugate is None:
            return self._integrals[2]
        return self._conjugate[0].weights

    def masses_of(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mode masses of weighted points, float64 ``(J,)``.

        Args:
            x: points ``(n, d)``.
            weights: not negative, any scale, ``(n,)``; None means equal.
        """
        count = len(self.mixture.weights)
        w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
        held = torch.bincount(self.mixture.mode_of(x).cpu(), w.cpu(), minlength=count)
        return held / held.sum()

    def mode_tv(self, x: Tensor, weights: Tensor | None = None) -> float:
        """Total variation between the mode masses of weighted points and the exact ones."""
        return total_variation(self.masses_of(x, weights), self.masses)

    @cached_property
    def _conjugate(self) -> tuple[GaussianMixture, float] | None:
        """Tilted mixture and log Z in closed form, where the reward allows it."""
        if not isinstance(self.reward, QuadraticReward):
            return None
        return self.reward.tilt(self.mixture, self.lam)

    @cached_property
    def _integrals(self) -> tuple[float, float, Tensor]:
        """Log Z, mean reward and mode masses by quadrature in the plane."""
        if self.mixture.dim != 2:
            raise NotImplementedError(
                f"only quadratic rewards are exact in {self.mixture.dim} dimensions, not "
                f"{type(self.reward).__name__}"
            )
        points, log_area = _polar_rule(self.mixture, self.jump)
        log_joint = self.mixture.log_joint(points)
        rewards = self.reward(points)
        log_mass = torch.logsumexp(log_joint, -1) + log_area + self.lam * rewards
        log_z = float(torch.logsumexp(log_mass, 0))
        mass = (log_mass - log_z).exp()
        modes = torch.bincount(log_joint.argmax(-1), mass, minlength=len(self.mixture.weights))
        return log_z, float(mass @ rewards), modes


def total_variation(a: Tensor, b: Tensor) -> float:
    """Half the summed absolute difference of two mass vectors ``(J,)``."""
    return 0.5 * float((a - b).abs().sum())


def _polar_rule(mixture: GaussianMixture, jump: float | None) -> tuple[Tensor, Tensor]:
    """Points ``(n, 2)`` and log-areas ``(n,)`` of a product rule that covers the mixture.

    Gauss-Legendre on each piece between the radii and half-planes where a reward may jump, so that
    a jump costs no accuracy.
    """
    spread = mixture.covariances.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt().max()
    reach = float(mixture.means.norm(dim=-1).max() + 8 * spread)
    radii = [0.0, jump if jump is not None else 0.5 * reach, reach]
    r, r_weight = _gauss_legendre(radii, 200)
    angle, angle_weight = _gauss_legendre([0.0, math.pi, 2 * math.pi], 400)
    points = torch.stack(
        [r[:, None] * angle.cos(), r[:, None] * angle.sin().expand(len(r), -1)], -1
    )
    area = (r * r_weight)[:, None] * angle_weight
    return points.reshape(-1, 2), area.reshape(-1).log()


def _gauss_legendre(breaks: Sequence[float], order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the rule on each interval between consecutive breaks, joined."""
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(order))
    halves = [(0.5 * (b - a), 0.5 * (a + b)) for a, b in itertools.pairwise(breaks)]
    return (
        torch.cat([half * node + middle for half, middle in halves]),
        torch.cat([half * weight for half, _ in halves]),
    )


def ring(weights: Sequence[float]) -> GaussianMixture:
    """Modes on a ring of radius 4, with standard deviations .30 and .55 along alternating axes.

    Mode ``j`` of ``J`` lies at the angle ``u = 2 pi j / J``; its axes are turned by
    ``u + 0.4 (-1)^j``.
    """
    j = torch.arange(len(weights), dtype=torch.float64)
    u = 2 * math.pi * j / len(weights)
    turn = u + 0.4 * (-1.0) ** j
    axes = torch.stack(
        [torch.stack([turn.cos(), -turn.sin()], -1), torch.stack([turn.sin(), turn.cos()], -1)], -2
    )
    variances = torch.diag(torch.tensor([0.30, 0.55], dtype=torch.float64) ** 2)
    return GaussianMixture(
        torch.tensor(weights, dtype=torch.float64),
        4 * torch.stack([u.cos(), u.sin()], -1),
        axes @ variances @ axes.mT,
    )


def _linear() -> TiltedProblem:
    reward = QuadraticReward.linear([0.8, 0.6])
    return TiltedProblem("linear", ring([0.05, 0.15, 0.2, 0.1, 0.2, 0.1, 0.15, 0.05]), reward, 0.6)


def _quadratic() -> TiltedProblem:
    reward = QuadraticReward.around([4.4, 0.4], [[1.0, 0.2], [0.2, 0.6]])
    base = ring([0.03, 0.10, 0.17, 0.17, 0.18, 0.17, 0.10, 0.08])
    return TiltedProblem("quadratic", base, reward, 0.25)


def _indicator() -> TiltedProblem:
    base = ring([0.1, 0.15, 0.15, 0.1, 0.15, 0.1, 0.15, 0.1])
    return TiltedProblem("indicator", base, HalfRingReward(4.25), 3.0, jump=4.25)


def _rare() -> TiltedProblem:
    reward = QuadraticReward.around([4.0, 0.0], torch.eye(2), name="rare")
    base = ring([0.01, 0.14, 0.16, 0.13, 0.14, 0.13, 0.15, 0.14])
    return TiltedProblem("rare", base, reward, 1.2)


def corners(weights: Sequence[float], dim: int = 16) -> GaussianMixture:
    """Modes at ``4 e_j`` in ``dim`` dimensions, apart from each other by 5.7.

    Standard deviations alternate between .30 and .55 along the axes, the other way round in every
    second mode.

    Raises:
        ValueError: more modes than dimensions.
    """
    count = len(weights)
    if count > dim:
        raise ValueError(f"{count} modes need as many dimensions, got {dim}")
    means = 4.0 * torch.eye(dim, dtype=torch.float64)[:count]
    odd = (torch.arange(count)[:, None] + torch.arange(dim)) % 2 == 1
    variances = torch.where(odd, 0.55**2, 0.30**2).double()
    return GaussianMixture(
        torch.tensor(weights, dtype=torch.float64), means, torch.diag_embed(variances)
    )


def _linear_16d() -> TiltedProblem:
    slope = [0.6, 0.45, 0.3, 0.15, 0.0, -0.15, -0.3, -0.45] + [0.1] * 8
    base = corners([0.05, 0.10, 0.15, 0.15, 0.15, 0.15, 0.15, 0.10])
    reward = QuadraticReward.linear(slope, name="linear-16d")
    return TiltedProblem("linear-16d", base, reward, 1.2)


def _rare_16d() -> TiltedProblem:
    centre = [4.0, 0.5, -0.5] + [0.2] * 13
    base = corners([0.02, 0.14, 0.14, 0.14, 0.14, 0.14, 0.14, 0.14])
    reward = QuadraticReward.around(centre, torch.eye(16), name="rare-16d")
    return TiltedProblem("rare-16d", base, reward, 0.3)


#: The problems on which exactness is measured: four in the plane, of which the rare one holds 73 % of
#: its target in a mode of 1 %, and two in 16 dimensions.
PROBLEMS: dict[str, Callable[[], TiltedProblem]] = {
    "linear": _linear,
    "quadratic": _quadratic,
    "indicator": _indicator,
    "rare": _rare,
    "linear-16d": _linear_16d,
    "rare-16d": _rare_16d,
}
