"""Videos: decoding frame by frame, and only the frames that rewards look at."""

import pytest
import torch
from tiny_pipelines.stable_diffusion import animate_diff
from tiny_pipelines.videos import ltx
from torchvision.transforms.functional import to_tensor

from rewards import OnFrames, PythonFunction, WeightedSum
from samplers import BestOfN
from steering import SteeredPipeline
from steering.adapters import adapt
from steering.model import Stage
from steering.reward import Item

CALL = {"num_inference_steps": 2, "height": 16, "width": 16, "num_frames": 4}


def brightness():
    return PythonFunction(lambda images, prompts: images.mean((1, 2, 3)), name="brightness")


@pytest.fixture(scope="module")
def model():
    return adapt(animate_diff(), call=CALL)


@pytest.fixture(scope="module")
def states(model):
    return torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))


def test_decoding_frame_by_frame_is_the_pipelines_own(model, states):
    handles = model.encode(["a"]) * 2
    whole = model.decode(states, handles, Stage.FINAL).detach()
    own = model._tail(states, output_type="pt").frames
    assert whole.shape == own.shape == (2, 4, 3, 16, 16)
    assert float((whole - own).abs().max()) < 1e-5
    assert model.abilities.gradients


def test_only_the_frames_asked_for_are_decoded(model, states, monkeypatch):
    handles = model.encode(["a"]) * 2
    whole = model.decode(states, handles, Stage.FINAL).detach()
    decode, sizes = model.pipe.vae.decode, []

    def counted(z, *args, **kwargs):
        sizes.append(len(z))
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(model.pipe.vae, "decode", counted)
    some = model.decode_frames(states, handles, Stage.FINAL, lambda count: [0, count - 1]).detach()
    assert sizes == [4]
    assert torch.allclose(some[:, [0, 3]], whole[:, [0, 3]], atol=1e-6)
    assert not some[:, 1:3].any()


def test_an_autoencoder_of_videos_decodes_all(states):
    model = adapt(ltx(), call={**CALL, "num_frames": 9, "height": 32, "width": 32})
    x_0 = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(1))
    handles = model.encode(["a"])
    whole = model.decode(x_0, handles, Stage.FINAL)
    assert torch.equal(model.decode_frames(x_0, handles, Stage.FINAL, lambda count: [0]), whole)


@pytest.mark.parametrize(
    ("reward", "frames"),
    [
        (OnFrames(brightness(), "first"), 1),
        (OnFrames(brightness(), 2), 2),
        (OnFrames(brightness(), "mean"), 4),
        (
            WeightedSum(
                {"a": OnFrames(brightness(), "first"), "b": OnFrames(brightness(), "last")}
            ),
            2,
        ),
    ],
)
def test_a_search_decodes_what_its_reward_looks_at(reward, frames, monkeypatch):
    pipe = animate_diff()
    steered = SteeredPipeline(pipe, sampler=BestOfN(3), reward=reward, seed=0, thumbnails=None)
    prepared = steered.prepare(["a red ring"], **CALL)
    decode, sizes = pipe.vae.decode, []

    def counted(z, *args, **kwargs):
        sizes.append(len(z))
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", counted)
    [result] = prepared.report(list(prepared.results())).results
    scored = sum(sizes) - 4  # the one video that is rendered
    assert scored == 3 * frames
    frames = [to_tensor(picture) for picture in result.media[0]]
    again = reward(torch.stack(frames)[None], [reward.prepare(Item("a red ring"))])
    total = again[reward.name] if isinstance(reward, WeightedSum) else again
    [row] = result.outcome.chosen
    assert float(total) == pytest.approx(float(result.outcome.scores.total[row]), abs=5e-3)
