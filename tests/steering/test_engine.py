import itertools

import pytest
import torch
from helpers import Custom, FunctionReward, Recorder, jobs_for, mixture, outcome, run

from samplers import BestOfN, FKSteering, SoftValue
from steering.calls import BadReward
from steering.cost import Budget, Cost
from steering.engine import Engine, MissingAbility
from steering.live import BudgetExceeded, SearchFailed
from steering.model import Abilities, Stage
from steering.requests import Denoise, Rollout, Score
from steering.reward import scoring_call
from steering.search import BudgetTooSmall, Needs
from steering.transitions import DDIM

PROMPTS = ["a", "b", "c", "d", "e"]


def same(a, b):
    return all(
        torch.equal(x.outcome.x_0, y.outcome.x_0)
        and torch.equal(x.outcome.log_w, y.outcome.log_w)
        and x.trace.records == y.trace.records
        for x, y in zip(a, b, strict=True)
    )


def test_rows_of_all_prompts_are_fused_into_full_micro_batches():
    problem, inner = mixture(steps=8)
    model = Recorder(inner)
    run(
        model,
        problem.reward,
        jobs_for(model, PROMPTS, FKSteering(particles=4, start=0)),
        batch_size=8,
    )
    assert set(model.denoised) <= {8, 4}
    assert sum(model.denoised) == 8 * 4 * len(PROMPTS)
    assert model.denoised.count(8) >= 16


def test_a_finished_search_makes_room_for_the_next_prompt():
    problem, inner = mixture(steps=8)
    model = Recorder(inner)
    prompts = [str(i) for i in range(12)]
    run(model, problem.reward, jobs_for(model, prompts, BestOfN(1)), batch_size=4)
    assert model.denoised == [4] * 24


@pytest.mark.parametrize("search", [FKSteering(particles=5, start=0, every=2), BestOfN(5)])
def test_deterministic_results_do_not_depend_on_packing_or_order(search):
    problem, model = mixture("quadratic", steps=8)
    reference = None
    for cap, order in itertools.product((1, 3, 64), (1, -1)):
        jobs = jobs_for(model, PROMPTS[::order], search, lam=problem.lam, seed=3)
        results = run(model, problem.reward, jobs, batch_size=cap, deterministic=True, bucket=4)
        results = results[::order]
        reference = reference or results
        assert same(reference, results)


def test_default_mode_agrees_to_rounding_and_traces_name_the_first_other_decision():
    problem, model = mixture(steps=8)
    jobs = jobs_for(model, PROMPTS, BestOfN(3, returns="all"))
    one, other = (run(model, problem.reward, jobs, batch_size=b) for b in (1, 64))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.outcome.x_0, b.outcome.x_0, rtol=1e-5, atol=1e-5)
        assert a.trace.first_difference(b.trace) is None
    b.trace.records[-1]["chosen"] = [9, 9]
    assert a.trace.first_difference(b.trace)["decision"] == "chosen"


def test_seed_prompt_and_only_they_decide():
    problem, model = mixture(steps=5)
    search = FKSteering(particles=3, start=0)
    a = run(model, problem.reward, jobs_for(model, ["a", "b"], search, seed=1))
    b = run(model, problem.reward, jobs_for(model, ["b"], search, seed=1))
    c = run(model, problem.reward, jobs_for(model, ["b"], search, seed=2))
    torch.testing.assert_close(a[1].outcome.x_0, b[0].outcome.x_0)
    assert not torch.equal(b[0].outcome.x_0, c[0].outcome.x_0)
    assert not torch.equal(a[0].outcome.x_0, a[1].outcome.x_0)


def test_counts_are_exact():
    problem, model = mixture(steps=10)
    search = FKSteering(particles=4, start=2, every=4)  # looks at steps 2 and 6
    engine = Engine(model, problem.reward, held_out={"other": FunctionReward(name="other")})
    jobs = jobs_for(model, PROMPTS, search)
    results = list(engine.run(jobs))
    for result in results:
        usage = result.usage
        assert (usage.nfe, usage.decodes, usage.reward_calls) == (40, 12, 12)
        assert (usage.passes, usage.padding, usage.backwards, usage.renders) == (40, 0, 0, 1)
        assert (usage.held_out_decodes, usage.held_out_calls) == (1, 1)
        assert usage.seconds >= usage.seconds_in_models > 0
        plan = search.plan(engine.check(search.needs, "FK") or facts(engine))
        assert plan.cost == Cost(nfe=40, decodes=12, reward_calls=12)
    assert engine.usage.nfe == 40 * len(PROMPTS)
    assert set(results[0].held_out) == {"other"}


