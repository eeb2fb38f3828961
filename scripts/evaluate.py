"""Evaluate folders of pictures, or runs made for it: tables and figures with intervals.

    python scripts/evaluate.py outputs/base outputs/fk --reference real/ --features shapes-clip \
        --clip shapes-clip --reward shapes-verifier --output outputs/evaluation
    python scripts/evaluate.py --clip shapes-clip -- --pipeline shapes-sd --sampler fk \
        --reward shapes-clip --prompts-file shapes:hard
    accelerate launch scripts/evaluate.py outputs/fk ...      # batches are divided, results equal

What follows ``--`` is a command line of ``steer generate``; its pictures are thrown away unless it has
an ``--output``. Prompts are those that ``steer generate`` wrote in the PNG files, or come from
``--prompts``.
docs/evaluation.md says what every metric is and needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from evaluation.inputs import read_run, run_names
from evaluation.live import generated, split
from evaluation.study import study
from evaluation.tables import as_markdown, write_tables
from evaluation.wanted import check_choice, choose
from jsonargparse import ArgumentParser

import steering

_PACKAGES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "torch_fidelity",
    "open_clip_torch",
    "transformers",
)


@dataclass(frozen=True)
class Choice:
    """What to measure, and how.

    Attributes:
        folders: of generated pictures, with all subfolders; the first is what others are compared with.
        reference: folder of real pictures, or statistics saved with save_statistics (.safetensors).
        metrics: names of docs/evaluation.md; none given: all that the other options ask for.
        reward: rewards by configuration name, YAML file or class path.
        prompts: file of prompts instead of those in the PNG files: text with one prompt a line in the
            order of the sorted pictures, JSON list likewise, or JSON object from file name to prompt.
        kinds: file of kinds by prompt: JSON object, or GenEval's JSON lines with prompt and tag.
        clip: CLIP model of clip-score and cmmd: "shapes-clip" (embedded), "NAME:TAG" of open_clip such
            as "ViT-L-14:openai", a hub id of transformers, "hf-hub:" and a hub id of open_clip, or a
            folder; null for no CLIP score.
        features: what sets are compared by: "inception", "vgg16", either with ":FILE" for local
            weights, or any name that clip takes (Kynkäänniemi et al. 2022, arXiv 2203.06026).
        lpips: backbone of LPIPS: alex, vgg or squeeze.
        save_statistics: .safetensors file to write the reference's statistics to.
        resamples: of the bootstrap.
        fid_resamples: of FID's.
        batch: pictures a forward pass.
        device: where the models run; "cuda" takes one device a process.
        output: folder to write metrics.json, metrics.csv, metrics.md and figures to.
    """

    folders: tuple[str, ...] = ()
    reference: str | None = None
    metrics: tuple[str, ...] = ()
    reward: tuple[str, ...] = ()
    prompts: str | None = None
    kinds: str | None = None
    clip: str | None = "openai/clip-vit-large-patch14"
    features: tuple[str, ...] = ("inception",)
    lpips: str = "alex"
    save_statistics: str | None = None
    resamples: int = 1000
    fid_resamples: int = 100
    batch: int = 32
    device: str = "cpu"
    output: str = "outputs/evaluation"


def evaluate(choice: Choice) -> dict[str, Any]:
    """Measure, and write the tables and figures.

    Args:
        choice: what.

    Returns:
        What metrics.json holds: ``{"meta", "rows", "differences", "pictures"}``.

    Raises:
        OSError, ValueError, ModuleNotFoundError: inputs that do not fit, models that cannot be had.
    """
    check_choice(choice)
    state = _processes(choice)
    names = run_names(choice.folders)
    wanted = choose(choice)
    runs = [
        read_run(
            folder,
            name,
            prompts=choice.prompts,
            kinds=choice.kinds,
            with_prompts=wanted.with_prompts,
        )
        for folder, name in zip(choice.folders, names, strict=True)
    ]
    found = study(runs, wanted, choice, state)
    meta = {
        "versions": _versions(),
        "folders": list(choice.folders),
        "reference": choice.reference,
        "device": choice.device,
        "batch": choice.batch,
        "resamples": choice.resamples,
        "fid_resamples": choice.fid_resamples,
    }
    result = {"meta": meta | found.pop("meta"), **found}
    if state.is_main_process:
        from evaluation.figures import draw_figures

        target = Path(choice.output).expanduser()
        write_tables(result, target)
        if result["rows"]:
            draw_figures(result, target)
    state.wait_for_everyone()
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; what is wrong with the input is said in one line, exit status 1."""
    words, commands = split(sys.argv[1:] if arguments is None else list(arguments))
    parser = _parser()
    words = [word if not word.startswith("--") else _underscored(word) for word in words]
    options = vars(parser.parse_args(words))
    choice = Choice(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    try:
        check_choice(choice, live=len(commands))
        state = _processes(choice)
        with generated(commands, state) as folders:
            choice = Choice(**(vars(choice) | {"folders": (*choice.folders, *folders)}))
            result = evaluate(choice)
    except (OSError, ValueError, TypeError, ModuleNotFoundError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1
    if state.is_main_process:
        print(as_markdown(result))
        print(f"written to {choice.output}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", default=[], help=_help("folders"))
    defaults = Choice()
    for field in fields(Choice):
        if field.name == "folders":
            continue
        default = getattr(defaults, field.name)
        several = isinstance(default, tuple)
        words: dict[str, Any] = {"nargs": "+"} if several else {}
        kind = str if several else str | None if default is None or field.name == "clip" else None
        parser.add_argument(
            f"--{field.name}",
            type=kind or type(default),
            default=list(default) if several else default,
            help=_help(field.name),
            **words,
        )
    return parser


def _underscored(word: str) -> str:
    """``--save-statistics`` as ``--save_statistics``."""
    name, given, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{given}{value}"


def _help(name: str) -> str:
    """What the docstring says of an option."""
    text = " ".join((Choice.__doc__ or "").split())
    after = text.split(f" {name}: ", 1)[1]
    ends = [after.find(f" {field.name}: ") for field in fields(Choice)]
    return after[: min((end for end in ends if end >= 0), default=len(after))]


def _processes(choice: Choice) -> PartialState:
    return PartialState(cpu=choice.device == "cpu")


def _versions() -> dict[str, str]:
    found = {"diffusion-steering": steering.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    raise SystemExit(main())
