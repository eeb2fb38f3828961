"""Trains and measures the embedded models of the world of shapes.

    python scripts/train_shapes.py vae       # first; the others need it
    python scripts/train_shapes.py sd        # or: flux, clip
    python scripts/train_shapes.py video     # by the shipped autoencoder, if --work holds none
    python scripts/train_shapes.py evaluate  # the figures of the model card
    python scripts/train_shapes.py evaluate-video
    python scripts/train_shapes.py card      # MODEL_CARD.md from those figures

    python scripts/train_shapes.py clip --seed 1 --out outputs/second --work outputs/second/work

The last trains a second, independent clip to judge by, `CLIPScore("outputs/second/shapes-clip")`.
Several commands, run in the order given, share one set of pictures. Training ends after a number of
steps or seconds and goes on from its checkpoint in --work if asked for more. `--tiny` shrinks
everything until it runs on a CPU in seconds, for tests.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works uninstalled, too

from shapes_training import (
    clip,
    diffusion,
    evaluate,
    networks,
    prompt_sets,
    vae,
    video,
    video_figures,
)
from shapes_training.card import write_card
from shapes_training.data import Pictures, make_pictures
from shapes_training.loop import Plan

_SHAPES = Path(__file__).resolve().parents[1] / "steering" / "shapes"
# Steps, peak learning rate and seconds of each model.
_PLANS = {
    "vae": (4000, 1e-3, 120),
    "sd": (7000, 1e-3, 400),
    "flux": (6500, 1e-3, 290),
    "clip": (12000, 1e-3, 200),
    "video": (8000, 1e-3, 200),
}


def main() -> None:
    """Runs the commands in turn."""
    options = _options()
    torch.set_float32_matmul_precision("high")
    size = networks.TINY if options.tiny else networks.FULL
    pictures = None
    for command in options.commands:
        if command == "prompts":
            prompt_sets.write_prompt_sets(_SHAPES / "data")
        elif command == "evaluate":
            figures = evaluate.evaluate(options.out, options.work, options.device, options.repeats)
            text = json.dumps(figures, indent=1) + "\n"
            (options.out / "card.json").write_text(text, encoding="utf-8")
        elif command == "evaluate-video":
            figures = video_figures.evaluate_video(options.out, options.work, options.device)
            text = json.dumps(figures, indent=1) + "\n"
            (options.out / "card-video.json").write_text(text, encoding="utf-8")
        elif command == "card":
            write_card(options.out / "card.json", _SHAPES / "MODEL_CARD.md")
        elif command == "video":
            vae_folder = options.work / "vae"
            if not vae_folder.is_dir():  # the shipped one
                vae_folder = _SHAPES / "weights" / "shapes-sd" / "vae"
            video.train_video(size, _plan(command, options), vae_folder, options.work, options.out)
        else:
            pictures = pictures or make_pictures(size.pictures, options.seed, options.device)
            _train(command, pictures, size, options)


def _train(name: str, pictures: Pictures, size: networks.Size, options: argparse.Namespace) -> None:
    plan = _plan(name, options)
    print(f"{name}: {len(pictures.captions)} pictures", flush=True)
    if name == "vae":
        vae.train_vae(pictures, size, plan, options.work)
    else:
        train = {"sd": diffusion.train_sd, "flux": diffusion.train_flux, "clip": clip.train_clip}
        train[name](pictures, size, plan, options.work, options.out)


def _plan(name: str, options: argparse.Namespace) -> Plan:
    steps, rate, seconds = _PLANS[name]
    return Plan(
        steps=options.steps or steps,
        learning_rate=rate,
        device=options.device,
        seconds=options.seconds or seconds,
        seed=options.seed,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = [*_PLANS, "prompts", "evaluate", "evaluate-video", "card"]
    parser.add_argument(
        "commands", nargs="+", choices=choices, metavar="command", help=", ".join(choices)
    )
    parser.add_argument("--out", type=Path, default=_SHAPES / "weights", help="model folders")
    parser.add_argument("--work", type=Path, default=Path("outputs/shapes"), help="checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="updates in all; default: as shipped")
    parser.add_argument("--seconds", type=float, help="of training each model; default: as shipped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=16, help="samples an easy prompt (evaluate)")
    parser.add_argument("--tiny", action="store_true", help="a size for tests")
    return parser.parse_args()


if __name__ == "__main__":
    main()
