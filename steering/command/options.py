"""Options of the command, found by name: ``configs/<group>/<name>.yaml``."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

#: options that take a configuration by name, and the folder it lies in
GROUPS = {
    "pipeline": "pipeline",
    "sampler": "sampler",
    "reward": "reward",
    "held_out": "reward",
    "planner": "planner",
}


#: options that take several values, one after the other
LISTS = ("samplers", "nfe", "reward_calls", "seconds", "held_out")


class UsageError(ValueError):
    """A mistake in what the user asked for; the message is all that is shown."""


@dataclass(frozen=True)
class PipelineOptions:
    """Which pipeline, and its own arguments.

    Attributes:
        model: name of an embedded model (shapes-sd, shapes-flux), hub id, or folder.
        call: the pipeline's own keyword arguments, such as num_inference_steps.
        dtype: of the weights.
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        scheduler: class name of a diffusers scheduler to put in place of the model's own.
        revision: of a hub model.
        variant: of a hub model's files, such as fp16.
    """

    model: str
    call: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = "auto"
    scheduler: str | None = None
    revision: str | None = None
    variant: str | None = None


def config_folder() -> Path:
    """Where the YAML files are: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def names(group: str) -> list[str]:
    """Names of the configurations in a group."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def find(group: str, value: str) -> str:
    """The file of a configuration given by name; anything else is returned as it came.

    Raises:
        UsageError: not a known name, file or class path; names the nearest.
    """
    path = config_folder() / group / f"{value}.yaml"
    if path.is_file():
        return str(path)
    if "." in value or "/" in value or (value.isidentifier() and value[0].isupper()):
        return value
    raise UsageError(
        f"unknown {group} {value!r}{nearest(value, names(group))}; known are {', '.join(names(group))}, "
        "a YAML file, or a class path"
    )


def nearest(value: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(value, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def resolve_names(argv: Sequence[str]) -> list[str]:
    """Command-line arguments with names replaced by files, and repeated prompts collected.

    ``--sampler fk`` becomes the file of that name; ``--pipeline`` also takes a folder or a hub id;
    ``--prompt`` may be repeated; ``--held-out`` is ``--held_out``; ``--nfe 100 200`` are two values, and
    so are ``--held-out jpeg clip``. The words that follow ``report`` are folders.
    """
    out: list[str] = []
    words = iter(argv)
    many: str | None = None  # the option whose further values may follow
    for word in words:
        option, given, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or not name:
            out.append(word if many is None else _added(many, word))
            many = "folders" if word == "report" and len(out) == 1 else many
            continue
        many = name if name in LISTS else None
        if many is not None:
            out += [_added(many, value)] if given else []
            continue
        if name not in (*GROUPS, "prompt"):
            out.append(f"--{name}{given}{value}")
            continue
        if not given:
            value = next(words, "")
        if name == "prompt":
            out.append(f"--prompt+={value}")
        elif name == "pipeline" and value not in names(name) and not value.endswith(".yaml"):
            if "/" not in value and not Path(value).is_dir():
                find(name, value)  # raises: names the nearest
            out.append(f"--pipeline.model={value}")
        else:
            out.append(f"--{name}={find(GROUPS[name], value)}")
    return out


def _added(name: str, value: str) -> str:
    """One more value of an option that takes several."""
    return f"--{name}+={find(GROUPS[name], value) if name in GROUPS else value}"


def read_prompts(prompt: Sequence[str], prompts_file: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file, one a line; ``#`` starts a comment line.

    A file may also be named ``shapes:easy`` or ``shapes:hard`` for the embedded prompt sets.

    Raises:
        UsageError: no prompt, or no such file.
    """
    found = list(prompt)
    if prompts_file is not None and str(prompts_file).startswith("shapes:"):
        from steering import shapes

        found += shapes.prompts(str(prompts_file).removeprefix("shapes:"))
    elif prompts_file is not None:
        if not prompts_file.is_file():
            raise UsageError(f"there is no prompts file {str(prompts_file)!r}")
        lines = (line.strip() for line in prompts_file.read_text(encoding="utf-8").splitlines())
        found += [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(
            "no prompts: give --prompt TEXT (repeat it for more) or --prompts_file FILE"
        )
    return found


def device_of(options: PipelineOptions, process: int = 0) -> torch.device:
    """The device of an option, one a process where there are several GPUs."""
    if options.device != "auto":
        return torch.device(options.device)
    if torch.cuda.is_available():
        return torch.device("cuda", process % torch.cuda.device_count())
    return torch.device("cpu")


def pipeline_source(model: str) -> str:
    """Folder or hub id of a model.

    Raises:
        UsageError: a folder that holds no pipeline.
    """
    if model in ("shapes-sd", "shapes-flux"):
        from steering import shapes

        return str(shapes.folder(model))
    folder = Path(model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UsageError(
            f"the folder {model!r} is no diffusers pipeline: it has no model_index.json; give the "
            "folder that pipeline.save_pretrained wrote"
        )
    if not folder.is_dir() and (
        folder.is_absolute() or model.startswith(".") or model.count("/") != 1
    ):
        raise UsageError(
            f"there is no pipeline {model!r}: not shapes-sd or shapes-flux, not a folder, and not a "
            "hub id of the form owner/name"
        )
    return model


def check_call(options: PipelineOptions) -> None:
    """Refuse arguments that the pipeline's class does not take, from its index file alone.

    Raises:
        UsageError: names the argument and the nearest right one, or an output that is no picture.
    """
    _, kind = load_scheduler(options)
    if kind is None:
        return
    known = list(inspect.signature(kind.__call__).parameters)[1:]
    for name in options.call:
        if name not in known:
            raise UsageError(f"{kind.__name__} takes no argument {name!r}{nearest(name, known)}")
    if options.call.get("output_type", "pil") != "pil":
        raise UsageError(
            f"the command writes pictures, so output_type must be 'pil', got "
            f"{options.call['output_type']!r}; use SteeredPipeline in Python for other outputs"
        )


def load_pipeline(options: PipelineOptions, device: torch.device, *, progress: bool = False) -> Any:
    """The diffusers pipeline, from safetensors only.

    Args:
        options: which.
        device: where to put it.
        progress: show diffusers' progress bars of loading.

    Raises:
        UsageError: it cannot be found, or offline mode forbids to fetch it.
    """
    import diffusers
    import transformers

    source = pipeline_source(options.model)
    if not progress:
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    extra = {k: v for k in ("revision", "variant") if (v := getattr(options, k)) is not None}
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            source, dtype=getattr(torch, options.dtype), use_safetensors=True, **extra
        )
    except OSError as error:
        raise UsageError(
            f"cannot load the pipeline {options.model!r}: {str(error).splitlines()[0]}. Fetch it with "
            "`hf download` where there is a network, and give its folder"
        ) from error
    if options.scheduler is not None:
        pipe.scheduler = _scheduler_class(options.scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_scheduler(options: PipelineOptions) -> tuple[Any, type | None]:
    """The pipeline's scheduler alone and the pipeline's class, for plans: no weights are loaded."""
    import diffusers
    from huggingface_hub import hf_hub_download

    source = pipeline_source(options.model)
    if Path(source).is_dir():
        index = Path(source) / "model_index.json"
    else:
        index = Path(hf_hub_download(source, "model_index.json", revision=options.revision))
    entry = json.loads(index.read_text())
    name = options.scheduler or (entry.get("scheduler") or [None, None])[1]
    if name is None:
        raise UsageError(
            f"the pipeline {options.model!r} has no scheduler, so it cannot be steered"
        )
    scheduler = _scheduler_class(name).from_pretrained(source, subfolder="scheduler")
    return scheduler, getattr(diffusers, entry["_class_name"], None)


def _scheduler_class(name: str) -> Any:
    import diffusers

    known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    if name not in known:
        raise UsageError(f"diffusers has no scheduler {name!r}{nearest(name, known)}")
    return getattr(diffusers, name)
