"""Benchmarks; each writes ``{"meta": {...}, "rows": [flat records]}`` to a JSON file.

    python scripts/benchmark.py exactness --json outputs/exactness.json --quick
    python scripts/benchmark.py shapes --json outputs/shapes.json --quick
    python scripts/benchmark.py overhead --json outputs/overhead.json
    python scripts/benchmark.py overhead --json outputs/fused.json --prompts 100
    python scripts/benchmark.py offload --json outputs/offload.json
    python scripts/benchmark.py pipelines --json outputs/pipelines.json
    python scripts/benchmark.py flows --json outputs/flows.json --quick
    python scripts/benchmark.py digits --json outputs/digits.json --quick
    python scripts/benchmark.py chain-laws
    python scripts/benchmark.py decoders --json outputs/decoders.json
    python scripts/benchmark.py rewards --json outputs/rewards.json --quick
    python scripts/benchmark.py trees --json outputs/trees.json
    python scripts/benchmark.py overoptimisation --json outputs/overoptimisation.json
    python scripts/benchmark.py repair --json outputs/repair.json --quick
    python scripts/benchmark.py video --json outputs/video.json

Run again with the same file, a benchmark computes only the cells that it lacks.
"""

from benchmarks import (
    chain_laws,
    decoders,
    digits,
    exactness,
    flows,
    offload,
    overhead,
    overoptimisation,
    pipelines,
    repair,
    rewards,
    shapes,
    trees,
    video,
)
from jsonargparse import ArgumentParser

# Each module has add_arguments(parser) and run(options); a further benchmark is one more entry.
COMMANDS = {
    "exactness": exactness,
    "shapes": shapes,
    "overhead": overhead,
    "offload": offload,
    "pipelines": pipelines,
    "flows": flows,
    "chain-laws": chain_laws,
    "digits": digits,
    "decoders": decoders,
    "rewards": rewards,
    "repair": repair,
    "trees": trees,
    "overoptimisation": overoptimisation,
    "video": video,
}


def main(args: list[str] | None = None) -> None:
    """Run one benchmark.

    Args:
        args: the command line without the program's name; None takes the process's own.
    """
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subcommands(dest="command")
    for name, module in COMMANDS.items():
        sub = ArgumentParser(description=module.__doc__.splitlines()[0])
        module.add_arguments(sub)
        commands.add_subcommand(name, sub)
    options = parser.parse_args(args)
    COMMANDS[options.command].run(options[options.command])


if __name__ == "__main__":
    main()
