"""Entry point of ``steer``."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from steering.command.options import PipelineOptions, names, nearest, resolve_names
from steering.live import SearchFailed
from steering.report import SteeringFailed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from steering.command.calibrate import calibrate
    from steering.command.compare import check_samplers, compare, report
    from steering.command.demo import demo
    from steering.command.generate import RewardFacts, check_early, generate, plan
    from steering.command.repair import repair

    actions: dict[str, Callable[..., int]] = {
        "generate": generate,
        "repair": repair,
        "compare": compare,
        "report": report,
        "plan": plan,
        "calibrate": calibrate,
        "demo": demo,
        "list": list_configs,
    }
    parser = ArgumentParser(prog="steer", exit_on_error=False, description=__doc__)
    commands = parser.add_subcommands(dest="command")
    for name, action in actions.items():
        sub = ArgumentParser(exit_on_error=False, description=(action.__doc__ or "").split("\n")[0])
        sub.add_argument("--config", action="config", help="a YAML file with any of these options")
        sub.add_function_arguments(action, sub_configs=True)
        commands.add_subcommand(name, sub)
    try:
        options = parser.parse_args(resolve_names(argv))
        wanted = options.get(options.command)
        if options.command in ("generate", "repair", "compare"):
            pipeline = PipelineOptions(
                **{k: v for k, v in vars(wanted.pipeline).items() if not k.startswith("__")}
            )
            check_early(wanted.prompt, wanted.prompts_file, pipeline, Path(str(wanted.output)))
            if options.command == "compare":
                check_samplers(wanted, pipeline)
        facts = RewardFacts.of(wanted.pop("reward")) if options.command == "plan" else None
        chosen = parser.instantiate(options)
        arguments = dict(chosen[chosen.command])
        arguments.pop("config", None)
        if facts is not None:
            arguments["reward"] = facts
        return int(actions[chosen.command](**arguments) or 0)
    except ArgumentError as error:
        action = actions.get(argv[0] if argv else "", generate)
        print(f"steer: {explain(str(error), action)}", file=sys.stderr)
        return 2
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
    ) as error:  # refusals, missing files, weights
        print(f"steer: {error}", file=sys.stderr)
        return 2
    except (SearchFailed, SteeringFailed) as error:  # its own message names the prompt
        print(f"steer: {error}", file=sys.stderr)
        return 1


def list_configs() -> int:
    """List the pipelines, samplers, rewards and planners that are known by name."""
    for group in ("pipeline", "sampler", "reward", "planner"):
        print(f"{group}: {', '.join(names(group))}")
    return 0


def explain(message: str, action: Callable[..., int]) -> str:
    """An error of the option parser with the nearest right option added."""
    unknown = re.search(
        r"[Oo]ption '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)", message
    )
    if unknown is None:
        return message
    word = next(filter(None, unknown.groups()))
    known = _known_options(message, action)
    for part in dict.fromkeys((word.split(".")[-1], word.split(".")[0])):
        hint = nearest(part, known)
        if hint:
            return message + hint
    return f"{message}; known are {', '.join(known)}"


def _known_options(message: str, action: Callable[..., int]) -> list[str]:
    """Options that would have been right there: those of the class named, else the command's."""
    import importlib
    import inspect

    target: Any = action
    where = re.search(r"class_path '([\w.]+)'", message)
    if where is not None:
        module, _, name = where.group(1).rpartition(".")
        target = getattr(importlib.import_module(module), name)
    return list(inspect.signature(target).parameters)


if __name__ == "__main__":
    sys.exit(main())
