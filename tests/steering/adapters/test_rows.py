"""Rows of any prompts and times in one call; captured states; gradients."""

import pytest
import torch

from steering.adapters import adapt
from steering.model import Stage

PROMPTS = ["a red ring", "two blue cube on the left", "cat"]
SIZE = {"num_inference_steps": 4, "height": 16, "width": 16}


@pytest.fixture(scope="module", params=["sd", "flux", "flux true guidance", "sdxl"])
def model(tiny, request):
    pipe = getattr(tiny, request.param.split()[0])()
    call = dict(SIZE)
    if "true" in request.param:
        call |= {"true_cfg_scale": 3.0, "negative_prompt": "green cat"}
    return adapt(pipe, call=call)


def test_mixed_rows_equal_each_row_alone(model):
    handles = model.encode(PROMPTS)
    rows = [handles[i] for i in (0, 2, 1, 0, 2)]
    between = model._levels.training.at(0.3)
    times = [model.grid[i] for i in (0, 2, 1, 3)] + [between]
    x = torch.randn(5, *model.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model.denoise(x, times, rows)
        for i in range(5):
            alone = model.denoise(x[i : i + 1], times[i : i + 1], rows[i : i + 1])
            scale = float(alone.x_0.abs().max())
            assert float((together.x_0[i] - alone.x_0[0]).abs().max()) < 1e-5 * scale
            assert float((together.eps[i] - alone.eps[0]).abs().max()) < 1e-5 * scale
    state = torch.stack([t.alpha * together.x_0[i] for i, t in enumerate(times)])
    state = state + torch.stack([t.sigma * together.eps[i] for i, t in enumerate(times)])
    assert float((state - x).abs().max()) < 1e-4


def test_rows_depend_on_prompt_and_time(model):
    a, b, _ = model.encode(PROMPTS)
    x = torch.randn(1, *model.shape).expand(3, *model.shape)
    with torch.no_grad():
        eps = model.denoise(x, [model.grid[1], model.grid[1], model.grid[2]], [a, b, a]).eps
    assert float((eps[0] - eps[1]).abs().max()) > 1e-4
    assert float((eps[0] - eps[2]).abs().max()) > 1e-4


def test_gradients_reach_the_state(model):
    (handle,) = model.encode(["a red ring"])
    x = torch.randn(1, *model.shape, requires_grad=True)
    posterior = model.denoise(x, [model.grid[1]], [handle])
    loss = model.decode(posterior.x_0, [handle], Stage.INTERMEDIATE).square().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    step = 1e-3

    @torch.no_grad()
    def value(shift):
        posterior = model.denoise(x + shift * direction, [model.grid[1]], [handle])
        return float(model.decode(posterior.x_0, [handle], Stage.INTERMEDIATE).square().sum())

    numeric = (value(step) - value(-step)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=0.05, abs=0.05)


def test_encoding_spends_no_denoiser_row_and_is_cached(model):
    network = model.pipe.components[model._plan.network]
    calls = []
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    first = model.encode(["blue star", "cat"])
    again = model.encode(["cat"], images_per_prompt=2)
    hook.remove()
    assert not calls
    assert [h.prompt for h in again] == ["cat", "cat"]
    assert again[0].pieces is again[1].pieces is first[1].pieces
    assert first[0].signature == again[0].signature
    assert first[0].initial is None


def test_a_prompts_bits_depend_on_no_other_prompt(model):
    pipe, call = model.pipe, {**model._call, "negative_prompt": model._negative}
    together = adapt(pipe, call=call).encode(PROMPTS)[1]
    (alone,) = adapt(pipe, call=call).encode(PROMPTS[1:2])
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    started = adapt(pipe, call=call).encode(PROMPTS[:2], generator=generators)[1]
    for a, b, c in zip(together.pieces, alone.pieces, started.pieces, strict=True):
        assert a.keys() == b.keys() == c.keys()
        assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)


def test_bad_input_is_refused(model):
    with pytest.raises(ValueError, match="empty"):
        model.encode([])
    with pytest.raises(TypeError, match="texts"):
        model.encode("a red ring")
    with pytest.raises(TypeError, match="texts"):
        model.encode([3])
    with pytest.raises(ValueError, match="negative prompt"):
        model.encode(["a", "b"], negative_prompts=["c"])
    with pytest.raises(ValueError, match="images_per_prompt"):
        model.encode(["a"], images_per_prompt=0)
    (handle,) = model.encode(["a"])
    with pytest.raises(ValueError, match="one time and one handle a row"):
        model.denoise(torch.zeros(2, *model.shape), [model.grid[0]], [handle])


def test_rows_of_two_models_do_not_share_a_call(tiny):
    first, second = (adapt(tiny.sd(), call={"num_inference_steps": 2}) for _ in range(2))
    rows = [*first.encode(["a"]), *second.encode(["a"])]
    with pytest.raises(ValueError, match="signatures"):
        first.denoise(torch.zeros(2, *first.shape), [first.grid[0]] * 2, rows)


@pytest.mark.parametrize("images", [1, 2])
def test_initial_states_from_generators_are_the_pipelines_own(tiny, images):
    pipe = tiny.sd()
    model = adapt(pipe, call={"num_inference_steps": 2})
    count = 2 * images

    def own(generator=None, latents=None):
        """The state before the first step, seen by a callback after it with steps undone."""
        seen = []
        step = pipe.scheduler.step

        def watch(output, t, sample, **options):
            seen.append(sample.clone())
            return step(output, t, sample, **options)

        watch.__signature__ = __import__("inspect").signature(step)
        pipe.scheduler.step = watch
        pipe(
            prompt=PROMPTS[:2],
            generator=generator,
            latents=latents,
            num_images_per_prompt=images,
            num_inference_steps=2,
            output_type="latent",
        )
        del pipe.scheduler.step
        return seen[0]

    for make in (
        lambda: {"generator": torch.Generator().manual_seed(1)},
        lambda: {"generator": [torch.Generator().manual_seed(i) for i in range(count)]},
        lambda: {"latents": torch.randn(count, *model.shape, generator=torch.manual_seed(0))},
    ):
        handles = model.encode(PROMPTS[:2], images_per_prompt=images, **make())
        assert torch.equal(torch.cat([h.initial for h in handles]), own(**make()))
        assert [h.prompt for h in handles] == [p for p in PROMPTS[:2] for _ in range(images)]


def test_a_users_generator_is_consumed_once(tiny):
    model = adapt(tiny.flux(), call=SIZE)
    used, fresh = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    model.encode(["a red ring"], generator=used)
    model.pipe("a red ring", generator=fresh, output_type="latent", **SIZE)
    assert torch.equal(used.get_state(), fresh.get_state())


def test_names_tell_models_apart_but_not_output_types(tiny):
    pipe = tiny.sd()

    def name(**call):
        return adapt(pipe, call={"num_inference_steps": 2, **call}).name

    assert name() == name(guidance_scale=7.5, output_type="np")
    assert name() != name(guidance_scale=3.0)
    assert name().startswith("StableDiffusionPipeline:unnamed:DDIMScheduler:2:4x8x8")
