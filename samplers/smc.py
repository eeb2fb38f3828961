"""The particle search that all particle methods are settings of: propose, weigh, resample."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from samplers.anneal import ANNEALING, AnnealingName, power
from samplers.cloud import Cloud, joined_posterior, joined_states, joined_weights, split
from samplers.ends import Branching, Ends, carried, check_ends
from samplers.funnel import sizes
from samplers.guidance import Gradient, checked
from samplers.initial import InitialNoise, Prior, Started
from samplers.potentials import Potential, PotentialName, warn_if_unsteered
from samplers.temperature import Look, Temperature, TemperatureName, temperature_of
from samplers.values import Predicted, Value
from steering.cost import Cost
from steering.model import Stage
from steering.moves import move
from steering.particles import ALL_ZERO, RESAMPLERS, UNBIASED, Weights, multinomial
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.times import TimeGrid
from steering.trace import correlations
from steering.transitions import DDIM, Gaussian, GaussianTransition, Transition

ResamplerName = Literal[
    "systematic", "multinomial", "stratified", "residual", "ssp", "single", "greedy"
]
Run = Generator[Request, Any, Any]


@dataclass(frozen=True)
class SMC(Search):
    """Sequential Monte Carlo on the path of the sampler, weighted by rewards of what is predicted.

    Targets p(x_0) exp(lambda r(x_0)), p being the law of the chain that is sampled (with guidance: of
    the guided chain): exact as the number of particles grows, whatever the potential, temperature and
    resampler, if that keeps more than one lineage (``"single"`` is exact as islands grow, ``"greedy"``
    never); its normalising constant is unbiased for any number where nothing is adaptive. Every
    published particle method is a setting of it; the named ones are its subclasses. Doucet and
    Johansen 2009 for the method; Singhal et al. 2025 (2501.06848) for its use on diffusion models.

    At each look the predicted x_0 of every particle is scored, its potential multiplies its weight,
    and the particles are resampled if that pays; log-weights are carried otherwise. A reward weighs
    the very state whose x_0 was predicted. At the end every particle is weighted by the reward of the
    finished sample, less what was applied on the way.

    Attributes:
        particles: number of particles k, over all islands.
        potential: ``"difference"``, ``"max"`` or ``"sum"`` of intermediate rewards, or ``"smooth"``:
            differences of their running average along the lineage.
        temperature: how lambda grows along the way: a name or a schedule of
            :mod:`samplers.temperature`; the finished sample counts with lambda itself.
        start: first step (0 is pure noise) at which rewards are looked at; a fraction below 1 is a
            share of the grid's steps.
        every: steps between looks, or their share of the grid.
        stop: no looks from this step on, or from this share of the grid; None: until the end.
        steps: the steps at which to look, instead of ``start``, ``every`` and ``stop``.
        ess_threshold: resample at a look if the effective sample size is below
            ``1 + ess_threshold (k - 1)``, which can happen for every k > 1; 1 resamples always.
        resampler: how; ``"single"`` keeps one lineage, ``"greedy"`` the best one.
        anneal: resample by a power of the weights, less than 1 early; what is not applied is carried.
        transition: how states move, ``"ddim"`` is DDIM(1.0); it must draw noise, or copies would never
            differ.
        ends: by what states move before the first look and after the step that follows the last:
            ``"transition"``, or ``"scheduler"``, the pipeline's own (a multistep solver, say, which may
            begin anew part-way but not branch). The target is then the law of that mixed chain.
        path: interpolant to sample along; None is the pipeline's own grid.
        value: what an intermediate state is worth: a :mod:`samplers.values` estimate.
        gradient: shift the transition along the reward's gradient; None leaves it alone.
        islands: independent groups of particles, joined at the end by their evidence.
        funnel: particles at the start per particle at the end, at equal denoiser calls.
        initial: how the initial noises are chosen: a stage of :mod:`samplers.initial`.
        returns: ``"all"`` particles with weights, one ``"draw"`` from them, or the ``"best"``.
    """

    particles: int = 4
    potential: PotentialName = "difference"
    temperature: Temperature | TemperatureName = "constant"
    start: int | float = 0
    every: int | float = 1
    stop: int | float | None = None
    steps: Sequence[int] | None = None
    ess_threshold: float = 0.5
    resampler: ResamplerName = "systematic"
    anneal: AnnealingName = "none"
    transition: Transition | Literal["ddim"] = "ddim"
    ends: Ends = "transition"
    path: SamplingPath | None = None
    value: Value | Literal["predicted"] = "predicted"
    gradient: Gradient | None = None
    islands: int = 1
    funnel: float = 1.0
    initial: InitialNoise | Literal["prior"] = "prior"
    returns: Literal["all", "draw", "best"] = "best"

    def __post_init__(self) -> None:
        for name in ("particles", "islands"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("start", "every", "stop"):
            check_step(name, getattr(self, name))
        for name, known in (
            ("potential", get_args(PotentialName)),
            ("resampler", tuple(RESAMPLERS)),
            ("anneal", tuple(ANNEALING)),
            ("returns", ("all", "draw", "best")),
            ("ends", get_args(Ends)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        temperature_of(self.temperature)
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must lie in [0, 1], got {self.ess_threshold}")
        if not self.funnel >= 1:
            raise ValueError(f"funnel must be at least 1 (start to end), got {self.funnel}")
        if self.islands > self.particles:
            raise ValueError(f"{self.particles} particles cannot make {self.islands} islands")
        if not self._transition.stochastic:
            raise ValueError(
                f"{type(self).__name__} cannot search along the deterministic {self.transition}: "
                "without noise the copies of a resampled particle would never differ; use DDIM(1.0), a "
                "FlowSDE or GLASS"
            )
        if self.ends == "scheduler" and self.path is not None:
            raise ValueError(
                "ends='scheduler' walks the scheduler's own grid; leave the path out, or use "
                "ends='transition'"
            )
        if self.gradient is not None and not isinstance(self._value, Predicted):
            raise ValueError(
                f"a gradient proposal differentiates the predicted x_0, not {self.value}; leave value "
                "at Predicted()"
            )
        if self.gradient is not None and self._transition.inner_calls:
            raise ValueError(
                f"a gradient proposal needs the density of the transition, which {self.transition} "
                "does not have; use DDIM or a FlowSDE"
            )

    # ---- the parts that may go by a name

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def _value(self) -> Value:
        return Predicted() if isinstance(self.value, str) else self.value

    @property
    def _initial(self) -> InitialNoise:
        return Prior() if isinstance(self.initial, str) else self.initial

    # ---- what it needs and costs

    @property
    def needs(self) -> Needs:
        """A noisy transition and a fixed density; gradients where they are followed."""
        own = Needs(
            stochastic=True,
            posterior_mean=self._transition.reads_means,
            density=True,
            gradients=self.gradient is not None,
        )
        return own | self._initial.needs

    def looks(self, steps: int) -> list[int]:
        """Steps of a grid of ``steps`` transitions at which rewards are looked at."""
        if self.steps is not None:
            bad = [s for s in self.steps if not 0 <= s < steps]
            if bad:
                raise ValueError(f"steps {bad} lie outside the grid of {steps} transitions")
            found = sorted(set(self.steps))
        else:
            stop = steps if self.stop is None else min(step_of(self.stop, steps), steps)
            every = max(step_of(self.every, steps), 1)
            found = list(range(step_of(self.start, steps), stop, every))
        return [
            i for i in found if i > 0 or not self._initial.predicts
        ]  # those are weighed already

    def plan(self, facts: Facts) -> Plan:
        """As many particles as the budget allows, ``particles`` at most.

        Raises:
            BudgetTooSmall: one particle does not fit.
        """
        check_ends(self.ends, facts)
        one = self._cost(facts, 1)
        least = self._least()
        for k in range(self.particles, least - 1, -1):
            cost = self._cost(facts, k)
            if facts.budget.exceeded_by(cost) is None:
                settings = {"particles": k, "islands": min(self.islands, k)}
                return Plan(cost, one, self._rows(facts, k), settings=settings)
        raise BudgetTooSmall(
            f"{type(self).__name__} costs {self._cost(facts, least)} with {least} particle(s), more "
            f"than the budget {facts.budget} allows"
        )

    def _least(self) -> int:
        """Fewest particles with which the search is still itself."""
        return 1

    def _islands(self, k: int) -> list[int]:
        """Particles of each island."""
        islands = min(self.islands, k)
        return [k // islands + (j < k % islands) for j in range(islands)]

    def _sizes(self, k: int, facts_steps: int) -> list[list[int]]:
        """Particles of each island at each step."""
        looks = self.looks(facts_steps)
        return [sizes(own, facts_steps, looks, self.funnel) for own in self._islands(k)]

    def _rows(self, facts: Facts, k: int) -> int:
        alive = max(sum(step) for step in zip(*self._sizes(k, facts.steps), strict=True))
        return alive * getattr(self._value, "samples", 1)

    def _cost(self, facts: Facts, k: int) -> Cost:
        """Cost of ``k`` particles over the whole grid."""
        calls, looks = facts.calls_per_row, set(self.looks(facts.steps))
        per_step = [sum(step) for step in zip(*self._sizes(k, facts.steps), strict=True)]
        total = self._initial.cost(facts, per_step[0])
        final = Cost(decodes=1, reward_calls=calls)
        inside = self._branching(facts.steps).inside
        denoised = sum(per_step) + sum(per_step[i] for i in inside) * self._transition.inner_calls
        told = per_step[0] * self._initial.predicts * (0 in inside)
        followed = sum(per_step[i] for i in looks) if self.gradient is not None else 0
        total += Cost(nfe=denoised - told, backwards=followed)
        for i in looks:
            total += per_step[i] * self._value.cost(i, facts.steps, calls)
        return total + per_step[-1] * final

    def _branching(self, steps: int) -> Branching:
        """Where it makes its own steps."""
        return Branching.of(self.ends, self.looks(steps), steps)

    # ---- the search

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Propose, weigh, resample; then weigh by the finished samples."""
        settings, steps = self.plan(problem.facts).settings, problem.grid.steps
        per_step, looks = self._sizes(settings["particles"], steps), set(self.looks(steps))
        problem.trace.record(**settings)
        self._warn(problem, settings["particles"], looks)
        started = yield from self._initial(problem, sum(own[0] for own in per_step))
        clouds = self._clouds(started, [own[0] for own in per_step])
        complete, branching = True, self._branching(steps)
        clouds = yield from carried(clouds, 0, branching.first, steps)
        for i in branching.inside:
            look = i in looks and complete  # a lone survivor has nothing to be chosen from
            known = started.posterior if i == 0 else None
            x_t, posterior = yield from self._denoised(problem, clouds, i, look, known)
            values, slopes = yield from self._values(problem, x_t, posterior, i, look)
            clouds = _dealt(clouds, posterior, slopes)
            if look:
                after = [own[min(i + 1, steps - 1)] for own in per_step]
                clouds = self._looked(problem, clouds, values, i, after)
            ahead = steps - i if i + 1 == branching.last else 1  # what follows is not interrupted
            if sum(map(len, clouds)) > 1 and not self._affords(problem, clouds, i, ahead):
                clouds, complete = [_survivor(problem, clouds, i)], False
            clouds = yield from self._moved(problem, clouds, i)
        clouds = yield from carried(clouds, branching.last, steps, steps)
        final = yield Score(joined_states(clouds), Stage.FINAL)
        clouds = [
            self._weighed(c, c.potential.last(r, problem.lam))
            for c, r in zip(clouds, split(final.total, clouds), strict=True)
        ]
        _check_alive(clouds)
        claims = complete and started.evidence and self.resampler in UNBIASED
        return self._outcome(problem, clouds, final, complete, claims)

    def _clouds(self, started: Started, counts: list[int]) -> list[Cloud]:
        """The initial particles, island by island."""
        first, clouds = 0, []
        for count in counts:
            rows = slice(first, first + count)
            clouds.append(
                Cloud(
                    started.x_t[rows],
                    Weights(started.log_w[rows]),
                    Potential.start(self.potential, started.applied[rows]),
                    torch.arange(first, first + count),
                    tuple(started.draws[rows]),
                )
            )
            first += count
        return clouds

    def _denoised(
        self, problem: Problem, clouds: list[Cloud], i: int, look: bool, known: Posterior | None
    ) -> Run:
        """All states and what the denoiser says of them, with its graph where a gradient follows."""
        x_t, graph = joined_states(clouds), look and self.gradient is not None
        if known is not None and not graph:
            return x_t, known
        posterior = yield Denoise(x_t, problem.grid[i], keep_graph=graph)
        return x_t, posterior

    def _values(
        self, problem: Problem, x_t: Tensor, posterior: Posterior, i: int, look: bool
    ) -> Run:
        """Values of all states at a look, and their slopes where a gradient is followed."""
        if not look:
            return None, None
        if self.gradient is None:
            return (yield from self._value(problem, posterior, i)), None
        scores = yield Score(posterior.x_0, grad_to=x_t)
        return scores.total, checked(scores.grad, i)

    def _looked(
        self, problem: Problem, clouds: list[Cloud], values: Tensor, i: int, after: list[int]
    ) -> list[Cloud]:
        """Weigh every cloud by its values and resample it if that pays; ``after`` is its new size."""
        schedule, looked = temperature_of(self.temperature), []
        parts = zip(clouds, split(values, clouds), after, strict=True)
        for island, (cloud, reward, n) in enumerate(parts):
            seen = Look(problem.grid, i, problem.lam, cloud, reward, problem.spread)
            cloud = replace(cloud, memory=schedule.remember(seen))
            seen = replace(seen, cloud=cloud)
            lam = schedule(seen)
            log_g, potential = cloud.potential.step(reward, lam, self._keep(problem, cloud, i))
            weighed = replace(
                self._weighed(cloud.looked(reward, len(problem.trace.records)), log_g),
                potential=potential,
                lam=lam,
                looked_at=i,
                pull=schedule(replace(seen, step=i + 1)) if schedule.fixed else lam,
            )
            looked.append(self._resampled(problem, weighed, reward, i, island, n))
        _check_alive(looked)
        return looked

    def _weighed(self, cloud: Cloud, log_factor: Tensor) -> Cloud:
        """The cloud with its weights multiplied; one of several islands may lose all of them."""
        weights = cloud.weights.times(log_factor, may_die=self.islands > 1)
        return replace(cloud, weights=weights)

    def _keep(self, problem: Problem, cloud: Cloud, i: int) -> float:
        """Share of the running average that a smooth potential keeps: half of it over 2 % of the way.

        Few particles keep less, since the average lags behind, which damps like a lower lambda.
        """
        if self.potential != "smooth" or cloud.looked_at is None:
            return 0.0
        keep = 1 - max(0.5, min(1.0, (4 / len(cloud)) ** 0.25))
        return keep ** (50 * (i - cloud.looked_at) / problem.grid.steps)

    def _resampled(
        self, problem: Problem, cloud: Cloud, reward: Tensor, i: int, island: int, n: int
    ) -> Cloud:
        """Copies of the heavy particles in place of the light ones, where that pays."""
        k, ess = len(cloud), cloud.weights.ess
        pays = self.ess_threshold == 1 or ess < 1 + self.ess_threshold * (k - 1)
        resample = n != k or (k > 1 and pays and self._differs_later(problem.grid, i))
        ancestors: Tensor | list[int] = list(range(k))
        weighed = cloud
        if resample:
            share = power(self.anneal, cloud.weights, i / problem.grid.steps)
            uniforms = problem.streams.uniform("resampling", island, i, max(k, n))
            ancestors, cloud = cloud.resample(RESAMPLERS[self.resampler], uniforms, n, share)
        problem.trace.record(
            step=i,
            model_t=problem.grid[i].model_t,
            ess=ess,
            resampled=resample,
            ancestors=ancestors,
            distinct=len(set(cloud.roots.tolist())),
            reward=reward,
            lam=weighed.lam,
            **({"island": island} if self.islands > 1 else {}),
        )
        return cloud

    def _differs_later(self, grid: TimeGrid, i: int) -> bool:
        """Whether copies made at a step would ever differ: some transition from it on draws noise."""
        return i + 1 < grid.steps or grid[-1].sigma > 0 or bool(self._transition.inner_calls)

    def _moved(self, problem: Problem, clouds: list[Cloud], i: int) -> Run:
        """All clouds one step on; a gradient proposal is paid for in the weights."""
        t, s = problem.grid[i], problem.grid[i + 1]
        x_t, posterior = joined_states(clouds), joined_posterior(clouds)
        slots = [slot for cloud in clouds for slot in cloud.slots]
        noise = problem.later("transition", slots, i)
        if self.gradient is None or clouds[0].gradient is None:
            x_s = yield from move(problem, self._transition, x_t, posterior, t, s, noise)
            parts = split(x_s, clouds)
            return [replace(c, x_t=x) for c, x in zip(clouds, parts, strict=True)]
        law = cast(GaussianTransition, self._transition)(posterior, t, s)
        if law.std == 0:  # nothing to shift: without noise no other state can be reached
            parts = split(law.mean, clouds)
            return [replace(c, x_t=x, gradient=None) for c, x in zip(clouds, parts, strict=True)]
        z, moved = split(noise(), clouds), []
        for cloud, mean, own in zip(clouds, split(law.mean, clouds), z, strict=True):
            x_s, correction = self.gradient.propose(
                Gaussian(mean, law.std), cloud.slope, cloud.pull, own
            )
            weights = cloud.weights.times(correction)
            moved.append(replace(cloud, x_t=x_s, weights=weights, gradient=None))
        return moved

    def _affords(self, problem: Problem, clouds: list[Cloud], i: int, ahead: int) -> bool:
        """Whether time remains to carry all particles ``ahead`` steps and still finish one."""
        if problem.facts.budget.seconds is None:
            return True
        k, left = sum(map(len, clouds)), problem.grid.steps - i - ahead
        one = 1 + self._transition.inner_calls
        step = Cost(seconds=problem.seconds_for(k * ahead * one))
        return problem.affords(step, holding_back=Cost(seconds=problem.seconds_for(left * one)))

    def _warn(self, problem: Problem, k: int, looks: set[int]) -> None:
        """Say what the user may not have meant."""
        if k > 1:
            warn_if_unsteered(problem)
        if k == 1 < self.particles:
            problem.trace.record(event="one particle")
            warnings.warn(
                f"the budget {problem.facts.budget} allows 1 of {self.particles} particles, which "
                "leaves nothing to choose from; raise it, or take fewer steps",
                stacklevel=2,
            )
        if k > 1 and not looks and self.steps is None:
            problem.trace.record(event="no look")
            warnings.warn(
                f"{type(self).__name__} looks from step {self.start} every {self.every} steps, but the "
                f"grid has only {problem.grid.steps}: nothing is resampled on the way; lower start and "
                "every",
                stacklevel=2,
            )

    def _outcome(
        self,
        problem: Problem,
        clouds: list[Cloud],
        final: Scores,
        complete: bool,
        claims: bool,
    ) -> Outcome:
        for cloud, rewards in zip(clouds, split(final.total, clouds), strict=True):
            if cloud.records:
                found = correlations(cloud.past, rewards)
                for record, value in zip(cloud.records, found, strict=True):
                    problem.trace.records[record]["correlation"] = value
        weights = joined_weights(clouds)
        chosen = choose(problem, weights, final, self.returns)
        problem.trace.record(
            step=problem.grid.steps,
            ess=weights.ess,
            distinct=len(torch.unique(torch.cat([c.roots for c in clouds]))),
            reward=final.total,
            chosen=chosen,
        )
        log_z = weights.log_z if claims else None
        return Outcome(joined_states(clouds), final, weights.log_w, chosen, log_z, complete)


