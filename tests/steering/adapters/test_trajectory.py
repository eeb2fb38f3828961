"""Replay through the pipeline's own scheduler gives the pipeline's own pictures."""

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from steering.adapters import adapt
from steering.model import Stage

PROMPTS = ["a red ring", "two blue cube on the left"]
SIZE = {"num_inference_steps": 4, "height": 16, "width": 16}

SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++ karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "zero snr": (
        diffusers.DDIMScheduler,
        {
            "clip_sample": False,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
    ),
}


def agree(model, pipe, call, walk, negative=None, tolerance=1e-4):
    """Ends and pictures of the walk against the pipeline's own, from one generator."""
    own = dict(call, prompt=list(PROMPTS))
    if negative is not None:
        own["negative_prompt"] = [negative] * 2
    latents = pipe(**own, generator=torch.Generator().manual_seed(3), output_type="latent")[0]
    pictures = pipe(**own, generator=torch.Generator().manual_seed(3), output_type="np")[0]
    handles = model.encode(
        PROMPTS, generator=torch.Generator().manual_seed(3), negative_prompts=negative
    )
    ends = walk(model, handles)
    scale = max(1.0, float(latents.abs().max()))
    assert float((ends - latents).abs().max()) < tolerance * scale
    found = model.decode(ends, handles, Stage.FINAL).detach().permute(0, 2, 3, 1).numpy()
    assert np.abs(found - pictures).max() < tolerance
    for rendered, picture in zip(model.render(ends, handles), pictures, strict=True):
        difference = np.asarray(rendered, dtype=int) - (picture * 255).round()
        assert np.abs(difference).max() <= 1 + 255 * tolerance


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stable_diffusion(tiny, walk, name):
    kind, options = SCHEDULERS[name]
    pipe = tiny.sd(kind(**tiny.SD_BETAS, **options))
    call = {"num_inference_steps": 4}
    model = adapt(pipe, call=call)
    assert model.passes == 2
    assert model.abilities.gradients
    agree(model, pipe, call, walk)


def test_negative_prompts(tiny, walk):
    pipe = tiny.sd()
    call = {"num_inference_steps": 3, "guidance_scale": 4.0}
    model = adapt(pipe, call=call)
    agree(model, pipe, call, walk, negative="green cat")
    given = adapt(pipe, call={**call, "negative_prompt": "green cat"})
    plain, shared = model.encode(PROMPTS), given.encode(PROMPTS)
    x = torch.randn(2, *model.shape)
    times = [model.grid[1]] * 2
    with torch.no_grad():
        a, b = model.denoise(x, times, plain), given.denoise(x, times, shared)
        named = model.denoise(x, times, model.encode(PROMPTS, negative_prompts="green cat"))
    assert float((a.x_0 - b.x_0).abs().max()) > 1e-3
    assert torch.equal(named.x_0, b.x_0)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_rescaling(tiny, walk, rescale):
    pipe = tiny.sd()
    call = {"num_inference_steps": 3, "guidance_rescale": rescale}
    model = adapt(pipe, call=call)
    agree(model, pipe, call, walk)


def test_no_guidance_costs_one_pass(tiny, walk):
    pipe = tiny.sd()
    call = {"num_inference_steps": 3, "guidance_scale": 1.0}
    model = adapt(pipe, call=call)
    assert model.passes == 1
    agree(model, pipe, call, walk)


@pytest.mark.parametrize(
    ("guidance_embeds", "extra"),
    [(False, {}), (True, {"guidance_scale": 2.5}), (False, {"sigmas": [1.0, 0.7, 0.5, 0.2]})],
)
def test_flux(tiny, walk, guidance_embeds, extra):
    pipe = tiny.flux(guidance_embeds)
    model = adapt(pipe, call={**SIZE, **extra})
    assert model.passes == 1
    assert model.scheduler_calls() == 4
    agree(model, pipe, {**SIZE, **extra}, walk)


def test_flux_true_guidance_needs_its_negative_prompt(tiny, walk):
    pipe = tiny.flux()
    call = {**SIZE, "true_cfg_scale": 3.0}
    model = adapt(pipe, call=call)
    agree(model, pipe, call, walk)
    assert model.passes == 1
    agree(model, pipe, call, walk, negative="green cat")
    assert model.passes == 2
    agree(model, pipe, call, walk)
    assert model.passes == 1


def test_flux_dynamic_shift(tiny, walk):
    pipe = tiny.flux(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    agree(adapt(pipe, call=SIZE), pipe, SIZE, walk)


PICTURE = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
MASK = PIL.Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
FAMILIES = {
    "sdxl": {},
    "sd3": {},
    "pixart": {"use_resolution_binning": False, "clean_caption": False},
    "kontext": {"image": PICTURE, "max_area": 256, "_auto_resize": False},
    "z_image": {"height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 16},
    "qwen": {"height": 32, "width": 32},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(tiny, walk, name):
    pipe = getattr(tiny, name)()
    call = {**SIZE, **FAMILIES[name]}
    agree(adapt(pipe, call=call), pipe, call, walk)


def test_guidance_that_keeps_a_norm(tiny, walk):
    pipe = tiny.qwen()
    call = {**SIZE, "height": 32, "width": 32, "true_cfg_scale": 3.0}
    agree(adapt(pipe, call=call), pipe, call, walk, negative="cat")
    pipe = tiny.z_image()
    call = {**SIZE, **FAMILIES["z_image"], "cfg_normalization": True}
    agree(adapt(pipe, call=call), pipe, call, walk)


def test_inpainting_by_channels(tiny, walk):
    call = {**SIZE, "image": PICTURE, "mask_image": MASK}
    pipe = tiny.inpaint(channels=9)
    agree(adapt(pipe, call=call), pipe, call, walk)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tiny, walk, dtype):
    pipe = tiny.flux().to(dtype)
    model = adapt(pipe, call=SIZE)
    handles = model.encode(PROMPTS, generator=torch.Generator().manual_seed(0))
    assert handles[0].initial.dtype == torch.float32
    agree(model, pipe, SIZE, walk, tolerance=5e-2)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (diffusers.EulerAncestralDiscreteScheduler, {}),
        (diffusers.LCMScheduler, {}),
        (diffusers.DDIMScheduler, {"eta": 0.7}),
    ],
)
def test_stochastic_schedulers_go_on_with_the_users_generators(tiny, walk, kind, call):
    options = {"clip_sample": False} if kind is diffusers.DDIMScheduler else {}
    pipe = tiny.sd(kind(**tiny.SD_BETAS, **options))
    call = {"num_inference_steps": 4, **call}
    own = pipe(prompt=PROMPTS, generator=_generators(), output_type="latent", **call)[0]
    model = adapt(pipe, call=call)
    ends = walk(model, model.encode(PROMPTS, generator=_generators()))
    assert float((ends - own).abs().max()) < 1e-4 * float(own.abs().max())


def _generators():
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def test_draws_of_a_stochastic_scheduler_do_not_depend_on_their_batch(tiny):
    pipe = tiny.sd(diffusers.EulerAncestralDiscreteScheduler(**tiny.SD_BETAS))
    model = adapt(pipe, call={"num_inference_steps": 3})
    (handle,) = model.encode(["a red ring"])
    x = torch.randn(1, *model.shape).expand(2, -1, -1, -1)
    with torch.no_grad():
        posterior = model.denoise(x, [model.grid[0]] * 2, [handle] * 2)
    both = model.scheduler_run(handle, [4, 9], [14, 19]).step(0, posterior, x)
    alone = model.scheduler_run(handle, [9], [19]).step(0, posterior[1:], x[1:])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])
