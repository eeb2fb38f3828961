"""A world of videos in which every answer is known: a chunk is one frame, a number."""

import torch

from samplers import ChunkLevel, TreeOfFrames
from steering.chunks import Extended, Prefix
from steering.cost import Cost
from steering.streams import Streams


def number(seed):
    """The frame that a seed makes, in [0, 1)."""
    return (seed % 10007) / 10007


class Numbers:
    """Videos of numbers; a chunk costs 10 denoiser calls, and a decode where frames are wanted."""

    def __init__(self, chunks=None, of=number):
        self.chunks, self.of, self.calls = chunks, of, []

    def cost(self, chunk, *, frames):
        return Cost(nfe=10, decodes=int(frames))

    def extend(self, prefixes, items, seeds, *, frames):
        self.calls.append(len(prefixes))
        made = []
        for prefix, seed in zip(prefixes, seeds, strict=True):
            new = torch.tensor([self.of(seed)], dtype=torch.float64)
            latents = new if prefix.latents is None else torch.cat([prefix.latents, new])
            parts = (latents[:, None, None, None].expand(-1, 3, 2, 2),) if frames else ()
            made.append(Prefix(prefix.chunks + 1, latents, parts))
        return Extended(made, [self.cost(0, frames=frames)] * len(made))


class Of:
    """A verifier by a function of the frames ``(B, F)``."""

    differentiable, calls_per_row = False, 1

    def __init__(self, name, function):
        self.name, self.function, self.rows = name, function, 0

    def prepare(self, item):
        return item.prompt

    def __call__(self, media, features):
        assert len(features) == len(media)
        self.rows += len(media)
        return self.function(media.mean((2, 3, 4)))


def total():
    return Of("total", lambda frames: frames.sum(1))


def tree(branch, keep, generator=None, verifiers=None, **options):
    judge = verifiers or total()
    levels = [ChunkLevel(judge, b, k) for b, k in zip(branch, keep, strict=True)]
    return TreeOfFrames(generator or Numbers(), levels, **options)


def seeds(prompt, count, level, first, seed=0, start=0):
    streams = Streams(seed, f"text:0:{prompt}")
    return [streams.integer("chunk", first + i, start + level) for i in range(count)]
