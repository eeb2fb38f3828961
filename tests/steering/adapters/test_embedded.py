"""The embedded models: one candidate through the pipeline's own scheduler is the pipeline's picture."""

from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch

import steering
from steering.adapters import adapt
from steering.model import Stage
from steering.transitions import DDIM

WEIGHTS = Path(steering.__file__).parent / "shapes" / "weights"
PROMPTS = ["a red ring", "three squares"]


def loaded(name, kind):
    if not (WEIGHTS / name).is_dir():
        pytest.skip(f"{name} is not in this installation")
    pipe = kind.from_pretrained(WEIGHTS / name, local_files_only=True, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own(pipe, call, output_type, **more):
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt=PROMPTS, generator=generator, output_type=output_type, **call, **more)[0]


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "DPMSolverMultistep"])
def test_shapes_sd(walk, name):
    pipe = loaded("shapes-sd", diffusers.StableDiffusionPipeline)
    options = {"skip_prk_steps": True} if name == "PNDM" else {}
    kind = getattr(diffusers, f"{name}Scheduler")
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    call = {"num_inference_steps": 5, "guidance_scale": 2.0}
    model = adapt(pipe, call=call)
    handles = model.encode(PROMPTS, generator=torch.Generator().manual_seed(3))
    ends = walk(model, handles)
    pictures = model.decode(ends, handles, Stage.FINAL).detach()
    assert float((pictures - own(pipe, call, "pt")).abs().max()) < 1e-4
    if name == "DDIM":
        assert float((ours(model, handles) - own(pipe, call, "latent")).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("options", "negative"),
    [({"guidance_scale": 2.0}, None), ({"true_cfg_scale": 2.0}, ""), ({}, None)],
)
def test_shapes_flux(walk, options, negative):
    pipe = loaded("shapes-flux", diffusers.FluxPipeline)
    call = {"num_inference_steps": 5, "height": 64, "width": 64, **options}
    more = {} if negative is None else {"negative_prompt": [negative] * 2}
    model = adapt(pipe, call=call)
    handles = model.encode(
        PROMPTS, generator=torch.Generator().manual_seed(3), negative_prompts=negative
    )
    ends = walk(model, handles)
    pictures = model.decode(ends, handles, Stage.FINAL).detach()
    assert float((pictures - own(pipe, call, "pt", **more)).abs().max()) < 1e-4
    latents = own(pipe, call, "latent", **more)
    assert float((ours(model, handles) - latents).abs().max()) < 1e-4


@torch.no_grad()
def ours(model, handles):
    """The deterministic DDIM walk of both prompts in one batch."""
    x = torch.cat([handle.initial for handle in handles])
    for t, s in pairwise(model.grid):
        x = DDIM(0.0)(model.denoise(x, [t] * 2, handles), t, s).mean
    return x
