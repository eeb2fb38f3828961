"""Runs the pipeline test classes of a checkout of diffusers through the doors.

    python scripts/sweep_diffusers.py ../diffusers --json docs/results/sweep.json --processes 2

Every class that makes tiny components has a process of its own, with a limit of time. Run again with the
same file, only classes that it lacks are run; ``--again`` runs those anew whose trajectory was not the
pipeline's own, ``--anew`` all that ``--only`` names.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.common import Results
from jsonargparse import ArgumentParser
from sweep.classes import found_in, load

_ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
#: Processes are forked from one that holds the libraries already.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "torch",
    "transformers",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
]


def main(args: list[str] | None = None) -> None:
    """Run the sweep."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of diffusers")
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument(
        "--only", nargs="+", default=[], help="classes whose names contain one of these"
    )
    parser.add_argument("--processes", type=int, default=1, help="classes at once")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a class")
    parser.add_argument("--again", action="store_true", help="also those that did not work")
    parser.add_argument("--anew", action="store_true", help="also those that worked")
    options = parser.parse_args(args)
    sweep(
        options.checkout.resolve(),
        options.json,
        only=options.only,
        processes=options.processes,
        timeout=options.timeout,
        again=options.again,
        anew=options.anew,
    )


def sweep(
    checkout: Path,
    path: Path,
    *,
    only: list[str],
    processes: int = 1,
    timeout: float = 120.0,
    again: bool = False,
    anew: bool = False,
) -> dict[str, int]:
    """Measure the classes that the file lacks.

    Args:
        checkout: the checkout.
        path: file of results.
        only: parts of names of classes; empty for all.
        processes: classes at once.
        timeout: seconds for a class.
        again: also run classes whose row shows no trajectory that is the pipeline's own.
        anew: also run all others.

    Returns:
        How many classes have each outcome.

    Raises:
        ValueError: the checkout has no pipeline tests, or no class is named so.
    """
    from sweep.one import works

    names = [n for n in found_in(checkout) if not only or any(part in n for part in only)]
    if not names:
        raise ValueError(f"no class of {checkout} has a name with one of {', '.join(only)}")
    os.environ.update(_ALONE)
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    results = Results(path, device="cpu", seed=0)
    kept = [row for row in results.rows if not anew and (not again or works(row))]
    done = {row["class"] for row in kept}
    wanted = [name for name in names if name not in done]
    with ThreadPoolExecutor(processes) as pool:
        jobs = {pool.submit(_apart, checkout, name, timeout): name for name in wanted}
        for job in as_completed(jobs):
            results.rows[:] = [row for row in results.rows if row["class"] != jobs[job]]
            results.add(job.result())
    counts = Counter(str(row["outcome"]) for row in results.rows)
    print(json.dumps(counts))
    return dict(counts)


def _apart(checkout: Path, name: str, timeout: float) -> dict[str, Any]:
    """The row of a class, from a process of its own."""
    started = time.monotonic()
    inlet, outlet = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_here, args=(checkout, name, outlet))
    process.start()
    outlet.close()
    row: dict[str, Any] = {"class": name, "door": None}
    try:
        if inlet.poll(timeout):
            row |= inlet.recv()
        else:
            row |= {"outcome": "too slow", "reason": f"longer than {timeout:g} s"}
    except EOFError:
        process.join()
        row |= {"outcome": "crashed", "reason": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    row["seconds"] = round(time.monotonic() - started, 1)
    return row


def _here(checkout: Path, name: str, outlet: Any) -> None:
    """Measure a class in this process and send its row."""
    import diffusers
    import torch
    from sweep.offline import stand_in
    from sweep.one import measure

    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity(50)
    torch.set_num_threads(1)
    stand_in()
    try:
        test = load(checkout, name)
    except Exception as error:  # noqa: BLE001 - whatever the import of a foreign test raises
        outlet.send({"outcome": "not built", "reason": f"{type(error).__name__}: {error}"})
        return
    outlet.send(measure(test))


if __name__ == "__main__":
    main()
