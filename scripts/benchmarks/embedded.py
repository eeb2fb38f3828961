"""What the benchmarks on the embedded models share: models, prompts and searches by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import yaml

from rewards import ShapesCLIP, ShapesVerifier
from samplers import (
    BFS,
    DLBS,
    DTS,
    SVDD,
    AdaptiveBestOfN,
    AutoSMC,
    BestFirst,
    BestOfN,
    BootstrapSMC,
    CoDe,
    DepthFirst,
    DTSStar,
    EntropicPF,
    EvoSearch,
    FKSteering,
    Halving,
    NoisePaths,
    TemperedSMC,
    TreeG,
    ZeNO,
    ZeroOrder,
)
from samplers.rbf import RBF, VP_PATH
from samplers.smc import SMC
from steering.command.options import PipelineOptions, config_folder, device_of, load_pipeline
from steering.cost import Budget
from steering.flow_sde import FlowSDE
from steering.glass import GLASS
from steering.pipeline import SteeredPipeline
from steering.search import BudgetTooSmall, Facts, Search
from steering.transitions import DDIM, Transition

MODELS = ("shapes-sd", "shapes-flux")


def candidates(nfe: int, steps: int) -> int:
    """Trajectories of ``steps`` denoiser calls that ``nfe`` calls pay for.

    Raises:
        BudgetTooSmall: not one.
    """
    if nfe < steps:
        raise BudgetTooSmall(f"{nfe} denoiser calls pay for no trajectory of {steps} steps")
    return nfe // steps


def best_of(nfe: int, steps: int, solver: Transition | str = "scheduler") -> Search:
    """Best of N by the pipeline's own scheduler, or by a transition; all candidates at once."""
    n = candidates(nfe, steps)
    return BestOfN(n, solver=solver, in_flight=n)  # type: ignore[arg-type]


