"""What users do with their pipelines goes on working, and the pipeline is left as found."""

import shutil

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import cpu_offload
from as_found import state_of
from helpers import FunctionReward
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from rewards import PythonFunction
from samplers import BestOfN
from steering.adapters import Refusal
from steering.adapters.fingerprint import fingerprint
from steering.adapters.leaves import row_leaf
from steering.pipeline import SteeredPipeline
from steering.report import SteeringFailed

PROMPTS = ["a red ring", "two blue cube on the left"]
BRIGHT = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)))
SD = {"num_inference_steps": 3}
FLUX = {"num_inference_steps": 3, "height": 16, "width": 16}
PICTURE = PIL.Image.fromarray(np.arange(3072, dtype=np.uint16).astype(np.uint8).reshape(32, 32, 3))


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def own(pipe, call, prompts=PROMPTS, **kind):
    kind = {"output_type": "pt", **kind}
    if "negative_prompt" in call:  # the pipelines want as many as prompts; we take one for all
        call = {**call, "negative_prompt": [call["negative_prompt"]] * len(prompts)}
    return pipe(prompt=list(prompts), generator=generator(), **kind, **call)[0]


def far(a, b):
    return float((torch.as_tensor(a).float() - torch.as_tensor(b).float()).abs().max())


def fail(images, features):
    raise OSError("no score today")


def agree(pipe, call, *, without=None, prompts=PROMPTS, tolerance=1e-4, steered=None):
    """BestOfN(1) is the pipeline's own; not what it was without; nothing of the pipeline changed.

    Returns what the pipeline made itself.
    """
    expected = own(pipe, call, prompts)
    if without is not None:
        assert far(expected, without) > 20 * tolerance, "the feature changes nothing: no test"
    before = state_of(pipe)
    steered = steered or SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    found = steered(list(prompts), generator=generator(), output_type="pt", **call)
    assert far(found.images, expected) < tolerance
    assert state_of(pipe) == before
    broken = SteeredPipeline(pipe, sampler=BestOfN(1), reward=FunctionReward(fail), seed=0)
    with pytest.raises(SteeringFailed, match="no score today"):
        broken(list(prompts[:1]), **call)
    assert state_of(pipe) == before
    return expected


@pytest.fixture
def sd(tiny):
    return tiny.sd()


@pytest.fixture(scope="module")
def plain(tiny):
    """Pictures of the tiny Stable Diffusion with nothing added."""
    return own(tiny.sd(), SD)


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory):
    """A folder with a LoRA of the denoiser, as diffusers saves them."""
    pipe = tiny.sd()
    torch.manual_seed(1)
    pipe.unet.add_adapter(lora_config("to_q", "to_k", "to_v", "to_out.0"))
    layers = {k: 3 * v for k, v in get_peft_model_state_dict(pipe.unet).items()}
    folder = tmp_path_factory.mktemp("lora")
    pipe.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def lora_config(*targets):
    return LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), init_lora_weights=False)


def load(pipe, folder):
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")


