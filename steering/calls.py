"""Answers to requests: the only code that calls denoiser, decoder and reward, and counts them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from steering.batching import Batch, Rows
from steering.cost import Usage
from steering.live import Live, Report
from steering.model import Carrier, FrameDecoder, Stage
from steering.moves import made
from steering.prediction import Posterior
from steering.requests import Denoise, Move, Render, Score, Scores
from steering.reward import Reward, scoring_call
from steering.rollout import Carry
from steering.snapshots import MOST_ROWS, Snapshot, shrunk
from steering.times import Time

if TYPE_CHECKING:
    from steering.engine import Engine


_NO_GRAPH = (
    "x_0 does not depend on the tensor that the gradient was asked for; set keep_graph on the Denoise "
    "or Rollout before the Score"
)


class BadReward(ValueError):
    """A reward returned the wrong shape, or a number that is none."""


class Calls:
    """Serves requests of one kind for several searches at once.

    Args:
        engine: owner of model, rewards, packer and stopwatch.
        non_finite: ``"error"`` or ``"zero_weight"``, see :class:`steering.engine.Engine`.
        thumbnails: side of small copies to keep of what is scored, or None.
    """

    def __init__(self, engine: Engine, non_finite: str, thumbnails: int | None = None) -> None:
        self._model = engine.model
        self._reward = engine.reward
        self._held_out = engine.held_out
        self._packer = engine.packer
        self._stopwatch = engine.stopwatch
        self._zero_weight = non_finite == "zero_weight"
        self._thumbnails = thumbnails

    def answer(self, waiting: Sequence[Live]) -> list[Any]:
        """Answers in order; an exception in place of an answer fails that search alone."""
        request = waiting[0].request
        if isinstance(request, Denoise):
            return self._grouped(waiting, lambda r: r.keep_graph, self._denoise)
        if isinstance(request, Score):
            key = lambda r: (r.stage, r.grad_to is not None)  # noqa: E731
            return self._grouped(waiting, key, self._score)
        if isinstance(request, Move):
            return made([live.request for live in waiting if isinstance(live.request, Move)])
        if isinstance(request, Carry):
            return self._grouped(waiting, lambda r: None, self._carry)
        serve = self._render if isinstance(request, Render) else self._report
        if self._packer.bucket is not None:  # unpadded calls, whose bits would depend on neighbours
            return [answer for live in waiting for answer in serve([live])]
        return self._grouped(waiting, lambda r: None, serve)

    def _grouped(
        self,
        waiting: Sequence[Live],
        key: Callable[[Any], Hashable],
        serve: Callable[[list[Live]], list[Any]],
    ) -> list[Any]:
        """Serve together what may share a call: equal options, equal conditioning shapes."""
        groups: dict[Hashable, list[int]] = {}
        for i, live in enumerate(waiting):
            signature = getattr(live.job.conditioning, "signature", None)
            groups.setdefault((key(live.request), signature), []).append(i)
        answers: list[Any] = [None] * len(waiting)
        for members in groups.values():
            for i, answer in zip(members, serve([waiting[i] for i in members]), strict=True):
                answers[i] = answer
        return answers

    # ---- denoise

    def _denoise(self, waiting: list[Live]) -> list[Posterior]:
        requests = [_denoise_request(live) for live in waiting]
        keep_graph = requests[0].keep_graph
        rows = []
        for live, request in zip(waiting, requests, strict=True):
            if keep_graph and not request.x_t.requires_grad:
                request.x_t.requires_grad_()
            n = request.x_t.shape[0]
            times = [request.time] * n if isinstance(request.time, Time) else request.time
            rows.append(Rows(request.x_t, live.usage, (times, [live.job.conditioning] * n)))
        with torch.set_grad_enabled(keep_graph):
            parts = self._packer.map("denoise", self._denoise_batch, rows)
            if keep_graph:
                parts = [
                    (*_CountBackward.apply(x_0, eps, live.usage), *variance)
                    for (x_0, eps, *variance), live in zip(parts, waiting, strict=True)
                ]
        return [Posterior(*part) for part in parts]

    def _denoise_batch(self, batch: Batch) -> tuple[Tensor, ...]:
        times, handles = batch.extras
        with self._stopwatch("denoise", batch.payers):
            posterior = self._model.denoise(batch.x, times, handles)
        passes = self._model.passes
        for usage, n in batch.payers:
            usage.nfe += n
            usage.passes += n * passes
        batch.payers[0][0].padding += batch.padding
        if posterior.variance is None:
            return posterior.x_0, posterior.eps
        return posterior.x_0, posterior.eps, posterior.variance

    # ---- whole roll-outs

    def _carry(self, waiting: list[Live]) -> list[Tensor]:
        rows = []
        for live in waiting:
            assert isinstance(live.request, Carry)
            handles = [live.job.conditioning] * len(live.request.x_t)
            extras = (handles, live.request.draws, live.request.seeds)
            rows.append(Rows(live.request.x_t, live.usage, extras))
        return [x_0 for (x_0,) in self._packer.map("denoise", self._carry_batch, rows)]

    def _carry_batch(self, batch: Batch) -> tuple[Tensor]:
        with self._stopwatch("denoise", batch.payers):
            carried = cast(Carrier, self._model).carry(batch.x, *batch.extras)
        for usage, n in batch.payers:
            usage.nfe += n * carried.calls
            usage.passes += n * carried.calls * carried.passes
        batch.payers[0][0].padding += batch.padding
        return (carried.x_0,)

    # ---- score

    def _score(self, waiting: list[Live]) -> list[Scores | Exception]:
        requests = [_score_request(live) for live in waiting]
        wants_grad, stage = requests[0].grad_to is not None, requests[0].stage
        rewards = {self._reward.name: self._reward}
        embeds = any(request.embed for request in requests)
        if embeds and wants_grad:
            raise ValueError("a Score asks for a gradient or for embeddings, not for both")
        rows = [
            self._score_rows(live, request.x_0, rewards)
            for live, request in zip(waiting, requests, strict=True)
        ]
        names: list[str] = []
        parts = self._packer.map(
            "score",
            lambda b: self._score_batch(
                b, stage, rewards, names, wants_grad, self._thumbnails, embeds=embeds
            ),
            rows,
        )
        tables = _to_host([part[0] for part in parts])
        # one number that is not finite makes the sum so
        finite = math.isfinite(float(torch.cat(tables).sum()))
        grads: list[Tensor | None] = [None] * len(waiting)
        if wants_grad:
            grads = self._backward(waiting, requests, [part[1] for part in parts])
        answers = [
            self._scores(live, names, table, grad, finite)
            for live, table, grad in zip(waiting, tables, grads, strict=True)
        ]
        if embeds:
            seen = _to_host([part[1] for part in parts])
            answers = [
                replace(a, embedding=own) if request.embed and isinstance(a, Scores) else a
                for a, own, request in zip(answers, seen, requests, strict=True)
            ]
        if self._thumbnails is not None:
            small = _to_host([part[-1] for part in parts])
            for live, scores, own in zip(waiting, answers, small, strict=True):
                self._keep(live, stage, scores, own)
        return answers

    def _keep(self, live: Live, stage: Stage, scores: Scores | Exception, small: Tensor) -> None:
        """Remember what a search had scored, as far as there is room."""
        trace = live.problem.trace
        kept = sum(len(s.rewards) for s in trace.snapshots)
        room = stage is Stage.FINAL or kept + len(small) <= MOST_ROWS
        if isinstance(scores, Scores) and room:
            trace.snapshots.append(Snapshot(len(trace.records), stage, scores.total, small.clone()))

    def _score_rows(self, live: Live, x_0: Tensor, rewards: Mapping[str, Reward]) -> Rows:
        n = x_0.shape[0]
        features = [{name: live.features[name] for name in rewards}] * n
        handles = [live.job.conditioning] * n
        return Rows(x_0.detach() if x_0.requires_grad else x_0, live.usage, (handles, features))

    def _score_batch(
        self,
        batch: Batch,
        stage: Stage,
        rewards: Mapping[str, Reward],
        names: list[str],
        wants_grad: bool,
        thumbnails: int | None = None,
        *,
        embeds: bool = False,
    ) -> tuple[Tensor, ...]:
        """Decode once, score by each reward; a table ``(B, columns)``, maybe more.

        That is, in this order: gradient or embeddings, and small copies.
        """
        handles, features = batch.extras
        x_0 = batch.x.requires_grad_() if wants_grad else batch.x
        with torch.set_grad_enabled(wants_grad):
            with self._stopwatch("decode", batch.payers):
                media = self._decoded(x_0, handles, stage, rewards, thumbnails is not None)
            with self._stopwatch("reward", batch.payers), scoring_call():
                columns: dict[str, Tensor] = {}
                for name, reward in rewards.items():
                    columns |= _columns(name, reward, media, [f[name] for f in features])
                seen = (_embedding(self._reward, media),) if embeds else ()
            total = columns[self._reward.name].sum() if wants_grad else None
        names[:] = list(columns)
        table = torch.stack([c.detach().double() for c in columns.values()], 1)
        grad: tuple[Tensor, ...] = ()
        if total is not None:
            with self._stopwatch("backward", batch.payers):
                grad = (_slope(self._reward.name, total, x_0),)
        calls = sum(reward.calls_per_row for reward in rewards.values())
        for usage, n in batch.payers:
            usage.decodes += n
            usage.reward_calls += n * calls
        batch.payers[0][0].padding += batch.padding
        small = () if thumbnails is None else (shrunk(media, thumbnails),)
        return table, *grad, *seen, *small

    def _decoded(
        self,
        x_0: Tensor,
        handles: list[Any],
        stage: Stage,
        rewards: Mapping[str, Reward],
        pictured: bool,
    ) -> Tensor:
        """Media of rows; of videos at least the frames that the rewards look at, and a pictured one."""
        looks = [getattr(reward, "looks_at", None) for reward in rewards.values()]
        if not isinstance(self._model, FrameDecoder) or None in looks:
            return self._model.decode(x_0, handles, stage)

        def all_looks(count: int) -> set[int]:
            asked = [look(count) for look in looks if look is not None]
            extra = {count // 2} if pictured else set()  # the frame of `snapshots.shrunk`
            return extra.union(*(range(count) if own is None else own for own in asked))

        return self._model.decode_frames(x_0, handles, stage, all_looks)

    def _backward(
        self, waiting: list[Live], requests: list[Score], grads: list[Tensor]
    ) -> list[Tensor | None]:
        """Carry d reward / d x_0 on to what was asked for, once through each shared graph."""
        deep = [i for i, r in enumerate(requests) if r.grad_to is not r.x_0]
        for i in deep:
            if not requests[i].x_0.requires_grad:
                raise ValueError(_NO_GRAPH)
        answers: list[Tensor | None] = list(grads)
        if not deep:
            return answers
        targets = [requests[i].grad_to for i in deep]
        payers = [(waiting[i].usage, len(requests[i].x_0)) for i in deep]
        with self._stopwatch("backward", payers):
            found = torch.autograd.grad(
                [requests[i].x_0 for i in deep],
                targets,  # type: ignore[arg-type]
                [grads[i] for i in deep],
                retain_graph=True,  # another search may still need its share of the graph
                allow_unused=True,
            )
        for i, grad in zip(deep, found, strict=True):
            if grad is None:
                raise ValueError(_NO_GRAPH)
            answers[i] = grad
        return answers

    def _scores(
        self, live: Live, names: list[str], table: Tensor, grad: Tensor | None, all_finite: bool
    ) -> Scores | Exception:
        if not all_finite and not torch.isfinite(table).all():
            finite = torch.isfinite(table).all(1)
            bad = int(torch.nonzero(~finite)[0])
            column = int(torch.nonzero(~torch.isfinite(table[bad]))[0])
            value = float(table[bad, column])
            if not self._zero_weight or value == float("inf"):
                return BadReward(
                    f"reward {names[column]!r} is {value} for candidate {bad}; mend the reward, or "
                    "pass non_finite='zero_weight' to treat such candidates as impossible"
                )
            table = table.clone()
            table[~finite, names.index(self._reward.name)] = float("-inf")
        columns = dict(zip(names, table.unbind(1), strict=True))
        ranked = getattr(self._reward, "ranked", None)
        return Scores(columns[self._reward.name], columns, grad, ranked)

    # ---- the end of a search

    def _render(self, waiting: list[Live]) -> list[list[Any]]:
        states = [_render_request(live).x_0 for live in waiting]
        handles = [
            live.job.conditioning for live, x in zip(waiting, states, strict=True) for _ in x
        ]
        payers = [(live.usage, len(x)) for live, x in zip(waiting, states, strict=True)]
        with self._stopwatch("render", payers):
            media = iter(
                self._packer.in_pieces(
                    "render",
                    torch.cat(states),
                    lambda x, first: self._model.render(x, handles[first : first + len(x)]),
                )
            )
        for usage, rows in payers:
            usage.renders += rows
        return [list(itertools.islice(media, rows)) for _, rows in payers]

    def _report(self, waiting: list[Live]) -> list[dict[str, list[float]]]:
        """Held-out rewards of finished rows; outside the budget, counted apart."""
        names: list[str] = []
        rows, apart = [], []
        for live in waiting:
            assert isinstance(live.request, Report)
            apart.append(Usage())
            given = self._score_rows(live, live.request.x_0, self._held_out)
            rows.append(Rows(given.x, apart[-1], given.extras))
        tables = self._packer.map(
            "score",
            lambda b: self._score_batch(b, Stage.FINAL, self._held_out, names, False),
            rows,
        )
        for live, spent in zip(waiting, apart, strict=True):
            live.usage.held_out_decodes += spent.decodes
            live.usage.held_out_calls += spent.reward_calls
        return [
            dict(zip(names, table.T.tolist(), strict=True))
            for table in _to_host([table for (table,) in tables])
        ]


class _CountBackward(torch.autograd.Function):
    """Identity that counts the rows through which a gradient is taken."""

    @staticmethod
    def forward(ctx: Any, x_0: Tensor, eps: Tensor, usage: Usage) -> tuple[Tensor, Tensor]:
        ctx.usage = usage
        return x_0.view_as(x_0), eps.view_as(eps)

    @staticmethod
    def backward(ctx: Any, grad_x_0: Tensor, grad_eps: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.usage.backwards += len(grad_x_0)
        return grad_x_0, grad_eps, None


def _to_host(parts: Sequence[Tensor]) -> list[Tensor]:
    """One transfer for all searches of the turn: the device is waited for once."""
    joined = torch.cat(list(parts)).cpu()
    return list(joined.split([part.shape[0] for part in parts]))


def _slope(name: str, total: Tensor, x_0: Tensor) -> Tensor:
    """Gradient of a summed reward by the clean states.

    Raises:
        BadReward: it has none, whatever it says of itself.
    """
    found = None
    if total.requires_grad:
        [found] = torch.autograd.grad(total, x_0, allow_unused=True)
    if found is None:
        raise BadReward(
            f"reward {name!r} says that it is differentiable, but its scores carry no gradient to the "
            "pictures; set differentiable = False and leave gradients out, or keep its scores attached"
        )
    return found


def _columns(called: str, reward: Reward, media: Tensor, features: list[Any]) -> dict[str, Tensor]:
    """Named columns of one reward, checked for shape; its total goes by what the caller calls it."""
    out = reward(media, features)
    columns = dict(out) if isinstance(out, Mapping) else {reward.name: out}
    for name, column in columns.items():
        shape = tuple(column.shape) if isinstance(column, Tensor) else type(column).__name__
        if shape != (len(media),):
            raise BadReward(
                f"reward {name!r} returned {shape} for {len(media)} media; it must return one number "
                f"a row, a tensor of shape ({len(media)},)"
            )
    if reward.name not in columns:
        raise BadReward(
            f"reward {reward.name!r} returned the columns {list(columns)} but none of its own name, "
            "which is the total that is searched"
        )
    return {called if name == reward.name else name: c for name, c in columns.items()}


def _embedding(reward: Any, media: Tensor) -> Tensor:
    """The reward's features of media, checked for shape, float32 ``(B, d)``."""
    with torch.no_grad():
        found: Tensor = reward.embed(media)
    if found.ndim != 2 or len(found) != len(media):
        raise BadReward(
            f"reward {reward.name!r} embedded {len(media)} media as {tuple(found.shape)}; it must "
            f"return one row of features for each, ({len(media)}, d)"
        )
    return found.float()


def _denoise_request(live: Live) -> Denoise:
    assert isinstance(live.request, Denoise)
    return live.request


def _score_request(live: Live) -> Score:
    assert isinstance(live.request, Score)
    return live.request


def _render_request(live: Live) -> Render:
    assert isinstance(live.request, Render)
    return live.request
