"""Cheaper decoders of guesses: against mathematics where there is some, and where they come in."""

import diffusers
import pytest
import torch
from torch.nn import functional

from samplers import FKSteering
from steering import SteeredPipeline
from steering.adapters import adapt
from steering.adapters.cheap_decode import LinearDecode, LowResolution, TinyDecode
from steering.adapters.checks import Refusal
from steering.model import Stage
from steering.strength import Strength

CALL = {"num_inference_steps": 3, "height": 16, "width": 16}


class LinearVae(torch.nn.Module):
    """A decoder that is linear: a convolution to sub-pixels."""

    dtype = torch.float32

    def __init__(self, channels, factor):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.factor = factor
        self.weight = 0.01 * torch.randn(3 * factor**2, channels, 3, 3, generator=generator)

    def decode(self, z, return_dict=False):
        padded = functional.pad(z, [1] * 4, mode="replicate")
        return (functional.pixel_shuffle(functional.conv2d(padded, self.weight), self.factor),)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_linear_decoder_is_found_exactly(tiny, name, monkeypatch):
    model = adapt(getattr(tiny, name)(), call=CALL)
    channels = model.pipe.vae.config.latent_channels
    vae = LinearVae(channels, 16 // _edge(model))
    monkeypatch.setattr("steering.adapters.cheap_decode._full", lambda _: _pictures_by(vae))
    decode = LinearDecode(("a",), samples=4, guesses=2, ridge=0.0).fit(model)
    x_0 = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(4))
    expected = _pictures_by(vae)(_latents(model, x_0)).clamp(0, 1)
    torch.testing.assert_close(decode(x_0), expected, atol=2e-3, rtol=0)


def _latents(model, x_0):
    if model._tail.unpacking is None:
        return x_0
    args, kwargs = model._tail.unpacking
    return model.pipe._unpack_latents(x_0, *args, **kwargs)


def _edge(model):
    return _latents(model, torch.zeros(1, *model.shape)).shape[-1]


def _pictures_by(vae):
    return lambda z: vae.decode(z)[0] / 2 + 0.5


@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize("policy", [LinearDecode(("a", "b"), 3, 2), LowResolution()])
def test_only_guesses_are_decoded_cheaply(tiny, name, policy):
    model = adapt(getattr(tiny, name)(), call=CALL)
    x_0 = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(4))
    handles = model.encode(["a"]) * 2
    full = model.decode(x_0, handles, Stage.INTERMEDIATE)
    assert model.look_by(policy) is model
    leaf = x_0.clone().requires_grad_(True)
    guess = model.decode(leaf, handles, Stage.INTERMEDIATE)
    assert guess.shape == full.shape
    assert guess.dtype == torch.float32
    assert 0 <= guess.min() <= guess.max() <= 1
    assert not torch.equal(guess, full)
    assert torch.autograd.grad(guess.sum(), leaf)[0].abs().sum() > 0
    assert torch.equal(model.decode(x_0, handles, Stage.FINAL), full)
    model.look_by(None)
    assert torch.equal(model.decode(x_0, handles, Stage.INTERMEDIATE), full)


def test_flat_latents_are_the_same_at_low_resolution(tiny):
    """Nothing is lost where nothing varies; away from the borders, where the decoder pads."""
    model = adapt(tiny.sd(), call={**CALL, "height": 64, "width": 64})
    x_0 = torch.full((1, *model.shape), 0.3)
    full = model.decode(x_0, model.encode(["a"]), Stage.FINAL)
    low = LowResolution().fit(model)(x_0)
    assert low.shape == full.shape


def test_the_tiny_autoencoder_of_a_folder(tiny, tmp_path):
    model = adapt(tiny.sd(), call=CALL)
    channels = model.pipe.vae.config.latent_channels
    options = {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    }
    for name, width in (("own", channels), ("other", channels + 1)):
        net = diffusers.AutoencoderTiny(latent_channels=width, **options)
        net.save_pretrained(tmp_path / name)
    x_0 = torch.randn(2, *model.shape)
    model.look_by(TinyDecode(str(tmp_path / "own")))
    guess = model.decode(x_0, model.encode(["a"]) * 2, Stage.INTERMEDIATE)
    net = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "own")
    expected = (net.decode(x_0).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(guess, expected)
    with pytest.raises(Refusal, match="give one of the model's family"):
        model.look_by(TinyDecode(str(tmp_path / "other")))
    with pytest.raises(Refusal, match="or take LinearDecode, which needs none"):
        model.look_by(TinyDecode(str(tmp_path / "none")))


def test_a_decoder_that_is_not_known_is_refused(tiny):
    pipe = tiny.sd()

    class Other(type(pipe.vae)):
        pass

    pipe.vae.__class__ = Other
    with pytest.raises(Refusal, match="leave guesses to the full decoder"):
        adapt(pipe, call=CALL).look_by(LowResolution())


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least one sample and one guess"):
        LinearDecode(("a",), samples=0)
    with pytest.raises(ValueError, match="fitted on a tuple of prompts, got 'a ring'"):
        LinearDecode("a ring")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        LowResolution(1)


def test_a_search_looks_by_it_and_ends_by_the_full_decoder(shapes_sd, shapes_clip):
    scores = {}
    for name, guesses in (("full", None), ("linear", LinearDecode(("a red ring",), 4, 4))):
        steered = SteeredPipeline(
            shapes_sd,
            sampler=FKSteering(particles=2, start=1, every=2),
            reward=shapes_clip,
            strength=Strength(1e-9, "raw"),
            seed=0,
            guesses=guesses,
        )
        out = steered("a red ring", num_inference_steps=4, guidance_scale=2.0)
        scores[name] = out.steering.scores
    # At this strength nothing is decided by the guesses, so the finished samples are the same.
    assert scores["full"] == scores["linear"]