def test_a_lora_of_the_denoiser_is_live(sd, plain, lora):
    steered = SteeredPipeline(sd, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    assert far(agree(sd, SD, steered=steered), plain) == 0
    learned = steered.model(**SD, output_type="pt")
    load(sd, lora)
    loaded = agree(sd, SD, without=plain, steered=steered)
    half = agree(sd, {**SD, "cross_attention_kwargs": {"scale": 0.5}}, without=loaded)
    assert far(half, plain) > 1e-3
    sd.fuse_lora()
    assert far(agree(sd, SD, without=plain, steered=steered), loaded) < 1e-4
    sd.unfuse_lora()
    agree(sd, SD, without=plain, steered=steered)
    sd.unload_lora_weights()
    assert far(agree(sd, SD, steered=steered), plain) < 1e-5
    assert steered.model(**SD, output_type="pt") is learned


def test_a_lora_on_flux(tiny):
    pipe = tiny.flux()
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    before = agree(pipe, FLUX, steered=steered)
    torch.manual_seed(1)
    pipe.transformer.add_adapter(lora_config("to_q", "to_k", "to_v"), adapter_name="mine")
    on = agree(pipe, FLUX, without=before, steered=steered)
    pipe.set_adapters("mine", 0.3)
    agree(pipe, FLUX, without=on, steered=steered)
    pipe.disable_lora()
    assert far(agree(pipe, FLUX, steered=steered), before) < 1e-5


def test_a_lora_of_a_text_encoder_needs_a_reset(sd, plain):
    steered = SteeredPipeline(sd, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    before = steered(PROMPTS, output_type="pt", **SD).images
    inject_adapter_in_model(lora_config("q_proj", "k_proj", "v_proj"), sd.text_encoder)
    stale = steered(PROMPTS, output_type="pt", **SD).images
    assert far(stale, before) == 0  # what was captured of the prompts is kept ...
    steered.reset()  # ... until told that it is old
    assert far(steered(PROMPTS, output_type="pt", **SD).images, before) > 1e-3
    agree(sd, SD, without=plain, steered=steered)
    for module in sd.text_encoder.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    steered.reset()
    agree(sd, SD, without=plain, steered=steered)


def with_image_prompt(pipe):
    """The pipeline with an IP-Adapter and a tiny image encoder."""
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    weights, place = {}, 1
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            shape = module.to_k.weight.shape
            weights[f"{place}.to_k_ip.weight"] = torch.randn(shape)
            weights[f"{place}.to_v_ip.weight"] = torch.randn(shape)
            place += 2
    projection = {
        "proj.weight": torch.randn(16 * 4, 16),
        "proj.bias": torch.randn(16 * 4),
        "norm.weight": torch.ones(16),
        "norm.bias": torch.zeros(16),
    }
    state = {"image_proj": projection, "ip_adapter": weights}
    pipe.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


def test_image_prompts(tiny, plain):
    pipe = with_image_prompt(tiny.sd())
    picture = agree(pipe, {**SD, "ip_adapter_image": PICTURE}, without=plain)
    other = PIL.Image.fromarray(255 - np.asarray(PICTURE))
    agree(pipe, {**SD, "ip_adapter_image": other}, without=picture)
    pipe.set_ip_adapter_scale(0.3)
    agree(pipe, {**SD, "ip_adapter_image": PICTURE}, without=picture)


def test_embedded_image_prompts(tiny, plain):
    pipe = with_image_prompt(tiny.sd())
    embeds = torch.randn(2, 1, 16, generator=generator(5))
    first = agree(pipe, {**SD, "ip_adapter_image_embeds": [embeds]}, without=plain)
    agree(pipe, {**SD, "ip_adapter_image_embeds": [-embeds]}, without=first)


@pytest.mark.parametrize("what", ["slicing", "tiling", "attention"])
def test_savings_of_memory(sd, what):
    call = {**SD, "height": 32, "width": 32}
    before = own(sd, call)
    if what == "slicing":
        sd.vae.enable_slicing()
    elif what == "tiling":
        sd.vae.enable_tiling()
    else:
        sd.enable_attention_slicing(1)
    agree(sd, call, without=before if what == "tiling" else None)


def test_loaded_in_half_precision(sd, tmp_path):
    """As users load: the folder of a pipeline, with ``torch_dtype``."""
    sd.save_pretrained(tmp_path)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert pipe.unet.dtype is pipe.text_encoder.dtype is torch.float16
    agree(pipe, SD, tolerance=5e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_half_precision(tiny, family, dtype):
    pipe = getattr(tiny, family)().to(dtype)
    agree(pipe, SD if family == "sd" else FLUX, tolerance=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "in_place"), [("eager", False), ("eager", True), ("inductor", False)]
)
def test_a_compiled_denoiser(sd, plain, backend, in_place):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor compiles by g++, which is not installed")
    torch.compiler.reset()
    if in_place:
        sd.unet.compile(backend=backend)
    else:
        sd.unet = torch.compile(sd.unet, backend=backend)
    assert far(agree(sd, SD), plain) < 1e-4


ARGUMENTS = {
    "guidance": ("sd", {"guidance_scale": 2.0}, {}),
    "guidance rescale": ("sd", {"guidance_rescale": 0.7}, {}),
    "negative prompt": ("sd", {"negative_prompt": "green cat"}, {}),
    "height and width": ("sd", {"height": 24, "width": 32}, {"height": 32, "width": 32}),
    "true guidance": (
        "flux",
        {"true_cfg_scale": 3.0, "negative_prompt": "green cat"},
        {},
    ),
    "sigmas": ("flux", {"sigmas": [1.0, 0.7, 0.2]}, {}),
    "flux size": ("flux", {"height": 24, "width": 32}, {"height": 32, "width": 32}),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(tiny, name):
    family, call, without = ARGUMENTS[name]
    pipe, base = getattr(tiny, family)(), SD if family == "sd" else FLUX
    before = own(pipe, {**base, **without})
    call = {**base, **call}
    agree(pipe, call, without=before if before.shape == own(pipe, call).shape else None)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_negative_prompts_and_sizes_elsewhere(tiny, family):
    pipe = getattr(tiny, family)()
    call = {**FLUX, "height": 32, "width": 24}
    before = own(pipe, call)
    agree(pipe, {**call, "negative_prompt": "green cat", "guidance_scale": 4.0}, without=before)


def test_distilled_guidance(tiny):
    pipe = tiny.flux(guidance_embeds=True)
    before = own(pipe, FLUX)
    agree(pipe, {**FLUX, "guidance_scale": 8.0}, without=before)


@pytest.mark.parametrize("given", [{"timesteps": [900, 500, 100]}, {"sigmas": [12.0, 3.0, 0.5]}])
def test_times_of_the_users_own(tiny, given):
    pipe = tiny.sd(diffusers.EulerDiscreteScheduler(**tiny.SD_BETAS))
    before = own(pipe, SD)
    agree(pipe, given, without=before)


@pytest.mark.parametrize("listed", [False, True])
def test_several_images_a_prompt(sd, listed):
    def generators():
        return [generator(i) for i in range(4)] if listed else generator()

    call = {**SD, "num_images_per_prompt": 2, "output_type": "pt"}
    expected = sd(prompt=list(PROMPTS), generator=generators(), **call)[0]
    steered = SteeredPipeline(sd, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    before = state_of(sd)
    found = steered(PROMPTS, generator=generators(), **call).images
    assert far(found, expected) < 1e-4
    assert min(far(expected[i], expected[i + 1]) for i in range(3)) > 1e-3
    assert state_of(sd) == before


@pytest.mark.parametrize("family", ["sd", "flux"])
@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_output_types(tiny, family, kind):
    pipe, call = getattr(tiny, family)(), SD if family == "sd" else FLUX
    expected = own(pipe, call, output_type=kind)
    before = state_of(pipe)
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    found = steered(PROMPTS, generator=generator(), output_type=kind, **call).images
    assert type(found) is type(expected)
    assert state_of(pipe) == before
    if kind == "pil":
        for a, b in zip(found, expected, strict=True):
            assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    else:
        assert found.shape == expected.shape
        assert far(found, expected) < 1e-4 * max(1.0, float(np.abs(expected).max()))


def test_a_safety_checker(tiny, plain):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    torch.manual_seed(4)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(vision_config=vision, projection_dim=16)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds.data.normal_()
    checker.concept_embeds_weights.data.fill_(-1.0)  # all that it sees is flagged
    pipe = diffusers.StableDiffusionPipeline(
        **{
            **tiny.parts(tiny.sd()),
            "safety_checker": checker,
            "feature_extractor": CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
        }
    )
    agree(pipe, SD, without=plain)
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    out = steered(PROMPTS, generator=generator(), **SD)
    assert out.nsfw_content_detected == [True, True]
    checker.concept_embeds_weights.data.fill_(1.0)
    assert far(agree(pipe, SD), plain) < 1e-5


def test_fingerprints():
    a = torch.arange(5000.0).reshape(50, 100)
    b = a.clone()
    b[25, 50] += 1
    assert repr(a) == repr(b)
    picture, other = PICTURE.copy(), PICTURE.copy()
    other.putpixel((3, 3), (1, 2, 3))
    values = [a, b, a.double(), a.reshape(100, 50), a.numpy(), b.numpy(), picture, other]
    values += [[a, b], (a, b), [b, a], {"x": a}, {"x": b}, {"y": a}, 1, 1.0, "1", None, True]
    values += [torch.tensor(1.0), torch.tensor([1.0]), torch.zeros(0)]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"x": [a, picture]}) == fingerprint({"x": [a.clone(), PICTURE.copy()]})
    assert fingerprint(a.t()) == fingerprint(a.t().contiguous())
    half = a.bfloat16()
    assert fingerprint(half) == fingerprint(half.clone()) != fingerprint(half + 1)


def test_lists_whose_entries_follow_the_batch_split_and_join():
    def listed(rows):
        follows = torch.arange(2.0 * rows * 3).reshape(2 * rows, 3)
        return [follows, follows + 100]

    leaf = row_leaf(0, "x", listed(2), listed(4), 2, 2)
    pieces = leaf.split(listed(3), 3)
    for found, wanted in zip(leaf.join(pieces), listed(3), strict=True):
        assert torch.equal(found, wanted)
    first, _ = leaf.join([pieces[2], pieces[0]])
    assert torch.equal(first, listed(3)[0][[2, 0, 5, 3]])
    constant = row_leaf(0, "x", [torch.ones(2, 1), "a"], [torch.ones(4, 1), "a"], 1, 2)
    assert constant.parts[1] is None
    assert constant.join(constant.split([torch.ones(2, 1), "a"], 2))[1] == "a"
    with pytest.raises(Refusal, match="holds 1 entries, not 2"):
        leaf.split(listed(3)[:1], 3)


def test_pictures_of_many_numbers_are_told_apart(tiny):
    """Learned models are kept by their arguments: not by how those are abbreviated in print."""
    pipe = with_image_prompt(tiny.sd())
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    a = torch.zeros(1, 3, 32, 32)
    b = a.clone()
    b[:, :, 8:24, 8:24] = 1.0  # print shows the corners alone
    first = agree(pipe, {**SD, "ip_adapter_image": a}, steered=steered)
    agree(pipe, {**SD, "ip_adapter_image": b}, without=first, steered=steered)


def test_offloaded_networks_go_back_after_an_error(sd, monkeypatch):
    order = []
    free = type(sd).maybe_free_model_hooks
    monkeypatch.setattr(type(sd), "maybe_free_model_hooks", lambda p: (order.append(1), free(p)))
    hook = sd.vae.decoder.register_forward_hook(lambda *_: order.append(0))
    broken = SteeredPipeline(sd, sampler=BestOfN(1), reward=FunctionReward(fail), seed=0)
    with pytest.raises(SteeringFailed):
        broken(PROMPTS, **SD)
    hook.remove()
    assert order[-2:] == [0, 1]


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_weights_that_are_fetched_module_by_module(tiny, family):
    """What sequential offloading does, with the CPU in the place of the GPU."""
    pipe, call = getattr(tiny, family)(), SD if family == "sd" else FLUX
    before = own(getattr(tiny, family)(), call)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"))
    denoiser = pipe.unet if family == "sd" else pipe.transformer
    assert next(denoiser.parameters()).device.type == "meta"
    assert far(agree(pipe, call), before) < 1e-5
    for door in ("inverted", "black-box"):
        agree(
            pipe,
            call,
            steered=SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0, door=door),
        )
    assert next(denoiser.parameters()).device.type == "meta"


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_parts_that_are_fetched_one_after_another(tiny, family):
    """The CPU in the place of the GPU: the same hooks, hooked anew after every call."""
    pipe, call = getattr(tiny, family)(), SD if family == "sd" else FLUX
    before = own(pipe, call)
    pipe.enable_model_cpu_offload(device="cpu")
    hooks = pipe._all_hooks
    for door in ("replay", "inverted", "black-box"):
        steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0, door=door)
        assert far(agree(pipe, call, steered=steered), before) < 1e-5
    assert len(pipe._all_hooks) == len(hooks)
    assert pipe._all_hooks is not hooks


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["sd", "flux"])
@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloading(tiny, family, how, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pipe, call = getattr(tiny, family)(), SD if family == "sd" else FLUX
    before = own(getattr(tiny, family)().to("cuda"), call)
    getattr(pipe, f"enable_{how}_cpu_offload")()
    assert far(own(pipe, call), before) < 1e-3
    agree(pipe, call)
    denoiser = pipe.unet if family == "sd" else pipe.transformer
    assert next(denoiser.parameters()).device.type in ("cpu", "meta")
