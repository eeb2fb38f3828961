"""The public entry on the embedded models."""

import diffusers
import pytest
import torch
from helpers import FunctionReward

from rewards import PythonFunction, ShapesVerifier
from samplers import BestOfN, FKSteering
from steering.cost import Budget
from steering.engine import MissingAbility
from steering.pipeline import SteeredPipeline
from steering.report import SteeringFailed
from steering.search import BudgetTooSmall
from steering.strength import Strength

PROMPTS = ["a red ring", "two blue squares"]
SD = {"num_inference_steps": 8, "guidance_scale": 2.0}
FLUX = {"num_inference_steps": 8, "true_cfg_scale": 2.0, "height": 64, "width": 64}
BRIGHT = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"],
)
def test_best_of_one_is_the_pipelines_own_image(shapes_sd, scheduler):
    own = shapes_sd.scheduler
    try:
        shapes_sd.scheduler = getattr(diffusers, scheduler).from_config(own.config)
        expected = shapes_sd(PROMPTS, generator=generator(), output_type="pt", **SD).images
        steered = SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=BRIGHT)
        found = steered(PROMPTS, generator=generator(), output_type="pt", **SD)
    finally:
        shapes_sd.scheduler = own
    assert isinstance(found, diffusers.pipelines.stable_diffusion.StableDiffusionPipelineOutput)
    assert float((found.images - expected).abs().max()) < 1e-4


def test_best_of_one_is_the_pipelines_own_image_on_flux(shapes_flux):
    options = FLUX | {"negative_prompt": ""}
    expected = shapes_flux(PROMPTS, generator=generator(), output_type="pt", **options).images
    steered = SteeredPipeline(shapes_flux, sampler=BestOfN(1), reward=BRIGHT)
    found = steered(PROMPTS, generator=generator(), output_type="pt", **options)
    assert float((found.images - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["shapes_sd", "shapes_flux"])
def test_our_own_deterministic_step_is_the_pipelines(name, request):
    """DDIM(0) on the grid of DDIM and of flow Euler meets the same image."""
    from steering.transitions import DDIM

    pipe, call = request.getfixturevalue(name), SD if name == "shapes_sd" else FLUX
    expected = pipe(
        PROMPTS, generator=generator(), output_type="pt", negative_prompt=["", ""], **call
    )
    steered = SteeredPipeline(pipe, sampler=BestOfN(1, solver=DDIM(0.0)), reward=BRIGHT)
    found = steered(PROMPTS, generator=generator(), output_type="pt", negative_prompt="", **call)
    assert float((found.images - expected.images).abs().max()) < 1e-4


def test_given_latents_are_the_first_candidate(shapes_sd):
    latents = torch.randn(2, 4, 16, 16, generator=generator(3))
    expected = shapes_sd(PROMPTS, latents=latents, output_type="pt", **SD).images
    steered = SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=BRIGHT)
    found = steered(PROMPTS, latents=latents, output_type="pt", **SD).images
    assert float((found - expected).abs().max()) < 1e-4


def test_the_report_stands_beside_the_images(shapes_sd, shapes_clip):
    steered = SteeredPipeline(
        shapes_sd,
        sampler=FKSteering(3, start=2, every=2),
        reward=shapes_clip,
        held_out={"accuracy": ShapesVerifier()},
        strength=Strength(1.0, "raw"),
        seed=7,
    )
    out = steered(PROMPTS, num_images_per_prompt=2, **SD)
    report = out.steering
    assert len(out.images) == len(report.results) == len(report.scores) == 4
    assert set(report.scores[0]) == {"shapes-clip", "accuracy"}
    assert report.usage.nfe == 4 * 3 * 8
    assert (report.seed, report.lam) == (7, 1.0)
    assert out.images[0].tobytes() != out.images[1].tobytes()
    plan = steered.plan(PROMPTS, num_images_per_prompt=2, **SD)
    assert plan["nfe"] == report.usage.nfe
    assert plan["decodes"] == report.usage.decodes
    assert plan["seconds"] == "not measured"
    again = steered(PROMPTS[::-1], num_images_per_prompt=2, **SD)
    assert [s["shapes-clip"] for s in again.steering.scores] == pytest.approx(
        [s["shapes-clip"] for s in report.scores[2:] + report.scores[:2]], abs=1e-2
    )


def test_images_of_any_type_and_tuples(shapes_sd):
    steered = SteeredPipeline(shapes_sd, sampler=BestOfN(2), reward=BRIGHT, seed=0)
    arrays = steered(PROMPTS, output_type="np", **SD).images
    assert arrays.shape == (2, 64, 64, 3)
    images, flagged = steered(PROMPTS[0], return_dict=False, **SD)
    assert len(images) == 1
    assert flagged is None


