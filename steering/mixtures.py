"""Gaussian mixtures as models: denoisers in closed form, on which samplers can be proved right.

A mixture stands where a pipeline would: it has a grid, a denoiser ``E[x_0 | x_t]``, a decoder (the
identity: a state is its own medium) and nothing to learn. A row costs microseconds, so a statistic
over millions of rows is affordable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from steering.interpolants import RectifiedFlow, VPDiscrete
from steering.model import Abilities, Stage
from steering.prediction import Posterior
from steering.times import Time, TimeGrid, coefficients
from steering.transitions import DDIM


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of ``J`` Gaussians in ``d`` dimensions, full covariances.

    Attributes:
        weights: mixture weights, not negative, summing to 1, float64 ``(J,)``.
        means: ``(J, d)``.
        covariances: symmetric and positive definite, ``(J, d, d)``.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).double())
        shapes = tuple(self.weights.shape), tuple(self.means.shape), tuple(self.covariances.shape)
        n, d = len(self.weights), self.means.shape[-1]
        if shapes != ((n,), (n, d), (n, d, d)):
            raise ValueError(f"need shapes (J,), (J, d) and (J, d, d), got {shapes}")
        if bool((self.weights < 0).any()) or abs(float(self.weights.sum()) - 1) > 1e-6:
            raise ValueError(
                f"weights must not be negative and must sum to 1, got {self.weights.tolist()}"
            )
        if not bool((self._axes[0] > 0).all()):
            raise ValueError("covariances must be symmetric and positive definite")

    @property
    def dim(self) -> int:
        """Dimension ``d`` of a point."""
        return self.means.shape[-1]

    def to(self, device: torch.device | str) -> GaussianMixture:
        """The same mixture with its tensors on ``device``."""
        return GaussianMixture(
            self.weights.to(device), self.means.to(device), self.covariances.to(device)
        )

    def denoise(
        self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Posterior means of ``x_0`` and ``eps`` given ``x_t = alpha x_0 + sigma eps``.

        Args:
            x_t: states ``(B, d)``; autograd passes through.
            alpha: signal coefficient, a float or ``(B, 1)``.
            sigma: noise coefficient, a float or ``(B, 1)``.

        Returns:
            ``E[x_0 | x_t]`` and ``E[eps | x_t]``, float64 ``(B, d)``. The second is computed without
            the cancellation in ``(x_t - alpha x_0) / sigma``, so it is exact at every noise level.
        """
        n, d = self.means.shape
        spread, _ = self._axes
        alpha, sigma = self._per_component(alpha), self._per_component(sigma)
        centred = (x_t.double() @ self._to_axes).reshape(-1, n, d) - alpha * self._axis_means
        variance = alpha**2 * spread + sigma**2
        scaled = centred / variance
        energy = (centred * scaled).sum(-1) + variance.log().sum(-1)
        chosen = torch.softmax(self._log_weights - 0.5 * energy, -1)
        pulled = chosen[..., None] * scaled
        x_0 = chosen @ self.means + (alpha * spread * pulled).reshape(-1, n * d) @ self._to_axes.T
        return x_0, (sigma * pulled).reshape(-1, n * d) @ self._to_axes.T

    def log_joint(self, x: Tensor) -> Tensor:
        """``log(w_j N(x; mean_j, covariance_j))`` of points ``(n, d)``, float64 ``(n, J)``."""
        n, d = self.means.shape
        centred = (x.double() @ self._to_axes).reshape(-1, n, d) - self._axis_means
        spread, _ = self._axes
        energy = (centred.square() / spread).sum(-1) + spread.log().sum(-1)
        return self._log_weights - 0.5 * energy - 0.5 * d * math.log(2 * math.pi)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points ``(n, d)``, float64 ``(n,)``."""
        return torch.logsumexp(self.log_joint(x), -1)

    def mode_of(self, x: Tensor) -> Tensor:
        """Component most probable at each point ``(n, d)``, ``(n,)``."""
        return self.log_joint(x).argmax(-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent points, float64 ``(count, d)`` on the CPU; for tests, not for searches."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        factors = torch.linalg.cholesky(self.covariances)
        noise = torch.randn(count, self.dim, dtype=torch.float64, generator=generator)
        return self.means[which] + torch.einsum("nij,nj->ni", factors[which], noise)

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Variances ``(J, d)`` along principal axes, the columns of ``(J, d, d)``."""
        eigen = torch.linalg.eigh(self.covariances)
        return eigen.eigenvalues, eigen.eigenvectors

    @cached_property
    def _to_axes(self) -> Tensor:
        """Rotation to all components' axes at once, ``(d, J d)``: one matrix product a call."""
        return self._axes[1].permute(1, 0, 2).reshape(self.dim, -1)

    @cached_property
    def _axis_means(self) -> Tensor:
        """Each mean along its own component's axes, ``(J, d)``."""
        return torch.einsum("ji,jik->jk", self.means, self._axes[1])

    @cached_property
    def _log_weights(self) -> Tensor:
        return self.weights.log()

    @staticmethod
    def _per_component(value: Tensor | float) -> Tensor | float:
        """A coefficient a row ``(B, 1)`` as ``(B, 1, 1)``, to meet ``(B, J, d)``."""
        return value.double()[..., None] if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Unconditional:
    """Conditioning of a model that listens to no prompt.

    Attributes:
        prompt: the text, kept for messages.
    """

    prompt: str = ""

    @property
    def signature(self) -> str:
        """Rows of any two prompts may share a batch."""
        return "unconditional"

    @property
    def initial(self) -> Tensor | None:
        """None: the search's own stream decides where to start."""
        return None