def facts(engine):
    from steering.search import Facts

    return Facts(engine.model.grid.steps, engine.model.scheduler_calls())


def test_padding_is_counted_apart():
    problem, model = mixture(steps=5)
    [result] = run(
        model, problem.reward, jobs_for(model, ["a"], BestOfN(3)), deterministic=True, bucket=4
    )
    assert result.usage.nfe == 15
    assert result.usage.padding == 5 + 1


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    problem, inner = mixture(steps=5)
    model = Recorder(inner, most_rows=3)
    jobs = jobs_for(model, PROMPTS, FKSteering(particles=4, start=0))
    results = run(model, problem.reward, jobs, batch_size=16)
    expected = run(
        inner, problem.reward, jobs_for(inner, PROMPTS, FKSteering(particles=4, start=0))
    )
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a.outcome.x_0, b.outcome.x_0)
        assert a.usage.nfe == b.usage.nfe == 20
    events = [r for r in results[0].trace.records if r.get("event") == "out of memory"]
    assert {"call": "denoise", "rows": 16, "retry": 8} | {"event": "out of memory"} in events


def test_out_of_memory_with_one_row_or_in_a_bucket_is_an_error():
    problem, inner = mixture(steps=5)
    jobs = jobs_for(inner, ["a"], BestOfN(1))
    with pytest.raises(SearchFailed, match="do not fit"):
        run(Recorder(inner, most_rows=0), problem.reward, jobs)
    with pytest.raises(SearchFailed) as caught:
        run(Recorder(inner, most_rows=3), problem.reward, jobs, deterministic=True)
    assert any("lower `bucket`" in note for note in caught.value.__cause__.__notes__)


def test_a_search_that_raises_names_its_prompt_and_the_others_finish():
    _problem, model = mixture(steps=5)

    def points(x, prompts):
        if "c" in prompts:
            raise ZeroDivisionError("no score for c")
        return x[:, 0]

    results = list(Engine(model, FunctionReward(points)).run(jobs_for(model, PROMPTS, BestOfN(2))))
    failed = [r for r in results if r.error is not None]
    assert [r.job.item.prompt for r in failed] == ["c"]
    assert "prompt 'c'" in str(failed[0].error)
    assert isinstance(failed[0].error.__cause__, ZeroDivisionError)
    assert sum(r.outcome is not None for r in results) == 4