def check_step(name: str, value: int | float | None) -> None:
    """Refuse what is neither a step nor a share of the grid; None is left alone."""
    least = 0 if name == "start" else 1
    share = isinstance(value, float) and 0 < value < 1
    if value is not None and not share and (value < least or value != int(value)):
        raise ValueError(
            f"{name} must be at least {least} (a step), or a share of the grid between 0 and 1, got "
            f"{value}"
        )


def step_of(value: int | float, steps: int) -> int:
    """A step, where it may be given as a share of the grid."""
    return round(value * steps) if 0 < value < 1 else int(value)


def choose(
    problem: Problem, weights: Weights, final: Scores, returns: Literal["all", "draw", "best"]
) -> list[int]:
    """Rows to hand to the user: all, best first; one drawn by weight; or the best one."""
    if returns == "best":
        return [int(final.total.argmax())]
    if returns == "draw":
        u = problem.streams.uniform("selection", 0, 0, 1)
        return [int(multinomial(weights.normalised, u, 1))]
    return torch.argsort(final.total, descending=True, stable=True).tolist()


def _dealt(clouds: list[Cloud], posterior: Posterior, slopes: Tensor | None) -> list[Cloud]:
    """Each cloud with its rows of what was learned of all; graphs end here."""
    if posterior.x_0.requires_grad:
        posterior = Posterior(posterior.x_0.detach(), posterior.eps.detach())
        if len(clouds) == 1:
            clouds = [replace(clouds[0], x_t=clouds[0].x_t.detach())]
    if len(clouds) == 1:
        return [replace(clouds[0], posterior=posterior, gradient=slopes)]
    dealt, first = [], 0
    for cloud in clouds:
        rows = slice(first, first + len(cloud))
        slope = None if slopes is None else slopes[rows]
        dealt.append(replace(cloud, posterior=posterior[rows], gradient=slope))
        first = rows.stop
    return dealt


def _check_alive(clouds: list[Cloud]) -> None:
    """Refuse to go on where no island has a possible particle.

    Raises:
        ValueError: all weights of all clouds are zero.
    """
    if all(cloud.weights.dead for cloud in clouds):
        raise ValueError(ALL_ZERO)


def _survivor(problem: Problem, clouds: list[Cloud], i: int) -> Cloud:
    """The heaviest particle, alone, where time runs out."""
    weights = joined_weights(clouds)
    best = int(weights.log_w.argmax())
    problem.trace.record(step=i, event="out of time", ancestors=[best])
    for cloud in clouds:
        if best < len(cloud):
            return cloud.alone(best)
        best -= len(cloud)
    raise AssertionError("a weight belongs to no cloud")
