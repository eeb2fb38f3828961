"""Cheaper pictures of guesses part-way; finished samples always go through the full decoder.

A full decode of a 1024-pixel SDXL latent costs as much as several denoiser rows, and a search looks at
many guesses. Three ways to look at them for less, from the cheapest: a linear projection of the latents,
fitted to the model's own decoder; the full decoder at low resolution; a tiny autoencoder of the model's
family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from steering.adapters.checks import Refusal
from steering.adapters.decode import DECODERS
from steering.transitions import DDIM

#: Pictures ``(n, 3, H, W)`` in [0, 1] of states ``(n, *shape)``.
Decode = Callable[[Tensor], Tensor]

_ODE = DDIM(eta=0.0)


class CheapDecode(ABC):
    """How guesses are looked at, instead of by the full decoder."""

    @abstractmethod
    def fit(self, model: Any) -> Decode:
        """The decoder for a model of :class:`steering.adapters.pipeline.PipelineModel`.

        Raises:
            Refusal: its decoder is not known explicitly, or what is needed cannot be had.
        """


@dataclass(frozen=True)
class LinearDecode(CheapDecode):
    """Every latent pixel and its neighbours, times one matrix, are the picture's pixels there.

    The matrix is the least-squares fit to the model's own decoder on guesses of x_0 along a few
    deterministic trajectories; it needs no download. The fit costs ``samples`` x steps denoiser calls
    and a decode of each guess kept, once for a model, outside any budget.

    Attributes:
        prompts: what the trajectories show, in turn. They should be many and of the kind that will be
            searched for: a colour that none of them shows is not learned.
        samples: trajectories.
        guesses: of each, spread over its noise levels.
        reach: neighbours on each side that a pixel looks at, in latent pixels.
        ridge: weight of the penalty that keeps the matrix small, relative to the inputs' variance.
        seed: of the trajectories.
    """

    prompts: tuple[str, ...]
    samples: int = 16
    guesses: int = 6
    reach: int = 1
    ridge: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not self.prompts:
            raise ValueError(
                f"a linear decode is fitted on a tuple of prompts, got {self.prompts!r}"
            )
        if self.samples < 1 or self.guesses < 1 or self.reach < 0:
            raise ValueError(
                f"a linear decode needs at least one sample and one guess and a reach of 0 or more, "
                f"got {self.samples}, {self.guesses} and {self.reach}"
            )

    def fit(self, model: Any) -> Decode:
        spatial = _spatial(model)
        with torch.no_grad():
            x_0 = self.guessed(model)
            z = spatial(x_0)
            pictures = torch.cat([_full(model)(row) for row in z.split(8)])
            factor = pictures.shape[-1] // z.shape[-1]
            if pictures.shape[-2:] != tuple(factor * edge for edge in z.shape[-2:]):
                raise Refusal(
                    f"latents of {tuple(z.shape[-2:])} become pictures of {tuple(pictures.shape[-2:])}: "
                    "not the same whole factor both ways, so there is no linear decode"
                )
            inputs = self._patches(z).transpose(1, 2).flatten(0, 1).double()
            targets = functional.pixel_unshuffle(pictures, factor).flatten(2)
            targets = targets.transpose(1, 2).flatten(0, 1).double()
            gram = inputs.T @ inputs
            penalty = self.ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
            matrix = torch.linalg.solve(gram + penalty, inputs.T @ targets).T.float()

        def decode(states: Tensor) -> Tensor:
            latents = spatial(states).float()
            pixels = (matrix @ self._patches(latents)).unflatten(2, latents.shape[-2:])
            return functional.pixel_shuffle(pixels, factor).clamp(0, 1)

        return decode

    def guessed(self, model: Any) -> Tensor:
        """Guesses of x_0 along the trajectories, ``(samples x guesses, *shape)``."""
        generator = torch.Generator().manual_seed(self.seed)
        x_t = torch.randn((self.samples, *model.shape), generator=generator).to(model.device)
        x_t, grid = x_t * model.initial_std, model.grid
        reached, origin = (getattr(model, name, None) for name in ("reached", "origin"))
        x_t = x_t if reached is None else x_t * reached
        x_t = x_t if origin is None else x_t + origin
        known = model.encode(list(self.prompts))
        handles = [known[i % len(known)] for i in range(self.samples)]
        # The first guesses show nothing yet, the last are what is searched for.
        kept = {round(grid.steps * (i + 1) / self.guesses) - 1 for i in range(self.guesses)}
        found = []
        for i, (t, s) in enumerate(zip(grid.times, grid.times[1:], strict=False)):
            posterior = model.denoise(x_t, [t] * self.samples, handles)
            if i in kept or i == grid.steps - 1:
                found.append(posterior.x_0)
            x_t = _ODE(posterior, t, s).mean
        return torch.cat(found)

    def _patches(self, z: Tensor) -> Tensor:
        """Neighbourhoods and a constant, ``(n, features, pixels)``; edges go on as they are."""
        width = 2 * self.reach + 1
        padded = functional.pad(z.float(), [self.reach] * 4, mode="replicate")
        patches = functional.unfold(padded, width)
        return torch.cat([patches, torch.ones_like(patches[:, :1])], 1)


@dataclass(frozen=True)
class LowResolution(CheapDecode):
    """The full decoder on latents shrunk by a factor; the picture is enlarged to its size again.

    Attributes:
        factor: by which both edges shrink, at least 2.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"the factor of a low resolution is at least 2, got {self.factor}")

    def fit(self, model: Any) -> Decode:
        spatial, full = _spatial(model), _full(model)

        def decode(states: Tensor) -> Tensor:
            z = spatial(states)
            small = functional.interpolate(
                z, [max(edge // self.factor, 1) for edge in z.shape[-2:]], mode="area"
            )
            pictures = full(small)
            size = [edge * pictures.shape[-1] // small.shape[-1] for edge in z.shape[-2:]]
            return functional.interpolate(pictures, size, mode="bilinear", align_corners=False)

        return decode


@dataclass(frozen=True)
class TinyDecode(CheapDecode):
    """A tiny autoencoder of the model's family (diffusers' AutoencoderTiny).

    Attributes:
        model: hub id or folder: "madebyollin/taesd" for Stable Diffusion 1 and 2,
            "madebyollin/taesdxl", "madebyollin/taesd3", "madebyollin/taef1" for Flux.
    """

    model: str

    def fit(self, model: Any) -> Decode:
        import diffusers

        spatial = _spatial(model)
        try:
            tiny = diffusers.AutoencoderTiny.from_pretrained(self.model, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise Refusal(
                f"cannot load the tiny autoencoder {self.model!r}: {error}\nWithout a network, copy its "
                "config.json and diffusion_pytorch_model.safetensors to a folder and give that folder; "
                "or take LinearDecode, which needs none"
            ) from error
        tiny = tiny.to(model.device, model.pipe.vae.dtype).eval().requires_grad_(False)
        own = model.pipe.vae.config.latent_channels
        if tiny.config.latent_channels != own:
            raise Refusal(
                f"the tiny autoencoder {self.model!r} decodes {tiny.config.latent_channels} channels, "
                f"the model's latents have {own}; give one of the model's family"
            )
        return lambda states: DECODERS["AutoencoderTiny"](tiny, spatial(states))


def _spatial(model: Any) -> Callable[[Tensor], Tensor]:
    """Latents ``(n, C, h, w)`` as the denoiser's, of states that a pipeline may have packed."""
    decoder = model._decoder
    if not decoder.differentiable:
        raise Refusal(
            f"the decoder of {type(model.pipe).__name__} is not known explicitly, so there is nothing "
            "cheaper that is known to show the same; leave guesses to the full decoder"
        )

    def spatial(states: Tensor) -> Tensor:
        if decoder._tail.unpacking is None:
            return states
        args, kwargs = decoder._tail.unpacking
        return model.pipe._unpack_latents(states, *args, **kwargs)

    return spatial


def _full(model: Any) -> Decode:
    """The model's own decoder, of latents that are not packed."""
    vae = model.pipe.vae
    return lambda z: DECODERS[type(vae).__name__](vae, z)