@pytest.mark.parametrize("shape", [(2,), (4, 1), ()])
def test_a_reward_of_the_wrong_shape_is_named(shape):
    _, model = mixture(steps=5)
    reward = FunctionReward(lambda x, f: torch.zeros(shape))
    with pytest.raises(SearchFailed, match=r"reward 'function' returned .* for 4 media"):
        run(model, reward, jobs_for(model, ["a"], BestOfN(4)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rewards_that_are_no_number_name_prompt_and_candidate(value):
    _, model = mixture(steps=5)

    def points(x, prompts):
        out = x[:, 0].clone()
        out[2] = value
        return out

    with pytest.raises(SearchFailed, match=r"prompt 'a': .* candidate 2") as caught:
        run(model, FunctionReward(points), jobs_for(model, ["a"], BestOfN(4)))
    assert isinstance(caught.value.__cause__, BadReward)
    if value != float("inf"):
        [result] = run(
            model,
            FunctionReward(points),
            jobs_for(model, ["a"], BestOfN(4, returns="all")),
            non_finite="zero_weight",
        )
        assert torch.isneginf(result.outcome.scores.total).sum() == 1


def test_zero_weighted_particles_leave_no_trace_in_particle_methods():
    _problem, model = mixture(steps=10)

    def points(x, prompts):
        return torch.where(x[:, 0] > -1, x[:, 0], torch.nan)

    search = FKSteering(particles=32, steps=[0, 8], ess_threshold=0.0, returns="all")
    [result] = run(
        model, FunctionReward(points), jobs_for(model, ["a"], search), non_finite="zero_weight"
    )
    w = torch.softmax(result.outcome.log_w, 0)
    assert torch.isfinite(w).all()
    assert (result.outcome.x_0[w > 0, 0] > -1).all()
    assert 0 < (w == 0).sum() < 32


def test_abilities_are_checked_before_any_work():
    _problem, inner = mixture(steps=5)
    model = Recorder(inner)
    wants = Custom(lambda p: iter(()), Needs(gradients=True))
    blind = FunctionReward(differentiable=False)
    with pytest.raises(MissingAbility, match=r"Custom needs a differentiable reward.*'function'"):
        next(Engine(model, blind).run(jobs_for(model, ["a"], wants)))
    model.inner.__dict__["abilities"] = None
    assert model.denoised == []


def test_missing_model_abilities_are_named():
    from steering.engine import check_abilities
    from steering.model import Meaning

    lacking = Abilities(False, False, False, False, Meaning.CONSISTENCY_MAP)
    reward = FunctionReward()
    for need in ("gradients", "time_per_row", "any_order", "any_rows", "posterior_mean"):
        with pytest.raises(MissingAbility, match="the model"):
            check_abilities(Needs(**{need: True}), "S", lacking, reward)
    check_abilities(Needs(), "S", lacking, reward)


@pytest.mark.parametrize("part", ["nfe", "decodes", "reward_calls"])
@pytest.mark.parametrize("search", [BestOfN(8), FKSteering(particles=8, start=0, every=5)])
def test_a_search_plans_within_its_budget(part, search):
    problem, model = mixture(steps=10)
    unlimited = search.plan(facts(Engine(model, problem.reward))).cost
    budget = Budget(**{part: int(getattr(unlimited, part)) // 2})
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, budget=budget))
    assert getattr(result.usage, part) == getattr(unlimited, part) // 2


@pytest.mark.parametrize("search", [BestOfN(8), FKSteering(particles=8)])
def test_a_budget_below_one_trajectory_is_refused_before_work(search):
    problem, inner = mixture(steps=10)
    model = Recorder(inner)
    jobs = jobs_for(model, ["a"], search, budget=Budget(nfe=9))
    with pytest.raises(BudgetTooSmall, match="budget"):
        list(Engine(model, problem.reward).run(jobs))
    assert model.denoised == []


@pytest.mark.parametrize("search", [BestOfN(64, in_flight=4), FKSteering(particles=64)])
def test_when_time_runs_out_a_finished_candidate_is_returned_as_incomplete(search):
    import time

    _problem, inner = mixture(steps=10)

    def slow(x, prompts):
        time.sleep(2e-3 * len(x))
        return x[:, 0]

    jobs = jobs_for(inner, ["a"], search, budget=Budget(seconds=0.05))
    [result] = run(inner, FunctionReward(slow), jobs)
    assert not result.outcome.complete
    assert result.outcome.log_z is None
    assert result.usage.nfe < 640
    assert torch.isfinite(result.outcome.scores.total).all()


def test_a_search_that_overdraws_its_budget_is_stopped():
    _, model = mixture(steps=10)

    def body(problem):
        x = problem.initial(range(4))
        for _ in range(10):
            yield Denoise(x, problem.grid[0])

    jobs = jobs_for(model, ["a"], Custom(body), budget=Budget(nfe=9))
    [result] = Engine(model, FunctionReward()).run(jobs)
    assert isinstance(result.error.__cause__, BudgetExceeded)
    assert result.usage.nfe == 8


def test_progress_is_reported():
    problem, model = mixture(steps=5)
    seen = []
    run(model, problem.reward, jobs_for(model, PROMPTS, BestOfN(2)), on_progress=seen.append)
    assert seen[-1].finished == len(PROMPTS)
    assert seen[-1].usage.nfe == 2 * 5 * len(PROMPTS)
    assert [p.finished for p in seen] == sorted(p.finished for p in seen)


def test_gradients_equal_finite_differences_and_count_backward_rows():
    problem, model = mixture("quadratic", steps=5)
    found = {}

    def body(problem_):
        x_t = problem_.initial(range(3))
        t = problem_.grid[2]
        posterior = yield Denoise(x_t, t, keep_graph=True)
        scores = yield Score(posterior.x_0, Stage.INTERMEDIATE, grad_to=x_t)
        found["grad"], eps = scores.grad, 1e-2
        direction = torch.ones_like(x_t)
        ends = []
        for sign in (1, -1):
            p = yield Denoise(x_t.detach() + sign * eps * direction, t)
            s = yield Score(p.x_0)
            ends.append(s.total)
        found["difference"] = (ends[0] - ends[1]) / (2 * eps)
        clean = yield Score(posterior.x_0.detach(), grad_to=None)
        x_0 = posterior.x_0.detach()
        direct = yield Score(x_0, grad_to=x_0)
        found["direct"] = direct.grad
        return outcome(x_0, clean)

    [result] = run(model, problem.reward, jobs_for(model, ["a"], Custom(body)), batch_size=2)
    torch.testing.assert_close(
        found["grad"].sum(1).double(), found["difference"], rtol=2e-3, atol=2e-3
    )
    assert found["direct"].shape == (3, 2)
    assert result.usage.backwards == 3


def test_gradients_reach_the_initial_noise_through_a_rollout():
    problem, model = mixture("quadratic", steps=5)
    found = {}

    def body(problem_):
        x_t = problem_.initial(range(2)).requires_grad_()
        x_0 = yield Rollout(x_t, 0, DDIM(0.0), keep_graph=True)
        scores = yield Score(x_0, Stage.FINAL, grad_to=x_t)
        found["grad"] = scores.grad
        ends = []
        for sign in (1, -1):
            moved = yield Rollout(x_t.detach() + sign * 1e-2, 0, DDIM(0.0))
            s = yield Score(moved)
            ends.append(s.total)
        found["difference"] = (ends[0] - ends[1]) / 2e-2
        return outcome(x_0.detach(), scores)

    [result] = run(model, problem.reward, jobs_for(model, ["a"], Custom(body)))
    torch.testing.assert_close(
        found["grad"].sum(1).double(), found["difference"], rtol=1e-2, atol=1e-2
    )
    assert result.usage.backwards == 2 * 5


def test_a_gradient_that_was_not_kept_is_an_error():
    _, model = mixture(steps=5)

    def body(problem):
        x_t = problem.initial(range(2)).requires_grad_()
        posterior = yield Denoise(x_t.detach(), problem.grid[0])
        yield Score(posterior.x_0, grad_to=x_t)

    [result] = Engine(model, FunctionReward()).run(jobs_for(model, ["a"], Custom(body)))
    assert "keep_graph" in str(result.error)


def test_draw_ids_are_never_reused():
    _, model = mixture(steps=5)

    def body(problem):
        problem.initial([0])
        yield Denoise(problem.initial([0]), problem.grid[0])

    [result] = Engine(model, FunctionReward()).run(jobs_for(model, ["a"], Custom(body)))
    assert "already used" in str(result.error)


def test_rows_at_different_times_share_a_call():
    problem, inner = mixture(steps=5)
    model = Recorder(inner)
    found = {}

    def body(problem_):
        x = problem_.initial(range(3))
        times = [problem_.grid[i] for i in (0, 2, 4)]
        posterior = yield Denoise(x, times)
        alone = []
        for row, t in zip(x, times, strict=True):
            p = yield Denoise(row[None], t)
            alone.append(p.x_0)
        found["fused"], found["alone"] = posterior.x_0, torch.cat(alone)
        scores = yield Score(posterior.x_0)
        return outcome(posterior.x_0, scores)

    run(model, problem.reward, jobs_for(model, ["a"], Custom(body)))
    torch.testing.assert_close(found["fused"], found["alone"])
    assert model.denoised[0] == 3


def test_grad_mode_and_threads_are_left_as_they_were():
    problem, model = mixture(steps=4)
    threads = torch.get_num_threads()
    iterator = Engine(model, problem.reward, deterministic=True).run(
        jobs_for(model, PROMPTS, BestOfN(1))
    )
    next(iterator)
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"bucket": 0}, {"non_finite": "ignore"}])
def test_bad_engine_options_are_refused(option):
    problem, model = mixture(steps=4)
    with pytest.raises(ValueError, match=next(iter(option))):
        Engine(model, problem.reward, **option)


