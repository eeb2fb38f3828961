"""What a suspended call keeps to itself: random numbers, attention processors, an upcast autoencoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steering.adapters.capture import networks_of


class OwnState:
    """Global states that a call changes while it runs, put back whenever it is suspended.

    Args:
        pipe: the pipeline that is called.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._random = _random_state()
        self._processors: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The call's own states; the surroundings' come back at the end."""
        random, processors = _random_state(), self._found()
        vae = getattr(self._pipe, "vae", None)
        dtype = getattr(vae, "dtype", None)
        _set_random(self._random)
        for name, own in self._processors.items():
            _set_processors(self._pipe.__dict__[name], own)
        try:
            yield
        except BaseException:
            if getattr(vae, "dtype", None) != dtype:  # upcast, then interrupted
                vae.to(dtype=dtype)  # type: ignore[union-attr]
            raise
        finally:
            self._random = _random_state()
            _set_random(random)
            self._put_back(processors)

    def _found(self) -> dict[str, dict[str, Any]]:
        """Attention processors of each network; pipelines with perturbed attention exchange them."""
        return {
            name: dict(found)
            for name, network in networks_of(self._pipe).items()
            if isinstance(found := getattr(network, "attn_processors", None), dict)
        }

    def _put_back(self, before: dict[str, dict[str, Any]]) -> None:
        after = self._found()
        self._processors = {}
        for name, wanted in before.items():
            own = after[name]
            if any(own[place] is not wanted[place] for place in wanted):
                self._processors[name] = own
                _set_processors(self._pipe.__dict__[name], wanted)


def _set_processors(network: Any, processors: dict[str, Any]) -> None:
    network.set_attn_processor(dict(processors))  # it empties the mapping that it is given


def _random_state() -> tuple[Tensor, list[Tensor]]:
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cards


def _set_random(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
