"""The engine: many searches at once, their rows fused into full batches.

It is the only caller of denoiser, decoder and reward, so it alone counts. Each turn it collects what
the live searches ask for, packs rows of all of them (other prompts, other times) into micro-batches,
runs them, and hands the results back. A finished search makes room for the next prompt.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steering.batching import Packer, Stopwatch, charge
from steering.calls import Calls
from steering.cost import Usage
from steering.live import Job, JobResult, Live, Report, new_problem
from steering.model import Abilities, Meaning, Model
from steering.requests import Denoise, Move, Render, Score
from steering.reward import Reward
from steering.rollout import Carry
from steering.search import Needs, Search
from steering.stepping import Interrupted, OnStep


class MissingAbility(ValueError):
    """A search needs what the model or the reward cannot do."""


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told after each turn.

    Attributes:
        finished: prompts done.
        live: searches in flight.
        usage: spent so far by the whole run.
        best: best total reward of the last finished prompt, or None.
    """

    finished: int
    live: int
    usage: Usage
    best: float | None


class Engine:
    """Runs searches against one model and one reward.

    Args:
        model: denoiser and decoder.
        reward: what is searched.
        held_out: rewards by name that judge the chosen candidates and are never searched on.
        batch_size: most rows a model call; halved when memory runs out. None: 16 on a CPU, 32 else.
        deterministic: pad every call to ``bucket`` rows, pin the threads, and switch off what makes a
            row depend on its place in the batch (TF32; in half precision cuDNN, too), so that
            results are bit-identical for any packing, process and order on one device and version.
            Nothing is promised across devices, library versions, or memory formats other than NCHW.
        bucket: rows of every call in deterministic mode.
        threads: CPU threads in deterministic mode.
        non_finite: what a NaN or infinite reward means: ``"error"``, or ``"zero_weight"``: minus
            infinity, so that the candidate is never chosen.
        on_progress: called after each turn.
        on_step: told of each step of each search.
        thumbnails: longer side in pixels of small copies to keep of all that is scored, in
            ``result.trace.snapshots``; None keeps none.
    """

    def __init__(
        self,
        model: Model,
        reward: Reward,
        *,
        held_out: Mapping[str, Reward] | None = None,
        batch_size: int | None = None,
        deterministic: bool = False,
        bucket: int = 16,
        threads: int = 1,
        non_finite: str = "error",
        on_progress: Callable[[Progress], None] | None = None,
        thumbnails: int | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        if thumbnails is not None and thumbnails < 1:
            raise ValueError(f"thumbnails must be at least 1 pixel or None, got {thumbnails}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")
        if bucket < 1:
            raise ValueError(f"bucket must be at least 1 row, got {bucket}")
        if reward.name in (held_out or {}):
            raise ValueError(
                f"the held-out reward {reward.name!r} goes by the name of the searched one; give it "
                "another key in held_out"
            )
        judged = [name for name, judge in (held_out or {}).items() if _ranked(judge)]
        if judged:
            raise ValueError(
                f"the held-out reward {judged[0]!r} ranks candidates among each other and says nothing "
                "of one alone; hold out its members"
            )
        if non_finite not in ("error", "zero_weight"):
            raise ValueError(f"non_finite must be 'error' or 'zero_weight', got {non_finite!r}")
        self.model, self.reward, self.held_out = model, reward, dict(held_out or {})
        self.deterministic, self.threads = deterministic, threads
        if hasattr(model, "fix_batch"):
            model.fix_batch(deterministic)
        cap = batch_size or (16 if model.device.type == "cpu" else 32)
        self.packer = Packer(cap, bucket if deterministic else None, self._shrunk)
        self.stopwatch = Stopwatch(model.device)
        self.on_progress, self.on_step = on_progress, on_step
        self.usage = Usage()
        self._calls = Calls(self, non_finite, thumbnails)
        self._live: list[Live] = []
        self._served = 0.0  # seconds of this turn that are charged already

    def check(self, needs: Needs, search: str) -> None:
        """Refuse a search that needs what is missing, before anything runs.

        Raises:
            MissingAbility: names the search, the ability, and who lacks it.
        """
        check_abilities(needs, search, self.model.abilities, self.reward)

    def run(self, jobs: Iterable[Job]) -> Iterator[JobResult]:
        """Run the jobs; yields each result as it finishes, failed ones included.

        Raises:
            MissingAbility: before anything runs.
            BudgetTooSmall: before anything runs.
        """
        queue = deque(jobs)
        for job in queue:
            check_search(job.search, self.model.abilities, self.reward)
            job.search.plan(new_problem(job, self.model, self.reward.calls_per_row).facts)
        finished = 0
        try:
            while queue or self._live:
                for result in self._turn(queue):
                    finished += 1
                    yield result
                    self._progress(finished, result)
                self._progress(finished, None)
        finally:
            self._live.clear()

    def _turn(self, queue: deque[Job]) -> list[JobResult]:
        """Admit, serve everything that is asked for, and collect what finished."""
        with torch.no_grad(), self._backend():
            start, self._served = time.perf_counter(), 0.0
            self._admit(queue)
            self._move()
            asked = [live for live in self._live if live.request is not None]
            rows = [(live.usage, _rows(live.request)) for live in asked]
            for kind in (Denoise, Carry, Score, Render, Report):
                waiting = [live for live in asked if type(live.request) is kind]
                if waiting:
                    self._serve(waiting)
                    self._move()
            self.stopwatch.settle(wait=not self._live)
            charge(rows, "seconds", time.perf_counter() - start - self._served)
        done = [live for live in self._live if live.result is not None]
        self._live = [live for live in self._live if live.result is None]
        if done:
            self.stopwatch.settle(wait=True)
        return [self._account(live.result) for live in done if live.result is not None]

    def _admit(self, queue: deque[Job]) -> None:
        """Start searches until the rows that wait fill a call."""
        size = self.packer.bucket or self.packer.cap
        while queue and sum(_rows(live.request) for live in self._live) < size:
            job = queue.popleft()
            problem = new_problem(job, self.model, self.reward.calls_per_row)
            rewards = {self.reward.name: self.reward}
            live = Live(job, problem, self.model, rewards, self.held_out, self.on_step)
            live.advance()
            self._live.append(live)

    def _move(self) -> None:
        """Make the steps that are asked for, until every search waits for a model."""
        while waiting := [live for live in self._live if isinstance(live.request, Move)]:
            self._serve(waiting)

    def _serve(self, waiting: Sequence[Live]) -> None:
        """Answer requests of one kind; a failure in a fused call is traced to whose it is."""
        before = [live.usage.to_dict() for live in waiting]
        start = time.perf_counter()
        try:
            answers = self._calls.answer(waiting)
        except Exception as error:  # noqa: BLE001 - rewards and models may raise anything
            if len(waiting) == 1 or isinstance(error, Interrupted):
                for live in waiting:
                    live.fail(error)
                return
            for live, usage in zip(waiting, before, strict=True):
                # what is done again for a neighbour's sake is not theirs
                live.usage.take_back(Usage(**usage))
                self._serve([live])
            return
        elapsed = time.perf_counter() - start
        self._served += elapsed  # charged at once, so that a search knows before it goes on
        charge([(live.usage, _rows(live.request)) for live in waiting], "seconds", elapsed)
        for live, answer in zip(waiting, answers, strict=True):
            if isinstance(answer, Exception):
                live.fail(answer)
            else:
                live.advance(answer)

    def _account(self, result: JobResult) -> JobResult:
        self.usage.add(result.usage)
        return result

    def _progress(self, finished: int, result: JobResult | None) -> None:
        if self.on_progress is None:
            return
        usage = Usage()
        usage.add(self.usage)
        for live in self._live:
            usage.add(live.usage)
        best = None
        if result is not None and result.outcome is not None:
            best = float(result.outcome.scores.total.max())
        self.on_progress(Progress(finished, len(self._live), usage, best))

    def _shrunk(self, kind: str, before: int, after: int) -> None:
        for live in self._live:
            live.problem.trace.record(event="out of memory", call=kind, rows=before, retry=after)

    @contextlib.contextmanager
    def _backend(self) -> Iterator[None]:
        """In deterministic mode, the settings under which a row does not depend on its batch."""
        if not self.deterministic:
            yield
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.enabled
        matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
        cudnn.enabled = cudnn.enabled and self.model.dtype == torch.float32
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.enabled = before


def check_abilities(needs: Needs, search: str, abilities: Abilities, reward: Reward) -> None:
    """Refuse a search that needs what the model or the reward cannot do.

    Raises:
        MissingAbility: names the search, the ability and who lacks it.
    """
    lacking = [
        (needs.denoises and not abilities.denoises, "to denoise row by row", "the model"),
        (needs.gradients and not abilities.gradients, "gradients through the decoder", "the model"),
        (
            needs.gradients and not reward.differentiable,
            "a differentiable reward",
            _undifferentiable(reward),
        ),
        (
            needs.density and _ranked(reward),
            "a fixed target",
            f"the reward {reward.name!r}, which ranks candidates among each other,",
        ),
        (
            needs.embeddings and not getattr(reward, "embeds", False),
            "a reward that embeds pictures",
            f"the reward {reward.name!r}",
        ),
        (needs.time_per_row and not abilities.time_per_row, "a time per row", "the model"),
        (needs.any_order and not abilities.any_order, "times in any order", "the model"),
        (needs.any_rows and not abilities.any_rows, "any number of rows", "the model"),
        (
            needs.posterior_mean and abilities.meaning is not Meaning.POSTERIOR_MEAN,
            "a denoiser that predicts the posterior mean (transition=Renoise() needs none)",
            f"the model (its x_0 is a {abilities.meaning.value})",
        ),
    ]
    for missing, what, who in lacking:
        if missing:
            why = f": {abilities.why}" if abilities.why and who.startswith("the model") else ""
            raise MissingAbility(f"{search} needs {what}, which {who} does not offer{why}")


def check_search(search: Search, abilities: Abilities, reward: Reward) -> None:
    """As :func:`check_abilities`; and a search that cannot compare by ranks is refused such a reward.

    Raises:
        MissingAbility: names the search, the ability and who lacks it.
    """
    name = type(search).__name__
    check_abilities(search.needs, name, abilities, reward)
    if _ranked(reward) and not search.ranks:
        raise MissingAbility(
            f"{name} needs a score of each candidate alone, which the reward {reward.name!r} does not "
            "offer: it ranks candidates among each other; use WeightedSum, or a search over noise"
        )


def _ranked(reward: Reward) -> bool:
    return getattr(reward, "ranked", None) is not None


def _undifferentiable(reward: Reward) -> str:
    """A reward without gradient by name, and which of its members are to blame."""
    members: Mapping[str, Reward] = getattr(reward, "searched", {})
    lacking = [name for name, member in members.items() if not member.differentiable]
    named = f", for want of {', '.join(map(repr, lacking))}," if lacking else ""
    return f"the reward {reward.name!r}{named}"


def _rows(request: Any) -> int:
    kind = type(request)
    if kind is Denoise or kind is Carry:
        return int(request.x_t.shape[0])  # a tensor's len() is slow
    if kind is Move:
        return len(request)
    return 0 if request is None else int(request.x_0.shape[0])
