"""What a steered call hands over beside its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from steering.adapters import Entered, InvertedModel
from steering.cost import Usage
from steering.engine import Engine
from steering.live import Job, JobResult


@dataclass(frozen=True, eq=False)
class SteeringReport:
    """What a steered call did, beside its images.

    Attributes:
        results: one a search, in the order of the images' prompts.
        usage: everything spent, the pilot included.
        pilot: what the pilot for lambda spent; nothing if a calibration was saved.
        lam: lambda in raw reward units.
        seed: the seed that reproduces the call.
        settings: the engine's, and by which door the pipeline is entered and why, for the
            record; of an inverted loop also the rows that its networks computed so far.
    """

    results: list[JobResult]
    usage: Usage
    pilot: Usage
    lam: float
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> list[dict[str, float]]:
        """Rewards of each returned image, searched and held out."""
        return [scores for result in self.results for scores in returned_scores(result)]


@dataclass(frozen=True, eq=False)
class SteeredRun:
    """Searches ready to run.

    Attributes:
        engine: runs them.
        model: the pipeline as a denoiser.
        jobs: the searches, in the order of the images.
        lam: lambda in raw reward units.
        pilot: what finding lambda spent.
    """

    engine: Engine
    model: Entered
    jobs: list[Job]
    lam: float
    pilot: Usage

    def results(self) -> Iterator[JobResult]:
        """Run; yields each result as it finishes, failed ones included."""
        try:
            yield from self.engine.run(self.jobs)
        finally:  # networks that the user offloads are left where the pipeline's own call leaves them
            if isinstance(self.model, InvertedModel):
                self.model.close()
            self.model.pipe.maybe_free_model_hooks()

    def report(self, results: Sequence[JobResult]) -> SteeringReport:
        """The results in the order of the jobs, and what all of them spent."""
        place = {id(job): i for i, job in enumerate(self.jobs)}
        ordered = sorted(results, key=lambda r: place[id(r.job)])
        first = self.jobs[0]
        settings = {
            "deterministic": self.engine.deterministic,
            "sampler": repr(first.search),
            "door": self.model.door,
            "reason": self.model.reason,
        }
        if isinstance(self.model, InvertedModel):
            settings["rows"] = asdict(self.model.tally)
        usage = Usage()
        usage.add(self.engine.usage)
        usage.add(self.pilot)
        return SteeringReport(ordered, usage, self.pilot, self.lam, first.seed, settings)


class SteeringFailed(RuntimeError):
    """Some searches failed; the others finished and are in ``report``.

    Attributes:
        report: what was done; ``result.error`` names what went wrong with a prompt.
    """

    def __init__(self, message: str, report: SteeringReport) -> None:
        super().__init__(message)
        self.report = report


def returned_scores(result: JobResult) -> list[dict[str, float]]:
    """Rewards of each image that a search returned, searched and held out, by name."""
    if result.outcome is None:
        return []
    columns = result.outcome.scores.columns
    return [
        {name: float(column[row]) for name, column in columns.items()}
        | {name: values[place] for name, values in result.held_out.items()}
        for place, row in enumerate(result.outcome.chosen)
    ]
