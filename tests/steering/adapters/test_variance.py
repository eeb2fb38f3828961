"""Learned variances go to the user's own scheduler, and to nothing else; noise on a part of a state."""

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_pipelines import deepfloyd, videos

from rewards import PythonFunction
from samplers import BestOfN, FKSteering
from steering import SteeredPipeline
from steering.adapters import InvertedModel, Refusal, enter
from steering.adapters.asking import Pair, ask
from steering.adapters.loop_start import _spread
from steering.adapters.own_call import own_call
from steering.adapters.variance import appended, find_variance, parted
from steering.live import Job, new_problem
from steering.prediction import Posterior
from steering.reward import Item
from steering.transitions import DDIM

CALL = {"num_inference_steps": 4, "clean_caption": False}
PICTURE = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
MASK = PIL.Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
MASKED = {**CALL, "image": PICTURE, "mask_image": MASK, "strength": 1.0}
BRIGHT = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)))


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def handed_over(pipe, call):
    """What the pipeline's own first step handed to its scheduler."""
    kwargs = {**call, **ask(pipe, [Pair("a red cat")]), "generator": seeded()}
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    kwargs.pop("num_videos_per_prompt", None)
    return own_call(pipe, kwargs, most=1)[0][0]


@pytest.mark.parametrize("door", ["replay", "inverted"])
def test_a_posterior_carries_the_variance_that_the_pipeline_hands_over(door):
    pipe = deepfloyd.deepfloyd()
    own = handed_over(pipe, CALL)
    assert own.output.shape[1] == 2 * own.sample.shape[1] == 6
    model = enter(pipe, call=CALL, door=door)
    (handle,) = model.encode(["a red cat"], generator=seeded())
    torch.testing.assert_close(handle.initial, own.sample)
    found = model.denoise(handle.initial, [model.grid[0]], [handle])
    torch.testing.assert_close(found.eps, own.output[:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance, own.output[:, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("door", ["replay", "inverted"])
def test_best_of_one_is_the_pipelines_own_picture(door):
    pipe = deepfloyd.deepfloyd()
    wanted = pipe("a red cat", generator=seeded(), output_type="np", **CALL).images
    steered = SteeredPipeline(pipe, sampler=BestOfN(n=1), reward=BRIGHT, door=door)
    found = steered("a red cat", generator=seeded(), output_type="np", **CALL).images
    assert np.abs(found - wanted).max() < 1e-4


def test_searches_by_steps_of_ours_need_no_variance():
    sampler = FKSteering(particles=2, start=1, every=1)
    steered = SteeredPipeline(deepfloyd.deepfloyd(), sampler=sampler, reward=BRIGHT)
    picture = steered("a red cat", generator=seeded(), output_type="np", **CALL).images
    assert np.isfinite(picture).all()


def test_the_scheduler_wants_the_variance():
    model = enter(deepfloyd.deepfloyd(), call=CALL)
    (handle,) = model.encode(["a red cat"])
    x = torch.randn(2, *model.shape, generator=seeded())
    with torch.no_grad():
        posterior = model.denoise(x, [model.grid[0]] * 2, [handle] * 2)
    without = Posterior(posterior.x_0, posterior.eps)
    with pytest.raises(ValueError, match="DDPMScheduler reads the variance that its network"):
        model.scheduler_run(handle, [0, 1], [3, 4]).step(0, without, x)
    wider = Posterior(posterior.x_0, posterior.eps, posterior.variance + 1)
    near, far = (
        model.scheduler_run(handle, [0, 1], [3, 4]).step(0, said, x) for said in (posterior, wider)
    )
    assert float((far - near).abs().max()) > 1e-3
    law = DDIM(1.0)
    t, s = model.grid[0], model.grid[1]
    assert torch.equal(law(posterior, t, s).mean, law(wider, t, s).mean)


def test_rows_keep_their_variance():
    x_0, eps, variance = torch.arange(12.0).reshape(3, 4, 1)
    rows = Posterior(x_0, eps, variance)[torch.tensor([2, 0])]
    assert rows.variance.flatten().tolist() == [10.0, 8.0]
    assert Posterior(x_0, eps)[1:].variance is None


def test_which_output_holds_the_variance():
    state = torch.zeros(2, 3, 4, 4)
    steps = [[torch.randn(2, 6, 4, 4, generator=seeded(2 * i + k)) for k in (0, 1)] for i in (0, 1)]
    handed = [parted(step[1], state)[1] for step in steps]
    assert find_variance(steps, handed, state) == 1
    assert find_variance(steps, [None, None], state) is None
    with pytest.raises(Refusal, match="is that of no pass"):
        find_variance(steps, [2 * y for y in handed], state)
    prediction, variance = parted(steps[0][0], state)
    assert torch.equal(appended(prediction, variance), steps[0][0])
    assert parted(state, state) == (state, None)


def test_candidates_of_a_masked_start_differ_inside_the_mask_alone():
    pipe = deepfloyd.deepfloyd_inpaint()
    model = enter(pipe, call=MASKED)
    inside = torch.from_numpy(np.array(MASK) > 0)
    assert torch.equal(model.reached[0].bool(), inside.expand(3, 16, 16))
    problem = new_problem(
        Job(Item("a red cat"), "key", BestOfN(n=1), model.encode(["a red cat"])[0]), model, 1
    )
    x = problem.initial(range(64))
    outside = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(x[:, :, ~inside], x[:1, :, ~inside].expand(64, -1, -1))
    torch.testing.assert_close(x[0, :, ~inside], outside[:, ~inside].float())
    noise = problem.unit(x)[:, :, inside]
    assert abs(float(noise.std()) - 1) < 0.05
    own = handed_over(pipe, MASKED)
    torch.testing.assert_close(own.sample[0, :, ~inside], x[0, :, ~inside])


def test_a_first_frame_is_no_part_of_the_state():
    call = {"num_inference_steps": 3, "height": 32, "width": 32, "num_frames": 9}
    call |= {"max_sequence_length": 16, "image": PICTURE}
    pipe = videos.ltx_from_picture()
    model = InvertedModel(pipe, call)
    assert model.origin is None
    assert model.reached is None
    assert model.initial_std == pytest.approx(1.0)
    assert model.encode(["a red cat"], generator=seeded())[0].initial.shape[1:] == model.shape
    assert model.shape[1] == 2  # of three latent frames


NUMBERS = torch.randperm(40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("moved", "wanted"),
    [
        (lambda z: 2 * z.reshape(1, 40), (2.0, None)),
        (lambda z: 2 * z[NUMBERS[:30]].reshape(1, 30), (2.0, None)),
        (lambda z: z[NUMBERS[:30]].reshape(1, 30) * (torch.arange(30) > 9), (1.0, 20)),
        (lambda z: z[NUMBERS[:30]].reshape(1, 30) * (1 + (torch.arange(30) > 9)), None),
        (lambda z: z[NUMBERS[:30] % 20].reshape(1, 30), None),  # a number twice
        (lambda z: (z[:20] + z[20:]).reshape(1, 20) / 2, None),  # two numbers in one
        (lambda z: z.reshape(1, 40).square(), None),
        (lambda z: torch.zeros(1, 40), None),
    ],
)
def test_how_noise_reaches_a_state(moved, wanted):
    found = _spread(moved, 40, moved(torch.ones(40)).numel(), torch.float32)
    if wanted is None:
        assert found is None
        return
    std, reached = found
    assert std == pytest.approx(wanted[0], rel=1e-5)
    assert (None if reached is None else int(reached.sum())) == wanted[1]
