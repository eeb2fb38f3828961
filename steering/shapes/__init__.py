"""The embedded world of shapes: prompts, pictures, an exact judge and four small trained models.

>>> scene = parse("two red rings left of a cross")
>>> pictures = render([scene] * 4, seed=0)
>>> verify(pictures, ["two red rings left of a cross"] * 4).tolist()
[True, True, True, True]
>>> verify(pictures, ["two red rings right of a cross"] * 4).any().item()
False

Shapes that move, with prompts of their own:

>>> videos = render_motion([parse_motion("a red ring moving left slowly")] * 2, seed=0)
>>> verify_motion(videos, ["a red ring moving left slowly"] * 2).tolist()
[True, True]
>>> verify_motion(videos, ["a red ring moving up"] * 2).any().item()
False

Weights, their figures and the recommended arguments are described in `MODEL_CARD.md`.
"""

from steering.shapes.files import folder, load_clip, prompts
from steering.shapes.grammar import Group, Relation, Scene, kind, parse
from steering.shapes.motion import Mover, Movie, parse_motion
from steering.shapes.motion_render import render_motion
from steering.shapes.motion_verify import judge_motion, verify_motion
from steering.shapes.render import render
from steering.shapes.verify import Seen, see, verify

__all__ = [
    "Group",
    "Mover",
    "Movie",
    "Relation",
    "Scene",
    "Seen",
    "folder",
    "judge_motion",
    "kind",
    "load_clip",
    "parse",
    "parse_motion",
    "prompts",
    "render",
    "render_motion",
    "see",
    "verify",
    "verify_motion",
]