def test_rewards_of_one_row_are_scored_in_one_call():
    """So held-out rewards that share an encoder share its forward."""
    made = []

    class Sharing(FunctionReward):
        def __call__(self, media, features):
            with scoring_call() as memo:
                memo.get("embedding", media, lambda: made.append(len(media)))
            return super().__call__(media, features)

    problem, model = mixture()
    held_out = {name: Sharing(name=name) for name in ("one", "other")}
    jobs = jobs_for(model, ["a"], BestOfN(3))
    run(model, problem.reward, jobs, held_out=held_out)
    assert made == [1]


def test_a_held_out_reward_needs_a_name_of_its_own():
    problem, model = mixture(steps=4)
    with pytest.raises(ValueError, match="goes by the name of the searched one"):
        Engine(model, problem.reward, held_out={problem.reward.name: FunctionReward()})


def test_a_failing_neighbour_costs_nobody_else():
    """What is run again for a neighbour's sake is counted apart, and not against the budget."""
    _, model = mixture(steps=10)

    def points(x, prompts):
        if "bad" in prompts:
            raise ZeroDivisionError("no score")
        return x[:, 0]

    search = FKSteering(4, value=SoftValue(4), start=5, every=20)
    exact = search.plan(facts(Engine(model, FunctionReward(points)))).cost
    budget = Budget(nfe=int(exact.nfe), decodes=int(exact.decodes))
    jobs = jobs_for(model, ["good", "bad"], search, budget=budget)
    results = {
        r.job.item.prompt: r for r in Engine(model, FunctionReward(points), batch_size=8).run(jobs)
    }
    assert results["bad"].error is not None
    assert results["good"].error is None
    assert results["good"].usage.decodes == exact.decodes
    [alone] = run(model, FunctionReward(points), jobs[:1])
    torch.testing.assert_close(results["good"].outcome.x_0, alone.outcome.x_0)


