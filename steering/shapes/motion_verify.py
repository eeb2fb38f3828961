"""The exact judge of moving shapes: does a video show its prompt, and move as it says?

It has no learned part. Every frame is read by the judge of pictures (`steering.shapes.verify.see`),
and must show exactly the shapes of the prompt and nothing else. A straight line at an even pace is
fitted to the centres of each shape by least squares over the frames. A shape moves "left" when that
line goes left by at least `LEAST` pixels a frame and sideways by at most half as much; slowly and
quickly part at `PARTING` pixels a frame; it stands still below `STILL`. No centre may be further than
`STRAY` pixels from the line, so that jumps, turns and stops are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steering.shapes.motion import WAYS, Mover, Movie, parse_motion
from steering.shapes.verify import Seen, matches, see

LEAST = 0.6
PARTING = 2.3
STILL = 0.35
STRAY = 2.0
_SIDEWAYS = 0.5
_FRAMES_NEEDED = 3  # to see a motion at all


@dataclass(frozen=True)
class Verdict:
    """What the judge says of B videos.

    Attributes:
        right: (B,) bool: every frame shows the shapes, and they move as the prompt says.
        shows: (B, F) bool: the frame shows exactly the shapes of the prompt.
        moves: (B,) bool: over the frames that show them, the shapes move as the prompt says.
        velocity: (B, 2, 2) fitted (x, y) of the movers in pixels a frame; NaN where unknown or absent.
    """

    right: Tensor
    shows: Tensor
    moves: Tensor
    velocity: Tensor


def verify_motion(videos: Tensor, prompts: Sequence[str]) -> torch.BoolTensor:
    """Judges whether each video shows exactly its prompt (see the head of this module).

    Args:
        videos: (B, F, 3, 64, 64) in [0, 1], any float type and device.
        prompts: B prompts of moving shapes.

    Returns:
        (B,) bool, on the CPU.

    Raises:
        TypeError, ValueError: for videos of another form, a different number of prompts, or a prompt
            outside the grammar.
    """
    return torch.BoolTensor(judge_motion(videos, prompts).right)


def judge_motion(videos: Tensor, prompts: Sequence[str]) -> Verdict:
    """As `verify_motion`, with what was right of each frame and of the motion."""
    if isinstance(prompts, str) or len(prompts) != len(videos):
        count = "one text" if isinstance(prompts, str) else len(prompts)
        raise ValueError(f"expected a list of {len(videos)} prompts, one a video; got {count}")
    if not isinstance(videos, Tensor) or videos.ndim != 5:
        got = tuple(videos.shape) if isinstance(videos, Tensor) else type(videos).__name__
        raise ValueError(f"expected videos (B, F, 3, 64, 64), got {got}")
    movies = [parse_motion(prompt) for prompt in prompts]
    frames = videos.shape[1]
    seen = see(videos.flatten(0, 1))
    shows = torch.zeros(len(movies), frames, dtype=torch.bool)
    moves = torch.zeros(len(movies), dtype=torch.bool)
    velocity = torch.full((len(movies), 2, 2), torch.nan, dtype=torch.float64)
    for row, movie in enumerate(movies):
        own = seen[row * frames : (row + 1) * frames]
        shows[row] = torch.tensor([matches(movie.scene, frame) for frame in own])
        moves[row], velocity[row] = _motion(movie, own, shows[row].tolist())
    return Verdict(moves & shows.all(1), shows, moves, velocity)


def _motion(
    movie: Movie, seen: Sequence[Sequence[Seen]], shows: Sequence[bool]
) -> tuple[bool, Tensor]:
    """Whether all movers move as asked, and their velocities (2, 2)."""
    velocity = torch.full((2, 2), torch.nan, dtype=torch.float64)
    times = [time for time, shown in enumerate(shows) if shown]
    if len(times) < _FRAMES_NEEDED:
        return False, velocity
    right = True
    for index, mover in enumerate(movie.movers):
        found = [next(s for s in seen[time] if _is(mover, s)) for time in times]
        right &= len({item.colour for item in found}) == 1  # one that the prompt leaves open stays
        speed, stray = _line(np.array(times), np.array([(item.x, item.y) for item in found]))
        velocity[index] = torch.from_numpy(speed)
        right &= stray <= STRAY and _as_asked(mover, speed)
    return right, velocity


def _is(mover: Mover, item: Seen) -> bool:
    group = mover.group
    return item.shape == group.shape and group.colour in (None, item.colour)


def _line(times: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Velocity (2,) of the line fitted to centres (N, 2), and the largest distance from it."""
    line = np.polynomial.polynomial.polyfit(times, centres, 1)
    error = centres - np.polynomial.polynomial.polyval(times, line).T
    return line[1], float(np.linalg.norm(error, axis=1).max())


def _as_asked(mover: Mover, velocity: np.ndarray) -> bool:
    if mover.way is None:
        return float(np.linalg.norm(velocity)) <= STILL
    way = np.array(WAYS[mover.way])
    ahead = float(velocity @ way)
    sideways = float(np.abs(velocity - ahead * way).max())
    in_pace = {"slowly": ahead < PARTING, "quickly": ahead >= PARTING, None: True}[mover.pace]
    return ahead >= LEAST and sideways <= _SIDEWAYS * ahead and in_pace
