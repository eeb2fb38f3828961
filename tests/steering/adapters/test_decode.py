"""Decoding: the explicit decoder against the pipeline's tail, output types, and what comes beside."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from steering.adapters import adapt
from steering.model import Stage

CALL = {"num_inference_steps": 3, "height": 16, "width": 16}


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "sd3"])
def test_explicit_decode_equals_the_tail(tiny, name):
    model = adapt(getattr(tiny, name)(), call=CALL)
    x_0 = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(4))
    handles = model.encode(["a"]) * 3
    pictures = model.decode(x_0, handles, Stage.FINAL).detach()
    assert pictures.shape == (3, 3, 16, 16)
    assert pictures.dtype == torch.float32
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    own = model._tail(x_0, output_type="pt")[0]
    assert float((pictures - own).abs().max()) < 1e-5


def test_an_unknown_autoencoder_goes_through_the_tail_without_gradients(tiny):
    pipe = tiny.sd()

    class Other(type(pipe.vae)):
        pass

    pipe.vae.__class__ = Other
    model = adapt(pipe, call=CALL)
    assert not model.abilities.gradients
    x_0 = torch.randn(3, *model.shape, requires_grad=True)
    pictures = model.decode(x_0, model.encode(["a"]) * 3, Stage.FINAL)
    assert pictures.shape == (3, 3, 16, 16)
    assert not pictures.requires_grad


@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize(
    ("output_type", "kind"),
    [("pil", PIL.Image.Image), ("np", np.ndarray), ("pt", torch.Tensor), ("latent", torch.Tensor)],
)
def test_render_and_merge_in_the_users_output_type(tiny, name, output_type, kind):
    pipe = getattr(tiny, name)()
    call = {**CALL, "output_type": output_type}
    model = adapt(pipe, call=call)
    own = pipe(["a", "cat"], generator=torch.Generator().manual_seed(0), **call)
    ends = pipe(
        ["a", "cat"],
        generator=torch.Generator().manual_seed(0),
        **{**call, "output_type": "latent"},
    )[0]
    rows = model.render(ends, model.encode(["a", "cat"]))
    assert len(rows) == 2
    assert all(isinstance(row, kind) for row in rows)
    merged = model.merge_output(rows)
    assert type(merged) is type(own)
    assert type(merged.images) is type(own.images)
    for a, b in zip(merged.images, own.images, strict=True):
        a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= (1 if output_type == "pil" else 1e-4)


def test_merging_before_rendering_is_refused(tiny):
    with pytest.raises(ValueError, match="render"):
        adapt(tiny.sd(), call=CALL).merge_output([])


class Checker(torch.nn.Module):
    """Flags bright pictures."""

    device = torch.device("cpu")
    dtype = torch.float32
    bar = 0.0

    def forward(self, images, clip_input):
        return images, [bool(image.mean() > self.bar) for image in images]


def test_safety_flags_stay_with_their_rows(tiny):
    pipe = tiny.sd()
    checker = Checker()
    pipe.__dict__["safety_checker"] = checker
    pipe.__dict__["feature_extractor"] = lambda images, return_tensors: SimpleNamespace(
        to=lambda device: SimpleNamespace(pixel_values=torch.zeros(len(images), 1))
    )
    model = adapt(pipe, call={**CALL, "output_type": "np"})
    x_0 = torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(0)) * 4
    handles = model.encode(["a"]) * 4
    checked = []
    hook = checker.register_forward_hook(lambda *_: checked.append(1))
    brightness = model.decode(x_0, handles, Stage.FINAL).detach().mean((1, 2, 3))
    assert not checked  # only what is rendered is looked at
    checker.bar = 2 * float(brightness.median()) - 1  # it sees pictures in [-1, 1]
    rows = model.render(x_0[brightness.argsort()], handles)
    hook.remove()
    assert checked
    assert model.merge_output([rows[3], rows[0]]).nsfw_content_detected == [True, False]


def test_a_tail_that_drops_rows_is_called_row_by_row(tiny, monkeypatch):
    pipe = tiny.sd()
    model = adapt(pipe, call={**CALL, "output_type": "np"})
    x_0 = torch.randn(3, *model.shape)
    whole = model.render(x_0, model.encode(["a"]) * 3)
    process = pipe.image_processor.postprocess
    monkeypatch.setattr(pipe.image_processor, "postprocess", lambda *a, **k: process(*a, **k)[:1])
    single = model.render(x_0, model.encode(["a"]) * 3)
    assert len(single) == 3
    assert np.abs(np.stack(single) - np.stack(whole)).max() < 1e-5
