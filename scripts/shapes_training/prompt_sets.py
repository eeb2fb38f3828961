"""The fixed prompt sets of the world of shapes, drawn once from a seed."""

import random
from pathlib import Path

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


def write_prompt_sets(folder: Path) -> None:
    """Writes easy.txt and hard.txt."""
    for name, parts in (("easy", EASY), ("hard", HARD)):
        text = "\n".join(draw_prompts(parts)) + "\n"
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
