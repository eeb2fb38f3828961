"""Whole calls of a pipeline: the same pictures as its own, counted, and left as it was found."""

import copy
from dataclasses import replace

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from rewards import PythonFunction
from samplers import BestOfN, FKSteering, ReNO, ZeNO, ZeroOrder
from steering import DDIM, SteeredPipeline
from steering.adapters import Refusal, enter
from steering.cost import Budget
from steering.engine import MissingAbility
from steering.report import SteeringFailed
from steering.search import BudgetTooSmall
from steering.strength import Strength

CALL = {"num_inference_steps": 3}
PICTURE = PIL.Image.fromarray(np.full((16, 16, 3), 90, dtype=np.uint8))
MASK = PIL.Image.fromarray(np.eye(16, dtype=np.uint8) * 255)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


REWARD = PythonFunction(brightness)


def control(tiny):
    network = diffusers.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        in_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(8, 8),
    )
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **tiny.parts(tiny.sd()), controlnet=tiny.lively(network), requires_safety_checker=False
    )
    return pipe, {**CALL, "image": PICTURE}


def inpaint(tiny):
    call = {**CALL, "image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}
    return tiny.inpaint(channels=4), {**call, "strength": 1.0}


def several_text_encoders(tiny):
    return tiny.sdxl(diffusers.EDMEulerScheduler()), {**CALL, "height": 16, "width": 16}


def stochastic(tiny):
    return tiny.sd(diffusers.EulerAncestralDiscreteScheduler(**tiny.SD_BETAS)), CALL


def packed(tiny):
    return tiny.flux(), {**CALL, "height": 16, "width": 16}


PIPES = {f.__name__: f for f in (control, inpaint, stochastic, packed)}


@pytest.fixture(params=PIPES)
def case(request, tiny):
    return PIPES[request.param](tiny)


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def steered(pipe, sampler, **options):
    options = {"door": "black-box", **options}
    return SteeredPipeline(pipe, sampler=sampler, reward=REWARD, seed=3, **options)


def test_one_candidate_is_the_pipelines_own_picture(case):
    pipe, call = case
    own = pipe("a cat", generator=seeded(), output_type="np", **call).images
    run = steered(pipe, BestOfN(n=1))
    found = run("a cat", generator=seeded(), output_type="np", **call)
    assert np.abs(found.images - own).max() < 1e-4


def test_each_prompt_goes_on_with_its_own_generator(case):
    pipe, call = case
    prompts, seeds = ["a cat", "two red cubes"], [7, 8]
    own = [
        pipe(prompt, generator=seeded(seed), output_type="pt", **call).images
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    run = steered(pipe, BestOfN(n=1))
    generators = [seeded(seed) for seed in seeds]
    found = run(prompts, generator=generators, output_type="pt", **call).images
    assert (found - torch.cat(own)).abs().max() < 1e-4


def test_one_generator_draws_for_all_prompts_as_in_the_pipeline(tiny):
    pipe, call = control(tiny)
    prompts, copies = ["a cat", "two red cubes"], {"num_images_per_prompt": 2, "output_type": "pt"}
    own = pipe(prompts, generator=seeded(), **copies, **call).images
    found = steered(pipe, BestOfN(n=1))(prompts, generator=seeded(), **copies, **call).images
    assert (found - own).abs().max() < 1e-4


def test_given_latents_start_the_first_candidate(tiny):
    pipe, call = control(tiny)
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    own = pipe("a cat", latents=latents, output_type="pt", **call).images
    found = steered(pipe, BestOfN(n=1))("a cat", latents=latents, output_type="pt", **call)
    assert (found.images - own).abs().max() < 1e-4


@pytest.mark.parametrize("scheduler", [None, "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_reference_pipeline_gives_what_replay_gives(tiny, scheduler):
    pipe = tiny.sd(scheduler and getattr(diffusers, scheduler)(**tiny.SD_BETAS))
    pictures = []
    for door in ("replay", "black-box"):
        run = steered(pipe, BestOfN(n=3, returns="all"), door=door)
        out = run(["a cat", "two red cubes"], output_type="pt", **CALL)
        assert out.steering.settings["door"] == door
        assert out.steering.usage.nfe == 2 * 3 * 3
        assert out.steering.usage.passes == 2 * 2 * 3 * 3
        pictures.append(out.images)
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] - pictures[1]).abs().max() < 1e-4


def test_pictures_do_not_depend_on_packing(case):
    pipe, call = case
    prompts = ["a cat", "two red cubes on a table"]
    runs = [steered(pipe, BestOfN(n=2, returns="all"), batch_size=size) for size in (1, 3, 16)]
    found = [run(prompts, output_type="pt", **call).images for run in runs]
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-4


def test_it_is_the_door_where_the_others_refuse_and_says_why(tiny):
    pipe, call = several_text_encoders(tiny)
    run = steered(pipe, BestOfN(n=2), door="auto")
    model = run.model(**call)
    assert model.door == "black-box"
    assert "replay refuses it" in model.reason
    assert "its own loop does not serve" in model.reason
    settings = run("a cat", **call).steering.settings
    assert (settings["door"], settings["reason"]) == ("black-box", model.reason)


def test_an_unmapped_scheduler_is_carried_by_itself(tiny):
    pipe, call = several_text_encoders(tiny)
    own = pipe("a cat", generator=seeded(), output_type="pt", **call).images
    run = steered(pipe, BestOfN(n=1), door="auto")
    found = run("a cat", generator=seeded(), output_type="pt", **call)
    assert "EDMEulerScheduler" in found.steering.settings["reason"]
    assert (found.images - own).abs().max() < 1e-4


@pytest.mark.parametrize(
    "sampler", [ZeroOrder(rounds=1, neighbours=2), ZeNO(rounds=1, samples=2, chains=1)]
)
def test_what_was_planned_is_what_is_spent(tiny, sampler):
    pipe, call = control(tiny)
    run = steered(pipe, sampler, strength=Strength(1.0, "raw"))
    plan = run.plan("a cat", **call)
    usage = run("a cat", **call).steering.usage
    assert (usage.nfe, usage.decodes) == (plan["nfe"], plan["decodes"]) == (9, 3)
    assert 0 < usage.seconds_denoise <= usage.seconds


def test_a_budget_is_kept_and_counts_come_from_the_pipelines_own_call(tiny):
    pipe = tiny.inpaint(channels=9)
    call = {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}
    run = steered(pipe, BestOfN(n=8), budget=Budget(nfe=7))
    call |= {"num_inference_steps": 6, "strength": 1.0, "timesteps": None}
    with pytest.raises(BudgetTooSmall):
        steered(pipe, BestOfN(n=8), budget=Budget(nfe=5))("a", **call)
    assert run("a", **call).steering.usage.nfe == run.plan("a", **call)["nfe"] == 6
    heun = tiny.sd(diffusers.HeunDiscreteScheduler(**tiny.SD_BETAS, steps_offset=1))
    run = steered(heun, BestOfN(n=2))
    assert run("a", **CALL).steering.usage.nfe == run.plan("a", **CALL)["nfe"] == 2 * 5


def test_a_broken_promise_of_a_plan_is_stopped(tiny):
    class Greedy(BestOfN):
        def plan(self, facts):
            return replace(super().plan(facts), settings={"n": 2})

    pipe, call = control(tiny)
    run = steered(pipe, Greedy(n=2), budget=Budget(nfe=5))
    with pytest.raises(SteeringFailed, match="over the budget's nfe=5"):
        run("a", **call)


def test_deterministic_runs_have_equal_bits(tiny):
    pipe, call = control(tiny)
    options = {"deterministic": True, "bucket": 4}
    both = steered(pipe, BestOfN(n=3), **options)(["a", "a cat"], output_type="pt", **call)
    one = steered(pipe, BestOfN(n=3), **options)("a cat", output_type="pt", **call)
    assert torch.equal(both.images[1], one.images[0])
    assert both.steering.usage.nfe == 2 * 3 * 3


def test_lambda_is_calibrated_by_whole_calls(tiny):
    pipe, call = control(tiny)
    out = steered(pipe, ZeNO(rounds=1, samples=2, chains=1))("a cat", **call)
    assert out.steering.lam > 0
    assert out.steering.pilot.nfe == 8 * 3


def test_another_array_is_another_model(tiny):
    pipe, call = control(tiny)
    run = steered(pipe, BestOfN(n=1))
    pictures = torch.zeros(2, 1, 3, 16, 16)
    pictures[1, :, :, 8] = 1.0
    found = [
        run("a", generator=seeded(), output_type="pt", **{**call, "image": picture}).images
        for picture in pictures
    ]
    assert (found[0] - found[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "sampler", [FKSteering(particles=2), BestOfN(n=2, solver=DDIM(0.0)), ReNO()]
)
def test_searches_that_step_are_refused_with_the_reason(tiny, sampler):
    pipe, call = control(tiny)
    with pytest.raises(MissingAbility, match=r"needs .*row by row.*black box.*asked for"):
        steered(pipe, sampler)("a cat", **call)


def test_what_has_no_door_says_why_of_each(tiny):
    pipe = tiny.image_to_image()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(Refusal, match=r"unknown convention.*own loop.*takes no argument 'latents'"):
        enter(pipe, call={"num_inference_steps": 6, "image": PICTURE})
    pipe, call = inpaint(tiny)
    with pytest.raises(Refusal, match=r"something else than plain noise.*strength=1"):
        enter(pipe, call={**call, "num_inference_steps": 6, "strength": 0.6}, door="black-box")
    with pytest.raises(Refusal, match="output_type='latent'"):
        enter(tiny.sd(), call={**CALL, "output_type": "latent"}, door="black-box")
    with pytest.raises(ValueError, match="door must be one of auto, replay, inverted, black-box"):
        enter(tiny.sd(), call=CALL, door="back")
    with pytest.raises(ValueError, match="door must be"):
        steered(tiny.sd(), BestOfN(n=1), door="back")


def test_latents_that_are_ignored_are_noticed(tiny, monkeypatch):
    pipe = tiny.sd()
    own = type(pipe).prepare_latents

    def deaf(self, *args, latents=None, **kwargs):
        return own(self, *args[:7], None)

    monkeypatch.setattr(type(pipe), "prepare_latents", deaf)
    with pytest.raises(Refusal, match="does not start from the latents"):
        enter(pipe, call=CALL, door="black-box")


def test_a_pipeline_that_takes_no_lists_is_called_row_by_row(tiny, monkeypatch):
    pipe = tiny.sd()
    own = type(pipe).encode_prompt

    def single(self, prompt, *args, **kwargs):
        if isinstance(prompt, list) and len(prompt) > 1:
            raise ValueError("one prompt at a time")
        return own(self, prompt, *args, **kwargs)

    prompts = ["a cat", "two red cubes"]
    together = steered(pipe, BestOfN(n=2))(prompts, output_type="pt", **CALL)
    monkeypatch.setattr(type(pipe), "encode_prompt", single)
    apart = steered(pipe, BestOfN(n=2))(prompts, output_type="pt", **CALL)
    assert (together.images - apart.images).abs().max() < 1e-4
    assert apart.steering.usage.nfe == together.steering.usage.nfe


def state_of(pipe):
    modules = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    return {
        "parts": {name: id(value) for name, value in pipe.__dict__.items()},
        "config": copy.deepcopy(dict(pipe.config)),
        "scheduler": {k: str(v) for k, v in pipe.scheduler.__dict__.items()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()
        },
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
    }


def test_the_pipeline_is_left_as_found_also_after_an_error(tiny, monkeypatch):
    pipe, call = control(tiny)
    before = state_of(pipe)
    run = steered(pipe, BestOfN(n=2))
    run("a cat", negative_prompt="a star", **call)
    assert state_of(pipe) == before
    own, calls = pipe.unet.forward, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("broken on the way")
        return own(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(pipe.unet, "forward", fail)
        with pytest.raises(RuntimeError, match="broken on the way"):
            run("a cat", negative_prompt="a star", **call)
    assert state_of(pipe) == before


def test_output_types_are_the_pipelines_own(tiny):
    pipe, call = control(tiny)
    run = steered(pipe, BestOfN(n=1))
    own = pipe("a cat", generator=seeded(), **call)
    found = run("a cat", generator=seeded(), **call)
    assert type(found) is type(own)
    apart = np.asarray(found.images[0]).astype(int) - np.asarray(own.images[0])
    assert np.abs(apart).max() <= 1
    assert run(["a cat"] * 2, output_type="np", **call).images.shape == (2, 16, 16, 3)
