"""The inverted loop gives what the pipeline's own call gives, and leaves the pipeline alone."""

import copy
import inspect

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from steering.adapters.inverted import InvertedLoop

PICTURE = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
MASK = PIL.Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
CALL = {"prompt": ["a red cat", "two"], "num_inference_steps": 4, "output_type": "np"}


def control_net(tiny):
    torch.manual_seed(1)
    control = diffusers.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        in_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(8, 8),
    )
    return diffusers.StableDiffusionControlNetPipeline(
        **tiny.parts(tiny.sd()), controlnet=tiny.lively(control), requires_safety_checker=False
    )


PICTURES = {"image": [PICTURE, PICTURE]}
CASES = {
    "sd": (lambda tiny: tiny.sd(), {}),
    "sd-euler": (
        lambda tiny: tiny.sd(diffusers.EulerDiscreteScheduler(**tiny.SD_BETAS)),
        {},
    ),
    "controlnet": (control_net, PICTURES),
    "blending-inpaint": (
        lambda tiny: tiny.inpaint(channels=4),
        {**PICTURES, "mask_image": [MASK, MASK], "height": 16, "width": 16},
    ),
    "image-to-image": (lambda tiny: tiny.image_to_image(), PICTURES),
    "flux": (lambda tiny: tiny.flux(), {"height": 16, "width": 16}),
    "pixart": (
        lambda tiny: tiny.pixart(),
        {"height": 16, "width": 16, "use_resolution_binning": False},
    ),
}


def seeded():
    return torch.Generator().manual_seed(3)


def reference(pipe, call):
    """The pipeline's own call, each of its steps recorded on a copy."""
    twin, steps = copy.copy(pipe), []
    scheduler = copy.deepcopy(pipe.scheduler)
    real = type(scheduler).step

    class Watched(type(scheduler)):
        def step(self, model_output, timestep, sample, *args, **kwargs):
            after = real(self, model_output, timestep, sample, *args, **kwargs)
            steps.append((model_output.clone(), timestep, sample.clone(), after[0].clone()))
            return after

    Watched.step.__signature__ = inspect.signature(real)
    scheduler.__class__ = Watched
    twin.__dict__["scheduler"] = scheduler
    return twin(**call, generator=seeded()).images, steps


@pytest.mark.parametrize("case", CASES)
def test_the_whole_trajectory_and_the_picture_are_the_pipelines(tiny, case):
    build, extra = CASES[case]
    pipe, call = build(tiny), {**CALL, **extra}
    wanted, steps = reference(pipe, call)
    parts = {name: id(value) for name, value in pipe.__dict__.items()}
    with InvertedLoop(pipe, {**call, "generator": seeded()}) as loop:
        turn = loop.first
        for index, (output, _, sample, after) in enumerate(steps):
            torch.testing.assert_close(turn.sample, sample, rtol=0, atol=1e-5)
            torch.testing.assert_close(turn.output, output, rtol=0, atol=1e-5)
            if index + 1 < len(steps):
                turn = loop.predict(after, steps[index + 1][1])
        found = loop.finish(steps[-1][3]).images
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert loop.rows == 2 * len(steps)
    assert {name: id(value) for name, value in pipe.__dict__.items()} == parts


@pytest.mark.parametrize("case", ["sd", "sd-euler", "flux", "pixart"])
def test_times_in_any_order(tiny, case):
    build, extra = CASES[case]
    pipe, call = build(tiny), {**CALL, **extra}
    _, steps = reference(pipe, call)
    with InvertedLoop(pipe, {**call, "generator": seeded()}) as loop:
        for index in (3, 0, 2, 2, 1, 0, 3):  # more turns than the schedule has
            output, timestep, sample, _ = steps[index]
            turn = loop.predict(sample, timestep)
            torch.testing.assert_close(turn.output, output, rtol=0, atol=1e-5)


def test_the_output_depends_on_state_time_prompt_and_control(tiny):
    pipe = control_net(tiny)

    def first(prompt="a red cat", picture=PICTURE, other=None):
        call = {**CALL, "prompt": [prompt], "image": [picture], "generator": seeded()}
        with InvertedLoop(pipe, call) as loop:
            x, time = loop.first.sample, loop.first.timestep
            return loop.predict(*(other or (lambda x, t: (x, t)))(x, time)).output

    base = first()
    white = PIL.Image.fromarray(np.full((16, 16, 3), 255, dtype=np.uint8))
    for changed in (
        first(other=lambda x, t: (x + 0.1, t)),
        first(other=lambda x, t: (x, t - 500)),
        first(prompt="two"),
        first(picture=white),
    ):
        assert float((changed - base).abs().max()) > 1e-3


def test_a_closed_loop_and_an_error_leave_the_pipeline_as_found(tiny, monkeypatch):
    pipe = tiny.sd()
    before = {n: id(v) for n, v in pipe.__dict__.items()}, str(pipe.scheduler.__dict__)
    loop = InvertedLoop(pipe, {**CALL, "generator": seeded()})
    assert torch.is_grad_enabled()
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="has ended"):
        loop.predict(loop.first.sample, 1)

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    loop = InvertedLoop(pipe, {**CALL, "generator": seeded()})
    monkeypatch.setattr(pipe.unet, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.predict(loop.first.sample, loop.grid[1])
    assert torch.is_grad_enabled()
    assert ({n: id(v) for n, v in pipe.__dict__.items()}, str(pipe.scheduler.__dict__)) == before


def test_the_batch_is_fixed(tiny):
    with (
        InvertedLoop(tiny.sd(), {**CALL, "generator": seeded()}) as loop,
        pytest.raises(ValueError, match="fixed by its call"),
    ):
        loop.predict(loop.first.sample[:1], 1)
