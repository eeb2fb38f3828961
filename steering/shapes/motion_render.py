"""Movies of moving shapes, drawn in batches by PyTorch on any device.

Shapes move along straight lines at an even pace, stay inside the picture and never touch. A movie's
background, tilts and shades are those of a picture and stay the same from frame to frame.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from steering.shapes.grammar import MAX_OBJECTS
from steering.shapes.motion import FRAMES, MAX_MOVERS, WAYS, Movie
from steering.shapes.outlines import SIZE
from steering.shapes.render import (
    GAP,
    MARGIN,
    draw_looks,
    fill_colours,
    paint,
    tabulate,
)

#: Pixels a frame, from and to, by pace.
SPEEDS = {"slowly": (1.0, 1.8), "quickly": (2.8, 3.6), None: (1.2, 3.6)}
_DRIFT = 0.15  # sideways, at most, in shares of the speed
_RADII = {1: (8.0, 11.5), 2: (7.0, 9.5)}  # by the number of movers
_ROUNDS = 2000
_CHUNK = 1024  # movies painted at once


def render_motion(
    movies: Sequence[Movie], *, seed: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Draws one random video of every movie.

    Args:
        movies: B movies, e.g. from `parse_motion`.
        seed: Fixes everything, for the same movies on the same kind of device.
        device: Where to compute.

    Returns:
        (B, 8, 3, 64, 64) float32 in [0, 1].

    Raises:
        TypeError: if an entry is not a `Movie`.
        ValueError: if there is no movie.
    """
    generator = torch.Generator(device).manual_seed(seed)
    parts = [draw_motion(movies[i : i + _CHUNK], generator) for i in range(0, len(movies), _CHUNK)]
    if not parts:
        raise ValueError("nothing to draw: the list of movies is empty")
    return torch.cat(parts)


def draw_motion(movies: Sequence[Movie], generator: torch.Generator) -> Tensor:
    """As `render_motion`, on the generator's device, of a few thousand movies at most."""
    for movie in movies:
        if not isinstance(movie, Movie):
            raise TypeError(
                f"expected a Movie, got {type(movie).__name__}: {movie!r}; use parse_motion(prompt)"
            )
    table = tabulate([movie.scene for movie in movies], generator.device)
    table = fill_colours(table, generator)
    tracks, radii = place_motion(movies, generator)
    looks = draw_looks(table, generator).repeated(FRAMES)
    frames = paint(
        table.repeated(FRAMES), tracks.flatten(0, 1), radii.repeat_interleave(FRAMES, 0), looks
    )
    return frames.unflatten(0, (len(movies), FRAMES))


def place_motion(movies: Sequence[Movie], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Finds tracks and radii such that nothing touches or leaves the picture.

    Returns:
        tracks (B, 8, 5, 2), the centre (x, y) of each object in each frame, in pixels, y downwards,
        and bounding radii (B, 5) in pixels.

    Raises:
        RuntimeError: if some movie cannot be laid out (never seen with movies of the grammar).
    """
    device = generator.device
    way, low, high, sizes = (
        torch.tensor(v, device=device) for v in zip(*map(_asked, movies), strict=True)
    )
    batch = len(movies)
    tracks = torch.zeros(batch, FRAMES, MAX_OBJECTS, 2, device=device)
    radii = torch.zeros(batch, MAX_OBJECTS, device=device)
    clock = torch.arange(FRAMES, device=device) - (FRAMES - 1) / 2
    todo = torch.arange(batch, device=device)
    for _ in range(_ROUNDS):
        draws = torch.rand(len(todo), MAX_MOVERS, 5, generator=generator, device=device)
        smallest, largest, count = sizes[todo].unbind(-1)
        r = smallest[:, None] + (largest - smallest)[:, None] * draws[..., 0]
        speed = low[todo] + (high - low)[todo] * draws[..., 1]
        ahead = way[todo] * speed[..., None]
        velocity = ahead + _DRIFT * (2 * draws[..., 2:3] - 1) * ahead.flip(-1)
        # Half of the way is on either side of the middle, so this is how far the middle may lie out.
        free = SIZE / 2 - MARGIN - r[..., None] - velocity.abs() * (FRAMES - 1) / 2
        middle = SIZE / 2 + (2 * draws[..., 3:] - 1) * free
        track = middle[:, None] + clock[None, :, None, None] * velocity[:, None]
        distance = (track[:, :, 0] - track[:, :, 1]).norm(dim=-1).amin(1)
        valid = (count < 2) | (distance >= r.sum(-1) + GAP)
        done = todo[valid]
        tracks[done, :, :MAX_MOVERS], radii[done, :MAX_MOVERS] = track[valid], r[valid]
        todo = todo[~valid]
        if len(todo) == 0:
            return tracks, radii
    raise RuntimeError(f"found no layout for {len(todo)} of {batch} movies in {_ROUNDS} rounds")


def _asked(movie: Movie) -> tuple[list, list, list, list]:
    """Ways (2, 2), least and greatest speeds (2,) and (least radius, greatest radius, movers)."""
    movers = [*movie.movers, *[movie.movers[0]] * (MAX_MOVERS - len(movie.movers))]
    ways = [[float(v) for v in WAYS.get(mover.way or "", (0, 0))] for mover in movers]
    low, high = zip(*(SPEEDS[mover.pace] for mover in movers), strict=True)
    return ways, list(low), list(high), [*_RADII[len(movie.movers)], float(len(movie.movers))]
