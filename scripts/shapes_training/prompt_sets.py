"""The fixed prompt sets of the world of shapes, drawn once from a seed."""

import random
from pathlib import Path

from steering.shapes.motion_sampling import random_movie
from steering.shapes.sampling import held_out, random_scene

SEED = 2026
# (kind, objects or None for any number, prompts). Of the first three kinds there are no more
# prompts; the other three share the rest equally.
EASY = (
    ("single", None, 7),
    ("colours", None, 56),
    ("two", None, 42),
    ("counting", None, 136),
    ("position", None, 136),
    ("attributes", None, 135),
)
MOTION = (("one", 32), ("pace", 32), ("two", 64))
HARD = (("chain", None, 90), ("relation", 2, 20), ("relation", 3, 16), ("groups", 5, 2))


def draw_prompts(parts: tuple[tuple[str, int | None, int], ...], seed: int = SEED) -> list[str]:
    """Distinct prompts by kind, at least a third of the attributes held out."""
    rng = random.Random(seed)
    result: dict[str, None] = {}
    for kind, objects, count in parts:
        chosen: dict[str, None] = {}
        while len(chosen) < count:
            scene = random_scene(kind, rng)
            fits = objects in (None, sum(group.count for group in scene.groups))
            wants_held = kind == "attributes" and 3 * len(chosen) < count
            if fits and (held_out(scene) or not wants_held):
                chosen[str(scene)] = None
        result |= chosen
    return list(result)


def draw_motion_prompts(parts: tuple[tuple[str, int], ...], seed: int = SEED) -> list[str]:
    """Distinct prompts of moving shapes, so many of each kind."""
    rng = random.Random(seed)
    result: dict[str, None] = {}
    for kind, count in parts:
        whole = len(result) + count
        while len(result) < whole:
            result[str(random_movie(kind, rng))] = None
    return list(result)


def write_prompt_sets(folder: Path) -> None:
    """Writes easy.txt, hard.txt and motion.txt."""
    sets = {
        "easy": draw_prompts(EASY),
        "hard": draw_prompts(HARD),
        "motion": draw_motion_prompts(MOTION),
    }
    for name, texts in sets.items():
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
