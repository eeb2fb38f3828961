"""The fixed prompt sets of the world of shapes, drawn once from a seed."""

import random
from pathlib import Path

from steering.shapes.grammar import MAX_OBJECTS
from steering.shapes.sampling import held_out, random_scene

SEED = 2026
# Prompts of each kind; the first four kinds come whole, for they have no more.
EASY = {"single": 7, "counting": 28, "colours": 56, "two": 42, "position": 130, "attributes": 249}
HARD = {"chain": 64, "relation": 52, "groups": 12}


def draw_prompts(counts: dict[str, int], seed: int = SEED) -> list[str]:
    """Distinct prompts by kind; half of the attributes are held out, all groups have 5 objects."""
    rng = random.Random(seed)
    result: dict[str, None] = {}
    for kind, count in counts.items():
        chosen: dict[str, None] = {}
        while len(chosen) < count:
            scene = random_scene(kind, rng)
            wants_held = kind == "attributes" and 2 * len(chosen) < count
            too_easy = kind == "groups" and (
                len(scene.groups) == 1 or sum(group.count for group in scene.groups) < MAX_OBJECTS
            )
            if not too_easy and (held_out(scene) or not wants_held):
                chosen[str(scene)] = None
        result |= chosen
    return list(result)


def write_prompt_sets(folder: Path) -> None:
    """Writes easy.txt and hard.txt."""
    for name, counts in (("easy", EASY), ("hard", HARD)):
        text = "\n".join(draw_prompts(counts)) + "\n"
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
