"""Random numbers as a pure function of (seed, prompt key, purpose, draw id, step).

Counter-based (Philox 4x64, Salmon et al. 2011), so that no number depends on what was drawn before
it, on the device, or on how work was batched. Numbers are made on the CPU and moved.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import MT19937, Generator, Philox, SeedSequence
from torch import Tensor

from steering.transfer import buffer_for, to_device

_STATE_START, _STATE_WORDS = 24, 624  # where torch keeps a Mersenne Twister's words, in bytes


def prompt_keys(prompts: Sequence[str], ids: Sequence[Hashable] | None = None) -> list[str]:
    """Key of each prompt: its given id, else its text and how often it came before.

    Raises:
        ValueError: the ids are not one a prompt, or not distinct.
    """
    if ids is not None:
        keys = [f"id:{i}" for i in ids]
        if len(keys) != len(prompts) or len(set(keys)) != len(keys):
            raise ValueError(
                f"need one distinct id a prompt: {len(prompts)} prompts, {len(keys)} ids, "
                f"{len(set(keys))} distinct"
            )
        return keys
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        keys.append(f"text:{seen[prompt]}:{prompt}")
        seen[prompt] += 1
    return keys


def copy_key(key: str, copy: int) -> str:
    """Key of the ``copy``-th independent search for one prompt; the first has the prompt's own."""
    return key if copy == 0 else f"{key}\x1fimage {copy}"


def seeded_generator(seed: int) -> torch.Generator:
    """A CPU generator that keeps all 64 bits of a seed, for code of others that asks for one.

    ``manual_seed`` keeps 32 of them on a CPU; here the whole state of the Mersenne Twister is drawn
    from the seed (numpy's SeedSequence) and put where torch keeps it.

    Raises:
        RuntimeError: this version of torch keeps its state elsewhere.
    """
    probe = 5
    generator = torch.Generator().manual_seed(probe)
    state = generator.get_state()
    words = state[_STATE_START : _STATE_START + 8 * _STATE_WORDS].view(torch.int64)
    if int(words[0]) != probe:  # a Mersenne Twister's first word is its seed
        raise RuntimeError(f"torch {torch.__version__} keeps a generator's state in another layout")
    key = MT19937(SeedSequence(seed)).state["state"]["key"]
    words.copy_(torch.from_numpy(key.astype(np.int64)))
    return generator.set_state(state)


class Streams:
    """The random streams of one search.

    Args:
        seed: seed of the run.
        prompt_key: key of the prompt, see :func:`prompt_keys`.
    """

    def __init__(self, seed: int, prompt_key: str) -> None:
        self.seed = seed
        self.prompt_key = prompt_key
        self._philox = Philox(key=0)
        self._generator = Generator(self._philox)
        self._start: Any = self._philox.state  # nothing drawn, nothing buffered
        self._keys: dict[str, int] = {}
        self._used: set[tuple[str, int, int]] = set()

    def normal(
        self,
        purpose: str,
        draws: Sequence[int],
        step: int,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Standard normal rows, float32 ``(len(draws), *shape)``.

        Raises:
            RuntimeError: a (purpose, draw id, step) is asked for twice in one search.
        """
        out = buffer_for((len(draws), *shape), torch.device(device))
        self.fill(out.numpy(), purpose, draws, step)
        return to_device(out, device)

    def fill(self, out: np.ndarray, purpose: str, draws: Sequence[int], step: int) -> None:
        """Write standard normal rows into ``out (len(draws), *shape)``, float32 and contiguous.

        Raises:
            RuntimeError: a (purpose, draw id, step) is asked for twice in one search.
        """
        flat = out.reshape(len(draws), math.prod(out.shape[1:]))
        for row, draw in zip(flat, draws, strict=True):
            self._seek(purpose, draw, step)(out=row, dtype=np.float32)

    def uniform(self, purpose: str, draw: int, step: int, count: int) -> Tensor:
        """Uniforms on [0, 1), float64 ``(count,)`` on the CPU.

        Raises:
            RuntimeError: a (purpose, draw id, step) is asked for twice in one search.
        """
        self._seek(purpose, draw, step)
        return torch.from_numpy(self._generator.random(count))

    def integer(self, purpose: str, draw: int, step: int) -> int:
        """A seed below 2^63 for a random generator of another library."""
        self._seek(purpose, draw, step)
        return int(self._generator.integers(2**63 - 1))

    def forget(self, purpose: str, draws: Sequence[int], step: int) -> None:
        """Take these numbers for unused again, where a call that drew them has failed."""
        self._used -= {(purpose, draw, step) for draw in draws}

    def _seek(self, purpose: str, draw: int, step: int) -> Callable[..., object]:
        """Move the generator to the start of one stream; returns its normal sampler."""
        address = (purpose, draw, step)
        if address in self._used:
            raise RuntimeError(
                f"random numbers for purpose {purpose!r}, draw {draw}, step {step} were already used "
                "in this search; draw ids must be serials that are never reused"
            )
        self._used.add(address)
        at = self._start["state"]
        at["key"][:] = (self._key(purpose), draw)
        at["counter"][-1] = step  # the top word: streams cannot run into each other
        self._philox.state = self._start
        return self._generator.standard_normal

    def _key(self, purpose: str) -> int:
        """64-bit hash of seed, prompt and purpose."""
        if purpose not in self._keys:
            text = f"{self.seed}\x1f{self.prompt_key}\x1f{purpose}".encode()
            digest = hashlib.blake2b(text, digest_size=8).digest()
            self._keys[purpose] = int.from_bytes(digest, "little")
        return self._keys[purpose]
