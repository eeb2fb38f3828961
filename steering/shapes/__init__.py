"""The embedded world of shapes: prompts, pictures, an exact judge and three small trained models.

>>> scene = parse("two red rings left of a cross")
>>> pictures = render([scene] * 4, seed=0)
>>> verify(pictures, ["two red rings left of a cross"] * 4).tolist()
[True, True, True, True]
>>> verify(pictures, ["two red rings right of a cross"] * 4).any().item()
False

Weights, their figures and the recommended arguments are described in `MODEL_CARD.md`.
"""

from steering.shapes.files import folder, load_clip, prompts
from steering.shapes.grammar import Group, Relation, Scene, kind, parse
from steering.shapes.render import render
from steering.shapes.verify import Seen, see, verify

__all__ = [
    "Group",
    "Relation",
    "Scene",
    "Seen",
    "folder",
    "kind",
    "load_clip",
    "parse",
    "prompts",
    "render",
    "see",
    "verify",
]