def test_a_pilot_is_counted_and_a_seed_reproduces(shapes_sd):
    steered = SteeredPipeline(shapes_sd, sampler=FKSteering(2, start=1), reward=BRIGHT)
    first = steered(PROMPTS[0], num_inference_steps=2, guidance_scale=2.0)
    assert first.steering.pilot.nfe == 8 * 2
    assert first.steering.usage.nfe == 8 * 2 + 2 * 2
    steered.seed = first.steering.seed
    second = steered(PROMPTS[0], num_inference_steps=2, guidance_scale=2.0)
    assert second.steering.lam == first.steering.lam
    assert second.images[0].tobytes() == first.images[0].tobytes()


def test_failed_prompts_are_named_and_the_others_kept(shapes_sd):
    def score(x, prompts):
        if PROMPTS[1] in prompts:
            raise OSError("no score today")
        return x.mean((1, 2, 3))

    steered = SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=FunctionReward(score))
    with pytest.raises(
        SteeringFailed, match=r"1 of 2 .* 'two blue squares': no score today"
    ) as caught:
        steered(PROMPTS, num_inference_steps=2)
    assert caught.value.report.results[0].media


def test_mistakes_are_refused_before_any_work(shapes_sd, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the denoiser was called")

    steered = SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=BRIGHT)
    steered.model(**SD)
    monkeypatch.setattr(shapes_sd.unet, "forward", never)
    with pytest.raises(ValueError, match="no prompts"):
        steered([], **SD)
    with pytest.raises(TypeError, match="prompt 1 must be a text, got int: 3"):
        steered(["a", 3], **SD)
    with pytest.raises(ValueError, match="num_images_per_prompt"):
        steered("a", num_images_per_prompt=0, **SD)
    with pytest.raises(ValueError, match="2 negative prompts for 1 prompts"):
        steered("a", negative_prompt=["x", "y"], **SD)
    with pytest.raises(TypeError, match="num_inference_steps"):
        steered("a", num_inference_step=3)
    steered.budget = Budget(nfe=7)
    with pytest.raises(BudgetTooSmall, match="nfe=7"):
        steered("a", **SD)


def test_what_is_no_sampler_or_reward_is_refused(shapes_sd):
    with pytest.raises(TypeError, match="sampler must be a Search"):
        SteeredPipeline(shapes_sd, sampler="fk", reward=BRIGHT)
    with pytest.raises(TypeError, match="PythonFunction"):
        SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=lambda x: x)


def test_distilled_models_are_refused_by_searches_that_need_a_posterior_mean(shapes_sd):
    own = shapes_sd.scheduler
    try:
        shapes_sd.scheduler = diffusers.LCMScheduler.from_config(own.config)
        steered = SteeredPipeline(shapes_sd, sampler=FKSteering(2), reward=BRIGHT)
        with pytest.raises(MissingAbility, match="consistency map"):
            steered("a red ring", num_inference_steps=4, guidance_scale=2.0)
    finally:
        shapes_sd.scheduler = own


def test_the_noise_of_a_stochastic_scheduler_follows_seed_prompt_and_draw(shapes_sd):
    own = shapes_sd.scheduler
    call = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
    latents = torch.zeros(2, 4, 16, 16)  # so that only the steps' noise can tell images apart
    try:
        shapes_sd.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(own.config)
        steered = SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=BRIGHT, seed=1)
        first, twin = steered(["a red ring"] * 2, latents=latents, **call).images
        again, _ = steered(["a red ring"] * 2, latents=latents, **call).images
        steered.seed = 2
        other, _ = steered(["a red ring"] * 2, latents=latents, **call).images
    finally:
        shapes_sd.scheduler = own
    assert torch.equal(first, again)
    assert not torch.equal(first, twin)
    assert not torch.equal(first, other)


def test_a_changed_scheduler_is_learned_anew(shapes_sd):
    own = shapes_sd.scheduler
    steered = SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=BRIGHT)
    call = SD | {"output_type": "pt"}
    try:
        steered(PROMPTS, generator=generator(), **call)
        shapes_sd.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(own.config)
        expected = shapes_sd(PROMPTS, generator=generator(), **call).images
        found = steered(PROMPTS, generator=generator(), **call).images
    finally:
        shapes_sd.scheduler = own
    assert float((found - expected).abs().max()) < 1e-4


def test_metadata_reach_rewards_in_the_pilot_too(shapes_sd):
    class Counting(FunctionReward):
        def prepare(self, item):
            return item.metadata["n"]

    reward = Counting(lambda x, n: x.mean((1, 2, 3)) * torch.tensor(n))
    steered = SteeredPipeline(shapes_sd, sampler=FKSteering(2, start=1), reward=reward, seed=0)
    call = {"num_inference_steps": 2, "guidance_scale": 2.0}
    assert steered("a ring", metadata=[{"n": 3.0}], **call).images
    with pytest.raises(ValueError, match="0 metadata for 1 prompts"):
        steered("a ring", metadata=[], **call)


def test_unknown_options_are_refused_at_once(shapes_sd):
    with pytest.raises(TypeError, match=r"no option 'batchsize'.*'batch_size'"):
        SteeredPipeline(shapes_sd, sampler=BestOfN(1), reward=BRIGHT, batchsize=3)
