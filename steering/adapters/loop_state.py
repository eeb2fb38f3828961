"""What a suspended call keeps to itself: random numbers, attention processors, an upcast autoencoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steering.adapters.capture import networks_of
from steering.adapters.processors import Processors, processors_of, put_back


class OwnState:
    """Global states that a call changes while it runs, put back whenever it is suspended.

    Args:
        pipe: the pipeline that is called.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._random = _random_state()
        self._processors: Processors = {}
        self._exchanges = True  # until a turn shows that the call leaves processors alone

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The call's own states; the surroundings' come back at the end."""
        networks = networks_of(self._pipe) if self._exchanges else {}
        random, processors = _random_state(), processors_of(networks)
        vae = getattr(self._pipe, "vae", None)
        dtype = getattr(vae, "dtype", None)
        _set_random(self._random)
        put_back(networks, self._processors)
        try:
            yield
        except BaseException:
            if getattr(vae, "dtype", None) != dtype:  # upcast, then interrupted
                vae.to(dtype=dtype)  # type: ignore[union-attr]
            raise
        finally:
            self._random = _random_state()
            _set_random(random)
            self._processors = put_back(networks, processors)
            self._exchanges = bool(self._processors)


def _random_state() -> tuple[Tensor, list[Tensor]]:
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cards


def _set_random(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