def test_pictures_are_rendered_in_pieces_that_fit():
    problem, inner = mixture(steps=4)
    sizes = []

    class Narrow(Recorder):
        def render(self, x_0, conditioning):
            if len(x_0) > 3:
                raise torch.OutOfMemoryError("too many")
            sizes.append(len(x_0))
            return list(x_0)

    model = Narrow(inner)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(10, returns="all")))
    assert len(result.media) == 10
    assert max(sizes) <= 3


@pytest.mark.parametrize("deterministic", [False, True])
def test_searches_that_end_together_are_rendered_and_judged_together(deterministic):
    """One call for all; in deterministic mode one a search, whose bits then know no neighbour."""
    problem, inner = mixture(steps=4)
    rendered, judged = [], []

    class Watched(Recorder):
        def render(self, x_0, conditioning):
            assert len(conditioning) == len(x_0)
            rendered.append(len(x_0))
            return list(x_0)

    def judge(x, prompts):
        judged.append(len(x))
        return x[:, 0]

    engine = Engine(
        Watched(inner),
        problem.reward,
        held_out={"first": FunctionReward(judge)},
        batch_size=64,
        bucket=16,
        deterministic=deterministic,
    )
    jobs = jobs_for(inner, ["a", "b", "c"], BestOfN(4, in_flight=4, returns="all"))
    for result in engine.run(jobs):
        chosen = result.outcome.x_0[result.outcome.chosen]
        assert torch.equal(torch.stack(result.media), chosen)
        torch.testing.assert_close(result.held_out["first"], chosen[:, 0].tolist())
        assert (result.usage.renders, result.usage.held_out_calls) == (4, 4)
    assert rendered == ([4, 4, 4] if deterministic else [12])
    assert len(judged) == (3 if deterministic else 1)


def test_time_counts_within_the_first_candidates_of_best_of_n():
    import time

    _, model = mixture(steps=4)

    def slow(x, prompts):
        time.sleep(5e-3 * len(x))
        return x[:, 0]

    jobs = jobs_for(model, ["a"], BestOfN(16), budget=Budget(seconds=0.02))
    [result] = run(model, FunctionReward(slow), jobs)
    assert not result.outcome.complete
    assert result.usage.nfe < 16 * 4


def test_fk_with_lookahead_survives_the_end_of_its_time():
    import time

    _, model = mixture(steps=10)

    def slow(x, prompts):
        time.sleep(2e-3 * len(x))
        return x[:, 0]

    search = FKSteering(4, value=SoftValue(2), start=1, every=1)
    jobs = jobs_for(model, ["a"], search, budget=Budget(seconds=0.03))
    [result] = run(model, FunctionReward(slow), jobs)
    assert not result.outcome.complete