def particles(
    kind: type[SMC], children: int | None = None, **settings: Any
) -> Callable[[int, int], Search]:
    """A particle search with the settings of its paper, and as many particles as the budget pays.

    Args:
        kind: its class.
        children: of a lineage; the budget then pays for lineages. None: one group of all.
        settings: further ones.
    """

    def make(nfe: int, steps: int) -> Search:
        k = candidates(nfe, steps)
        islands = 1 if children is None else max(k // children, 1)
        return kind(particles=k, islands=islands, **{"returns": "best", **settings})

    return make


def treeg(nfe: int, steps: int, **settings: Any) -> Search:
    """TreeG with about 4 branches of as many active samples as fit, whatever uses most of the budget."""
    facts = Facts(steps, steps, budget=Budget(nfe=nfe))
    most = candidates(nfe, steps)
    plans = [TreeG(active=max(most // k, 1), branches=k).plan(facts) for k in (3, 4, 5, 6)]
    best = max(plans, key=lambda p: (p.cost.nfe, -abs(p.settings["branches"] - 4)))
    return replace(TreeG(**best.settings), **settings)


def tree(kind: Any, **settings: Any) -> Callable[[int, int], Search]:
    """A tree of roll-outs, as many as the budget pays."""
    return lambda nfe, steps: kind(rollouts=None, nfe=nfe, **settings)


def best_first(nfe: int, steps: int, **settings: Any) -> Search:
    """Best-first search whose roots take a third of the budget."""
    return BestFirst(nfe=nfe, roots=max(nfe // (3 * steps), 1), **settings)


def depth_first(nfe: int, steps: int, **settings: Any) -> Search:
    """Depth-first search of chains that would take a quarter of the budget if none turned back."""
    return DepthFirst(nfe=nfe, chains=max(nfe // (4 * steps), 1), **settings)


def glass(nfe: int, steps: int) -> Search:
    """RBF along GLASS with its 4 inner steps, or 2 where 4 leave no child a step."""
    search = RBF(nfe=nfe, transition=GLASS(), path=None)
    try:
        search.plan(Facts(steps, steps))
    except BudgetTooSmall:
        return RBF(nfe=nfe, transition=GLASS(inner=2), path=None)
    return search


def fk_glass(nfe: int, steps: int) -> Search:
    """FK steering along GLASS with its 4 inner steps, or fewer where that leaves fewer calls unused."""
    for inner in (4, 3, 2):
        k = nfe // (inner * steps)
        if k > 1 and k * inner * steps >= 0.95 * nfe:
            break
    k = candidates(nfe, inner * steps)
    return FKSteering(particles=k, transition=GLASS(inner=inner), returns="best")


def halving(nfe: int, steps: int) -> Search:
    """Best of as many as can be begun, most of them rejected at 30 and 50 % of the way."""
    facts = Facts(steps, steps, budget=Budget(nfe=nfe))
    return Halving(Halving(nfe).plan(facts).settings["n"])


def beams(nfe: int, steps: int, **settings: Any) -> Search:
    """Beam search of two candidates a beam, the prediction of each being what the next step needs."""
    facts = Facts(steps, steps, budget=Budget(nfe=nfe))
    return DLBS(DLBS(nfe).plan(facts).settings["beams"], **settings)


def beams_ahead(nfe: int, steps: int, **settings: Any) -> Search:
    """Beam search with the paper's look-ahead of 6 steps, or the longest that the budget pays for.

    Candidates are compared from the first quarter of the way on, so early that the budget is used.
    """
    for lookahead in range(6, 1, -1):
        for count in range(max(nfe // (2 * steps), 1), 0, -1):
            for start in range(1, max(steps // 4, 1) + 1):
                search = DLBS(count, lookahead=lookahead, start=start, **settings)
                if 0.95 * nfe <= search.plan(Facts(steps, steps)).cost.nfe <= nfe:
                    return search
    return beams(nfe, steps, lookahead=2, **settings)


def zero_order(nfe: int, steps: int) -> Search:
    """One or two pivots with about four neighbours, as many rounds as the budget pays."""
    n = candidates(nfe, steps)

    def spent(chains: int, neighbours: int) -> int:
        return chains * (1 + (n // chains - 1) // neighbours * neighbours)

    tries = [(c, k) for c in (1, 2) for k in (3, 4, 5, 6) if n >= c * (1 + k)] or [(1, 3)]
    chains, k = max(tries, key=lambda t: (spent(*t), -abs(t[1] - 4), t[0]))
    rounds = max((n // chains - 1) // k, 1)
    return ZeroOrder(rounds, k, chains=chains, in_flight=n)


def paths(nfe: int, steps: int) -> Search:
    """Paths and noises that use most of the budget, over as many rounds as go with that."""
    facts = Facts(steps, steps, budget=Budget(nfe=nfe))

    def worth(search: NoisePaths) -> tuple[bool, int, float]:
        plan = search.plan(facts)
        return plan.cost.nfe >= 0.95 * nfe, plan.settings["rounds"], plan.cost.nfe

    most = candidates(nfe, steps)
    return max((NoisePaths(n, m) for n in (1, 2, 3, 4) for m in range(2, most + 2)), key=worth)


def evo(nfe: int, steps: int) -> Search:
    """The generations of its paper, scaled to the budget; what is left goes to the dearest that fits."""
    search = EvoSearch(in_flight=candidates(nfe, steps))
    costs = [steps, *(steps - round(share * steps) for share in search.schedule)]
    whole = sum(n * cost for n, cost in zip(search.populations, costs, strict=True))
    sizes = [max(n * nfe // whole, 1) for n in search.populations]
    left = nfe - sum(n * cost for n, cost in zip(sizes, costs, strict=True))
    while fits := [i for i, cost in enumerate(costs) if cost <= left]:
        sizes[fits[0]], left = sizes[fits[0]] + 1, left - costs[fits[0]]
    return replace(search, populations=sizes)


def zeno(nfe: int, steps: int) -> Search:
    """One chain with up to a dozen perturbations a round, as many rounds as the budget pays."""
    n = candidates(nfe, steps)

    def worth(samples: int) -> tuple[bool, int]:
        spent = (n - 1) // samples * samples + 1
        return spent > n - 2 or spent >= 0.95 * n, -abs(samples - 6)

    samples = max(range(2, 14, 2), key=worth)
    return ZeNO(max((n - 1) // samples, 1), samples, in_flight=n)


_PARTICLES: dict[str, tuple[Any, ...]] = {
    "auto": (AutoSMC,),
    "fk": (FKSteering,),
    "smc": (BootstrapSMC,),
    "tempered": (TemperedSMC,),
    "entropic": (EntropicPF,),
    "bfs": (BFS,),
    "svdd": (SVDD,),
    "code": (CoDe, 4),
}
_DRAWN = ("fk", "svdd")
_FK_MAX = partial(particles, FKSteering, potential="max")
#: Searches by family, made for a number of denoiser calls a prompt on a grid of so many steps. What
#: the calls do not fill is left: the counted NFE are what was spent. A further one is one more entry.
#: Stochastic ones walk by DDIM(1) on the pipeline's own grid; ``-sde`` by the flow SDE, whose samples
#: of a rectified flow are better at few steps; ``-vp`` by DDIM(1) along the variance-preserving path.
#: ``-draw`` returns a draw by weight in place of the best by reward.
FAMILIES: dict[str, Callable[[int, int], Search]] = {
    "base": lambda nfe, steps: BestOfN(1),
    "best-of-n": best_of,
    "best-of-n-ddim": lambda nfe, steps: best_of(nfe, steps, DDIM(1.0)),
    "best-of-n-sde": lambda nfe, steps: best_of(nfe, steps, FlowSDE()),
    **{name: particles(*kind) for name, kind in _PARTICLES.items()},
    **{f"{name}-sde": particles(*k, transition=FlowSDE()) for name, k in _PARTICLES.items()},
    **{f"{name}-vp": particles(*k, path=VP_PATH) for name, k in _PARTICLES.items()},
    **{f"{n}-draw": particles(*_PARTICLES[n], returns="draw") for n in _DRAWN},
    **{
        f"{n}-draw-sde": particles(*_PARTICLES[n], returns="draw", transition=FlowSDE())
        for n in _DRAWN
    },
    "fk-max": _FK_MAX(),
    "fk-max-sde": _FK_MAX(transition=FlowSDE()),
    "fk-glass": fk_glass,
    "dts-draw": tree(DTS, returns="draw"),
    "adaptive": lambda nfe, steps: AdaptiveBestOfN(candidates(nfe, steps)),
    "halving": halving,
    "dlbs": beams,
    "dlbs-la": beams_ahead,
    "dlbs-sde": partial(beams, transition=FlowSDE()),
    "dlbs-la-sde": partial(beams_ahead, transition=FlowSDE()),
    "rbf": lambda nfe, steps: RBF(nfe=nfe, transition=DDIM(1.0), path=None),
    "rbf-sde": lambda nfe, steps: RBF(nfe=nfe, transition=FlowSDE(), path=None),
    "rbf-vp": lambda nfe, steps: RBF(nfe=nfe, transition=DDIM(1.0), path=VP_PATH),
    "rbf-glass": glass,
    "zero-order": zero_order,
    "paths": paths,
    "evo": evo,
    "zeno": zeno,
    "dts": tree(DTS),
    "dts-sde": tree(DTS, transition=FlowSDE()),
    "dts-star": tree(DTSStar),
    "dts-star-sde": tree(DTSStar, transition=FlowSDE()),
    "best-first": best_first,
    "best-first-sde": partial(best_first, transition=FlowSDE()),
    "depth-first": depth_first,
    "depth-first-sde": partial(depth_first, transition=FlowSDE()),
    "treeg": treeg,
    "treeg-sde": partial(treeg, transition=FlowSDE()),
}
#: Endings of what is for rectified flows only.
FLOW_ONLY = ("-sde", "-vp", "-glass")
#: What is compared if nothing else is asked for.
DEFAULT = {
    "shapes-sd": ["base", "best-of-n", "best-of-n-ddim", *_PARTICLES, "fk-max", "rbf"],
    "shapes-flux": [
        "base",
        "best-of-n",
        "best-of-n-sde",
        *(f"{name}-sde" for name in _PARTICLES),
        "fk-max-sde",
        "fk-vp",
        "fk-glass",
        "svdd-vp",
        "rbf-sde",
        "rbf-vp",
        "rbf-glass",
    ],
}
#: Names with a number of candidates in place of a budget, ``best-of-16``.
COUNTED = {"best-of": "best-of-n", "fk": "fk"}


def samplers_of(model: str, asked: list[str] | None = None) -> list[str]:
    """The samplers to compare on a model: its default, or those of the asked that suit it."""
    if asked is None:
        return DEFAULT[model]
    flow = model == "shapes-flux"
    return [name for name in asked if flow or not name.endswith(FLOW_ONLY)]


def own_budget(name: str, steps: int) -> int | None:
    """Denoiser calls of a name that says its own number of candidates; None for a family."""
    if name == "base":
        return steps
    family, _, count = name.rpartition("-")
    return int(count) * steps if family in COUNTED and count.isdigit() else None


def search_named(name: str, nfe: int | None = None, steps: int = 1) -> Search:
    """A family's search for a budget, or one that says its own number, as ``fk-8`` does.

    Args:
        name: of :data:`FAMILIES`, or ``best-of-N`` or ``fk-N``.
        nfe: denoiser calls a prompt; ignored where the name says the number of candidates.
        steps: of the grid.

    Raises:
        ValueError: an unknown name, or a family without a budget.
        BudgetTooSmall: the budget pays for no candidate.
    """
    own = own_budget(name, steps)
    if own is not None:
        return FAMILIES[COUNTED.get(name.rpartition("-")[0], name)](own, steps)
    if name not in FAMILIES:
        known = ", ".join([*FAMILIES, *(f"{f}-N" for f in COUNTED)])
        raise ValueError(f"unknown sampler {name!r}; known are {known}")
    if nfe is None:
        raise ValueError(f"sampler {name!r} needs a number of denoiser calls")
    return FAMILIES[name](nfe, steps)


def options_of(model: str, device: str, **changes: Any) -> PipelineOptions:
    """The shipped configuration of an embedded model, with changes."""
    text = (config_folder() / "pipeline" / f"{model}.yaml").read_text(encoding="utf-8")
    return PipelineOptions(**(yaml.safe_load(text) | {"device": device} | changes))


def steered(options: PipelineOptions, sampler: Search, seed: int, **extra: Any) -> SteeredPipeline:
    """An embedded model with the embedded CLIP as its reward and the exact verifier as its judge."""
    device = device_of(options)
    return SteeredPipeline(
        load_pipeline(options, device),
        sampler=sampler,
        reward=ShapesCLIP().to(device),
        held_out={"accuracy": ShapesVerifier()},
        seed=seed,
        door="replay",  # any other would be slower by orders of magnitude, so say why it is shut
        **extra,
    )


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that wall-clock times are whole."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