@dataclass(frozen=True)
class OdeRun:
    """The mixture's "own scheduler": DDIM(0), which on a flow is the Euler step.

    Attributes:
        grid: the noise levels to walk.
    """

    grid: TimeGrid

    @property
    def times(self) -> Sequence[Time]:
        """Noise level of each model call."""
        return self.grid[:-1]

    def step(self, index: int, posterior: Posterior, x_t: Tensor) -> Tensor:
        """State after model call ``index``, ``(n, d)``."""
        return DDIM(0.0)(posterior, self.grid[index], self.grid[index + 1]).mean


class OdeWalk:
    """What a model without a diffusers scheduler does in the place of one: DDIM(0) along its grid."""

    grid: TimeGrid

    def scheduler_calls(self) -> int:
        """Model calls of one walk: one a step."""
        return self.grid.steps

    def scheduler_run(
        self,
        conditioning: Any,
        draws: Sequence[int],
        seeds: Sequence[int],
        start: int = 0,
        stop: int | None = None,
    ) -> OdeRun:
        """The walk from ``start`` on; whoever asked for ``stop`` leaves it there."""
        return OdeRun(TimeGrid(self.grid[start:]) if start else self.grid)


@dataclass(frozen=True, eq=False)
class MixtureModel(OdeWalk):
    """A Gaussian mixture as a :class:`steering.model.Model`. Media are the states themselves.

    Attributes:
        mixture: the law of ``x_0``.
        grid: time grid, see :func:`vp_grid` and :func:`flow_grid`.
        name: key under which calibrations and timings are saved.
        device: where states live; the mixture's tensors are moved there.
        initial_std: standard deviation at ``grid[0]``; as in a pipeline, sampling starts there from
            N(0, initial_std^2) and not from the marginal.
    """

    mixture: GaussianMixture
    grid: TimeGrid
    name: str = "mixture"
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    initial_std: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", torch.device(self.device))
        object.__setattr__(self, "mixture", self.mixture.to(self.device))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape ``(d,)`` of one state."""
        return (self.mixture.dim,)

    @property
    def dtype(self) -> torch.dtype:
        """Closed forms are computed in at least float32."""
        return torch.float32

    @property
    def passes(self) -> int:
        """One: there is no guidance."""
        return 1

    @property
    def abilities(self) -> Abilities:
        """All of them: any rows, a time a row, any order, gradients, a true posterior mean."""
        return Abilities()

    def at(self, log_snr: float) -> Time:
        """Record of any noise level, infinite log-SNR included, as a rectified flow has it.

        The closed form needs no time: ``model_t`` is 1000 sigma, whatever the grid's convention.
        """
        alpha, sigma = RectifiedFlow().normalise(math.exp(-0.5 * log_snr))
        return Time(1000 * sigma, alpha, sigma)

    def encode(self, prompts: Sequence[str]) -> list[Unconditional]:
        """A handle a prompt; they differ in nothing but their text."""
        return [Unconditional(prompt) for prompt in prompts]

    def denoise(self, x_t: Tensor, times: Sequence[Time], conditioning: Sequence[Any]) -> Posterior:
        """Posterior of each row ``x_t (B, d)``, float32; computed in float64."""
        alpha, sigma = coefficients(times, x_t.double())
        x_0, eps = self.mixture.denoise(x_t, alpha, sigma)
        return Posterior(x_0.to(x_t.dtype), eps.to(x_t.dtype))

    def decode(self, x_0: Tensor, conditioning: Sequence[Any], stage: Stage) -> Tensor:
        """The states ``(B, d)`` themselves."""
        return x_0

    def render(self, x_0: Tensor, conditioning: Sequence[Any]) -> list[Tensor]:
        """The rows, each ``(d,)``."""
        return list(x_0)


def vp_path(first_beta: float = 1e-4, last_beta: float = 2e-2, steps: int = 1000) -> VPDiscrete:
    """Variance-preserving training path with betas linear in the step."""
    betas = torch.linspace(first_beta, last_beta, steps, dtype=torch.float64)
    return VPDiscrete(tuple(torch.cumprod(1 - betas, 0).tolist()))


def vp_grid(steps: int = 50, path: VPDiscrete | None = None) -> TimeGrid:
    """DDIM's grid on a variance-preserving path: leading spacing, offset 1, end at training step 0.

    Args:
        steps: transitions; must divide the number of training steps.
        path: the training path; :func:`vp_path` by default.

    Raises:
        ValueError: ``steps`` does not divide the number of training steps.
    """
    path = path or vp_path()
    stride, rest = divmod(path.num_train_timesteps, steps)
    if rest:
        raise ValueError(f"{steps} steps do not divide {path.num_train_timesteps} training steps")
    indices = [i * stride + 1 for i in reversed(range(steps))] + [0]
    squares = [path.alphas_cumprod[i] for i in indices]
    return TimeGrid(
        tuple(
            Time(float(i), math.sqrt(a), math.sqrt(1 - a))
            for i, a in zip(indices, squares, strict=True)
        )
    )


def flow_grid(steps: int = 50) -> TimeGrid:
    """Uniform grid of the rectified flow, from pure noise to no noise."""
    levels = [1 - i / steps for i in range(steps + 1)]
    return TimeGrid(tuple(Time(1000 * s, 1 - s, s) for s in levels))
