"""A pipeline's own loop as a model: exact, for every search, counted, and the pipeline left alone."""

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from as_found import state_of

from rewards import PythonFunction
from samplers import BestOfN, FKSteering, ReNO, ZeroOrder
from steering import DDIM, SteeredPipeline
from steering.adapters import InvertedModel, Refusal, enter
from steering.live import Job, new_problem
from steering.model import Stage
from steering.reward import Item

CALL = {"num_inference_steps": 4}
PICTURE = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
MASK = PIL.Image.fromarray(np.eye(16, dtype=np.uint8) * 255)


def control(tiny, **call):
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
    return pipe, {**CALL, "image": PICTURE, **call}


def inpaint(tiny):
    call = {**CALL, "image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}
    return tiny.inpaint(channels=4), call


def from_picture(tiny):
    return tiny.image_to_image(), {**CALL, "image": PICTURE, "strength": 0.75}


def perturbed(tiny):
    return tiny.perturbed_attention(), CALL


def classes(tiny):
    return tiny.dit(), CALL


def unconditional(tiny):
    return tiny.ddpm(), CALL


def euler(tiny):
    return tiny.sd(diffusers.EulerDiscreteScheduler(**tiny.SD_BETAS)), CALL


PIPES = {
    f.__name__: f
    for f in (control, inpaint, from_picture, perturbed, classes, unconditional, euler)
}
PROMPT = {"classes": "1"}


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def steered(pipe, sampler, **options):
    return SteeredPipeline(
        pipe,
        sampler=sampler,
        reward=PythonFunction(brightness, differentiable=True),
        seed=3,
        **options,
    )


def asked(name, pipe):
    """The prompt of a case, and how its pipeline is asked for it."""
    prompt = PROMPT.get(name, "a cat")
    if name == "classes":
        return prompt, {"class_labels": [1]}
    return prompt, {} if name == "unconditional" else {"prompt": prompt}


@pytest.mark.parametrize("name", PIPES)
def test_one_candidate_is_the_pipelines_own_picture(tiny, name):
    pipe, call = PIPES[name](tiny)
    prompt, own = asked(name, pipe)
    wanted = pipe(**own, generator=seeded(), output_type="np", **call).images
    before = state_of(pipe)
    run = steered(pipe, BestOfN(n=1), door="inverted")
    found = run(prompt, generator=seeded(), output_type="np", **call)
    assert np.abs(found.images - wanted).max() < 1e-4
    assert found.steering.settings["door"] == "inverted"
    assert state_of(pipe) == before


@pytest.mark.parametrize("name", ["control", "from_picture", "perturbed", "classes"])
def test_rows_mixed_in_a_request_are_each_as_alone(tiny, name):
    pipe, call = PIPES[name](tiny)
    model = InvertedModel(pipe, call)
    prompts = ["0", "1"] if name == "classes" else ["a red cat", "two rings"]
    one, two = model.encode(prompts)
    handles = [one, two, one, one, two]
    times = [model.grid[i] for i in (1, 0, 0, 1, 2)]
    x = torch.randn(5, *model.shape, generator=seeded())
    with torch.no_grad():
        mixed = model.denoise(x, times, handles)
        alone = [
            model.denoise(x[i : i + 1], times[i : i + 1], handles[i : i + 1]) for i in range(5)
        ]
    for i, row in enumerate(alone):
        torch.testing.assert_close(mixed.x_0[i : i + 1], row.x_0, rtol=0, atol=1e-4)
        torch.testing.assert_close(mixed.eps[i : i + 1], row.eps, rtol=0, atol=1e-4)
    assert float((mixed.eps[0] - mixed.eps[1]).abs().max()) > 1e-3
    assert model.tally.asked == 10
    assert model.tally.padding == 0


def test_deterministic_runs_have_equal_bits(tiny):
    pipe, call = control(tiny)
    options = {"deterministic": True, "bucket": 4, "door": "inverted"}
    search = FKSteering(particles=3, start=1, every=1)
    both = steered(pipe, search, **options)(["a", "a cat"], output_type="pt", **call)
    one = steered(pipe, search, **options)("a cat", output_type="pt", **call)
    assert torch.equal(both.images[1], one.images[0])


def test_it_gives_what_replay_gives(tiny):
    pipe = tiny.sd()
    pictures = []
    for door in ("replay", "inverted"):
        run = steered(pipe, FKSteering(particles=3, start=1, every=1), door=door)
        out = run(["a cat", "two red cubes"], output_type="pt", **CALL)
        pictures.append(out.images)
    assert (pictures[0] - pictures[1]).abs().max() < 1e-4
    rows = out.steering.settings["rows"]
    assert rows["asked"] == out.steering.usage.nfe - out.steering.pilot.nfe
    assert rows["padding"] > 0  # three particles in calls of four


def test_gradients_pass_as_through_replay(tiny):
    pipe = tiny.sd()
    found = []
    for door in ("replay", "inverted"):
        model = enter(pipe, call=CALL, door=door)
        (handle,) = model.encode(["a cat"])
        x = torch.randn(1, *model.shape, generator=seeded()).requires_grad_()
        posterior = model.denoise(x, [model.grid[1]], [handle])
        media = model.decode(posterior.x_0, [handle], Stage.INTERMEDIATE)
        found.append(torch.autograd.grad(media.square().sum(), x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "sampler",
    [FKSteering(particles=2, start=1, every=1), BestOfN(n=2, solver=DDIM(0.0)), ReNO(iterations=3)],
)
def test_searches_of_every_kind_run(tiny, sampler):
    pipe, call = control(tiny)
    run = steered(pipe, sampler)
    out = run(["a cat", "two red cubes"], output_type="pt", **call)
    assert out.images.shape == (2, 3, 16, 16)
    assert out.steering.settings["door"] == "inverted"


def test_it_is_the_door_where_replay_refuses_and_says_why(tiny):
    for make in (control, inpaint, from_picture):
        pipe, call = make(tiny)
        model = enter(pipe, call=call)
        assert model.door == "inverted"
        assert "replay refuses it" in model.reason
    model = enter(tiny.sd(), call=CALL)
    assert (model.door, model.reason) == ("replay", "")


def test_a_loop_that_counts_its_turns_goes_in_sequence(tiny):
    pipe, call = control(tiny, control_guidance_end=0.4, num_inference_steps=6)
    model = InvertedModel(pipe, call)
    assert not model.abilities.any_order
    assert "in turn" in model.abilities.why
    wanted = pipe("a cat", generator=seeded(), output_type="np", **call).images
    run = steered(pipe, BestOfN(n=3), door="inverted")
    found = run("a cat", generator=seeded(), output_type="np", **call)
    alone = steered(pipe, BestOfN(n=1), door="inverted")
    own = alone("a cat", generator=seeded(), output_type="np", **call).images
    assert np.abs(own - wanted).max() < 1e-4
    assert found.steering.usage.nfe == 3 * 6
    with pytest.raises(Refusal, match="off the scheduler's grid"):
        model.at(0.0)


def test_noise_starts_on_the_picture(tiny):
    pipe, call = from_picture(tiny)
    model = InvertedModel(pipe, call)
    assert model.origin is not None
    assert model.initial_std == pytest.approx(model.grid[0].sigma, rel=1e-4)
    assert model.scheduler_calls() == 3
    run = steered(pipe, BestOfN(n=4, returns="all"), door="inverted")
    noisy = run("a cat", output_type="pt", **call).images
    own = torch.cat(
        [pipe("a cat", generator=seeded(i), output_type="pt", **call).images for i in range(4)]
    )
    assert float((noisy.mean(0) - own.mean(0)).abs().mean()) < 0.1


def test_the_pipeline_is_left_as_found_after_an_error(tiny, monkeypatch):
    pipe, call = control(tiny)
    before = state_of(pipe)
    run = steered(pipe, BestOfN(n=2), door="inverted")
    run("a cat", **call)
    own, calls = pipe.unet.forward, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("broken on the way")
        return own(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(pipe.unet, "forward", fail)
        with pytest.raises(RuntimeError, match="broken on the way"):
            run("a cat", **call)
    assert state_of(pipe) == before
    run("a cat", **call)
    assert state_of(pipe) == before


def test_classes_are_named_by_number_or_name(tiny):
    pipe = tiny.dit()
    pipe.labels = {"ring": 1}
    model = enter(pipe, call=CALL)
    x = torch.randn(1, *model.shape, generator=seeded())
    both = [
        model.denoise(x, [model.grid[1]], model.encode([prompt])).eps for prompt in ("1", "ring")
    ]
    torch.testing.assert_close(*both)
    with pytest.raises(Refusal, match=r"number or the name.*'rings' \(did you mean 'ring'"):
        model.encode(["rings"])


def test_searches_over_noise_move_around_the_picture(tiny):
    pipe, call = from_picture(tiny)
    model = InvertedModel(pipe, call)
    job = Job(Item("a cat"), "key", BestOfN(n=1), model.encode(["a cat"])[0])
    problem = new_problem(job, model, 1)
    z = torch.randn(3, *model.shape, generator=seeded())
    x = problem.started(z)
    torch.testing.assert_close(problem.unit(x), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(x, model.origin + model.initial_std * z)
    fresh = problem.unit(problem.initial(range(64)))
    assert abs(float(fresh.mean())) < 0.05
    assert abs(float(fresh.std()) - 1) < 0.05
    search = ZeroOrder(rounds=1, neighbours=2)
    out = steered(pipe, search)("a cat", output_type="pt", **call)
    assert out.steering.settings["door"] == "inverted"
