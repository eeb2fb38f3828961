"""What cannot be replayed is refused with its reason, and the user's pipeline is left as found."""

import itertools

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from as_found import state_of

from steering.adapters import Refusal, adapt
from steering.model import Stage

CALL = {"num_inference_steps": 3}
PICTURE = PIL.Image.fromarray(np.full((16, 16, 3), 90, dtype=np.uint8))
FLUX = {"num_inference_steps": 3, "height": 16, "width": 16}


def test_the_pipeline_is_left_as_found(tiny):
    pipe = tiny.flux()
    before = state_of(pipe)
    model = adapt(pipe, call=FLUX)
    handles = model.encode(["a", "cat"], generator=torch.Generator().manual_seed(0))
    x_0 = model.denoise(handles[0].initial, [model.grid[0]], handles[:1]).x_0
    model.decode(x_0, handles[:1], Stage.FINAL)
    model.render(x_0, handles[:1])
    model.scheduler_run(handles[0], [0], [0])
    assert state_of(pipe) == before


@pytest.mark.parametrize("call", [{"timesteps": [900, 500]}, {"num_inference_steps": 1}])
def test_the_pipeline_is_left_as_found_after_an_error(tiny, call):
    pipe = tiny.sd()
    before = state_of(pipe)
    with pytest.raises(ValueError, match="step"):
        adapt(pipe, call={**CALL, **call})
    assert state_of(pipe) == before


def test_an_upcast_autoencoder_is_cast_back_after_an_error(tiny, monkeypatch):
    pipe = tiny.sd()
    model = adapt(pipe, call=CALL)

    def fail(*_, **__):
        pipe.vae.to(dtype=torch.float64)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pipe.vae, "decode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.render(torch.zeros(1, *model.shape), model.encode(["a"]))
    assert pipe.vae.dtype == torch.float32


def test_what_is_no_pipeline(tiny):
    with pytest.raises(Refusal, match="no diffusers pipeline"):
        adapt(torch.nn.Linear(1, 1))
    pipe = tiny.sd()
    pipe.scheduler = None
    with pytest.raises(Refusal, match="no scheduler"):
        adapt(pipe)


def test_arguments_are_checked_by_name(tiny):
    pipe = tiny.sd()
    with pytest.raises(TypeError, match=r"guidance_scal'.*nearest is 'guidance_scale'"):
        adapt(pipe, call={"guidance_scal": 3.0})
    with pytest.raises(TypeError, match="encode"):
        adapt(pipe, call={"generator": torch.Generator()})
    with pytest.raises(TypeError, match="callback"):
        adapt(pipe, call={"callback_on_step_end": lambda *_: {}})


def test_unknown_prediction_type(tiny):
    pipe = tiny.sd()
    pipe.scheduler.register_to_config(prediction_type="score")
    with pytest.raises(Refusal, match=r"score.*epsilon"):
        adapt(pipe, call=CALL)


def test_unmapped_scheduler(tiny):
    with pytest.raises(Refusal, match=r"EDMEulerScheduler.*supported are DDIM"):
        adapt(tiny.sd(diffusers.EDMEulerScheduler()), call=CALL)


def test_a_single_step_does_not_tell_what_changes(tiny):
    with pytest.raises(Refusal, match="at least 2"):
        adapt(tiny.sd(), call={"num_inference_steps": 1})


def test_feature_caching(tiny):
    pipe = tiny.flux()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(Refusal, match="disable_cache"):
        adapt(pipe, call=FLUX)


def test_two_networks_a_step(tiny):
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
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **tiny.parts(tiny.sd()), controlnet=control, requires_safety_checker=False
    )
    with pytest.raises(Refusal, match="several networks"):
        adapt(pipe, call={**CALL, "image": PICTURE})


def test_latents_changed_between_steps(tiny):
    pipe = tiny.inpaint(channels=4)
    mask = PIL.Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    call = {**CALL, "image": PICTURE, "mask_image": mask, "height": 16, "width": 16}
    with pytest.raises(Refusal, match="changes the latents between"):
        adapt(pipe, call=call)


def test_a_start_part_way(tiny):
    with pytest.raises(Refusal, match="start from noise"):
        adapt(tiny.image_to_image(), call={"num_inference_steps": 6, "image": PICTURE})


def test_guidance_that_depends_on_the_step(tiny, monkeypatch):
    pipe = tiny.sd()
    kind = type(pipe)
    scale = kind.guidance_scale.fget
    counter = itertools.count()
    drifting = property(lambda self: scale(self) + 0.1 * next(counter))
    monkeypatch.setattr(kind, "guidance_scale", drifting)
    with pytest.raises(Refusal, match="joined in an unknown way"):
        adapt(pipe, call=CALL)


def test_arguments_that_depend_on_the_step(tiny, monkeypatch):
    counter = itertools.count(1)
    drifting = property(lambda self: {"scale": float(next(counter))})
    monkeypatch.setattr(diffusers.FluxPipeline, "joint_attention_kwargs", drifting)
    with pytest.raises(Refusal, match=r"what changes is: .*scale"):
        adapt(tiny.flux(), call=FLUX)
