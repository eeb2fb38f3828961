"""What a fused step of many searches waits for, and that it is what each would be alone."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from benchmarks.fused import FreeModel, FreeReward, run_fused
from benchmarks.standin import DEVICE, StandIn
from helpers import Custom, jobs_for, run

from samplers import DLBS, RBF, FKSteering, Halving, TreeG
from samplers.initial import TopB
from steering.engine import Engine
from steering.flow_sde import FlowSDE
from steering.mixtures import flow_grid
from steering.moves import made
from steering.prediction import Posterior
from steering.requests import Move
from steering.search import Noise
from steering.streams import Streams
from steering.times import Time
from steering.transfer import to_device
from steering.transitions import DDIM, GaussianTransition, Renoise

T, S, END = Time(600.0, 0.6, 0.8), Time(500.0, 0.8, 0.6), Time(0.0, 1.0, 0.0)
SHAPE = (3, 5)  # an odd number of elements, so that rows begin anywhere in a vector register
RBF_25 = RBF(nfe=60, chains=1, start=TopB(4, per_particle=True), path=None)


def request(name, n, transition=DDIM(1.0), t=T, s=S, rows=None, streams=None):
    noise = Noise(
        streams or Streams(0, name), "transition", range(n), 7, SHAPE, torch.device("cpu")
    )
    known = n if rows is None else 1 + int(max(rows))
    generator = torch.Generator().manual_seed(len(name) + n)
    x_0, eps = torch.randn((2, known, *SHAPE), generator=generator)
    return Move(transition, Posterior(x_0, eps), t, s, noise, rows)


def mixed():
    """Requests of several laws, times, sizes; with and without a choice of rows; the last draws none."""
    chosen = torch.tensor([2, 0, 0, 1])
    return [
        request("a", 1),
        request("bb", 3),
        request("ccc", 2, s=END),
        request("dddd", 4, rows=chosen),
        request("eeeee", 1, FlowSDE(), Time(700.0, 0.3, 0.7), Time(600.0, 0.4, 0.6)),
        request("ffffff", 2, Renoise()),
        request("ggggggg", 5, rows=torch.arange(5)),
        request("hhhhhhhh", 2, DDIM(0.0)),
    ]


def test_steps_made_together_are_those_made_alone_to_the_bit():
    for one, fused in zip(mixed(), made(mixed()), strict=True):
        rows = slice(None) if one.rows is None else one.rows
        law = one.transition(one.posterior[rows], one.t, one.s)
        alone = law.mean if law.std == 0 else law.sample(one.noise())
        assert torch.equal(fused, alone)
        assert len(fused) == len(one)


def test_noise_of_others_is_taken_as_it_is():
    one = request("a", 2)
    z = torch.randn(2, *SHAPE, dtype=torch.float64)
    mine = Move(one.transition, one.posterior, T, S, lambda: z)
    found, _ = made([mine, request("bb", 3)])
    assert torch.equal(found, one.transition(one.posterior, T, S).sample(z))


def test_numbers_drawn_twice_fail_the_search_that_did_it_alone():
    streams = Streams(0, "a")
    made([request("a", 1, streams=streams)])
    error, fine = made([request("a", 1, streams=streams), request("bb", 2)])
    assert isinstance(error, RuntimeError)
    assert "already used" in str(error)
    assert torch.equal(fine, made([request("bb", 2)])[0])


def test_a_step_to_more_noise_draws_nothing():
    good, bad = request("a", 1), request("bb", 1, t=S, s=T)
    with pytest.raises(ValueError, match="less noise"):
        made([good, bad])
    assert torch.equal(made([good])[0], made([request("a", 1)])[0])


@dataclass(frozen=True)
class Crowded(GaussianTransition):
    """DDIM(1), for which memory suffices for 3 rows at once."""

    stochastic = True
    inner_calls = 0

    def __call__(self, posterior, t, s):
        law = DDIM(1.0)(posterior, t, s)

        def sample(noise):
            if len(noise) > 3:
                raise torch.OutOfMemoryError("too many rows")
            return law.sample(noise)

        return SimpleNamespace(mean=law.mean, std=law.std, sample=sample)


def test_where_memory_runs_out_each_step_is_made_alone():
    model = FreeModel(grid=flow_grid(6))
    names = [f"p{i}" for i in range(5)]
    found, wanted = (
        run(model, FreeReward(), jobs_for(model, names, DLBS(1, 3, transition=transition)))
        for transition in (Crowded(), DDIM(1.0))
    )
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.outcome.x_0, b.outcome.x_0)


@pytest.mark.parametrize(
    ("search", "scored", "own", "shared"),
    [
        (RBF_25, 58, 3, 57),  # 57 predictions one after another, and the finished sample
        (TreeG(2, 3), 25, 2, 50),
        (DLBS(3, 2), 25, 2, 50),
        (Halving(8, steps=(5, 10)), 3, 2, 2),
    ],
)
def test_a_fused_step_waits_once_and_sends_once_however_many_prompts(search, scored, own, shared):
    """What is waited for are the scores. What is sent: of each prompt the initial noise and which
    samples it starts and ends with (``own``), of all together noise and rows of each step."""
    for prompts in (1, 5):
        with StandIn() as device:
            run_fused(search, prompts, DEVICE)
        assert (device.waits, device.sent) == (scored, own * prompts + shared), device.by_name


def test_particles_wait_for_their_scores_alone():
    for prompts in (1, 5):
        with StandIn() as device:
            run_fused(FKSteering(particles=4, start=5, every=5), prompts, DEVICE)
        assert device.waits == 5


def test_results_on_the_stand_in_are_those_of_the_cpu():
    jobs = {}
    for device in (torch.device("cpu"), DEVICE):
        with StandIn():
            model = FreeModel(device)
            asked = jobs_for(model, ["a", "b"], RBF_25)
            results = list(Engine(model, FreeReward()).run(asked))
            jobs[device] = {r.job.key: r for r in results}
            assert [r.error for r in results] == [None, None]
    for key, here in jobs[torch.device("cpu")].items():
        there = jobs[DEVICE][key]
        assert torch.equal(here.outcome.x_0, there.outcome.x_0.near)
        assert here.trace.records == there.trace.records


def test_nothing_is_copied_to_where_it_is():
    x = torch.zeros(3)
    assert to_device(x, "cpu") is x


def test_a_search_that_yields_something_else_is_told():
    def body(problem):
        yield "a picture, please"

    model = FreeModel()
    [result] = list(Engine(model, FreeReward()).run(jobs_for(model, ["a"], Custom(body))))
    assert "a search yields Denoise" in str(result.error)
