"""Rewards of videos: frames chosen as told, terms of motion against closed forms."""

import pytest
import torch

from rewards import MotionAmount, MotionSmoothness, OnFrames, PythonFunction, WeightedSum
from rewards.testing import check_reward
from steering.reward import Item

ITEMS = [Item("a"), Item("bb"), Item("ccc")]


def videos(frames=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, frames, 3, 8, 8, generator=generator) * 0.8 + 0.1


def red(images, prompts):
    return images[:, 0].square().mean((1, 2))


def by_frame(media):
    return media[:, :, 0].square().mean((2, 3))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("mean", lambda r: r.mean(1)),
        ("worst", lambda r: r.amin(1)),
        ("first", lambda r: r[:, 0]),
        ("last", lambda r: r[:, 4]),
        (1, lambda r: r[:, 0]),
        (3, lambda r: r[:, [0, 2, 4]].mean(1)),
        (9, lambda r: r.mean(1)),
    ],
)
def test_frames_are_chosen_as_told(frames, expected):
    apart = torch.tensor([0.8, 0.5, 1.0, 0.6, 0.7])[
        :, None, None, None
    ]  # the worst stays the worst
    media, reward = videos() * apart, OnFrames(PythonFunction(red, differentiable=True), frames)
    check_reward(reward, media, ITEMS)
    scores = reward(media, [reward.prepare(item) for item in ITEMS])
    torch.testing.assert_close(scores, expected(by_frame(media)))


def test_all_frames_share_one_call_and_know_their_prompt():
    seen = []

    def fn(images, prompts):
        seen.append(prompts)
        return images[:, 0].mean((1, 2))

    reward = OnFrames(PythonFunction(fn), 2)
    reward(videos(), [reward.prepare(item) for item in ITEMS])
    assert seen == [["a", "a", "bb", "bb", "ccc", "ccc"]]


def test_columns_of_an_ensemble_come_along():
    inner = WeightedSum({"red": PythonFunction(red, differentiable=True)}, {"red": 2.0})
    reward, media = OnFrames(inner), videos()
    columns = reward(media, [reward.prepare(item) for item in ITEMS])
    torch.testing.assert_close(columns["weighted-sum"], 2 * columns["red"])
    assert reward.name == "weighted-sum"


@pytest.mark.parametrize("kind", [MotionAmount, MotionSmoothness])
def test_terms_of_motion_are_what_they_declare(kind):
    check_reward(kind(), videos(6), ITEMS, step=0.01)  # kinks are near
    for frames in (1, 2):
        media = videos(frames).requires_grad_()
        scores = kind()(media, [None] * 3)
        scores.sum().backward()  # a constant, but part of the graph
        assert bool(torch.isfinite(media.grad).all())
        if kind is MotionSmoothness:
            assert scores.tolist() == [1.0] * 3


def test_terms_of_motion_against_closed_forms():
    time = torch.linspace(0, 1, 5)[None, :, None, None, None]
    fade = time.expand(1, 5, 3, 4, 4)  # a constant rate
    flicker = torch.tensor([0.2, 0.7, 0.2, 0.7, 0.2])[None, :, None, None, None].expand(
        1, 5, 3, 4, 4
    )
    still = torch.full((1, 5, 3, 4, 4), 0.5)
    jump = (time >= 0.5).float().expand(1, 5, 3, 4, 4)  # one change: both its triples are rough
    media = torch.cat([fade, flicker, still, jump])
    amount = MotionAmount()(media, [None] * 4)
    smooth = MotionSmoothness()(media, [None] * 4)
    torch.testing.assert_close(amount, torch.tensor([0.25, 0.5, 0.0, 0.25]))
    torch.testing.assert_close(smooth, torch.tensor([1.0, 0.0, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_a_shape_that_moves_evenly_is_smoother_than_one_that_jumps():
    x = torch.arange(32.0)[None, None, None, None, :]
    where = {"even": [4.0, 8, 12, 16, 20, 24], "jumps": [4.0, 20, 8, 24, 12, 16]}
    smooth = {}
    for name, centres in where.items():
        at = torch.tensor(centres)[None, :, None, None, None]
        media = torch.exp(-0.5 * ((x - at) / 6) ** 2).expand(1, 6, 3, 8, 32)
        smooth[name] = float(MotionSmoothness()(media, [None]))
    assert smooth["even"] > smooth["jumps"] + 0.1


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"frames must be .* got 0"):
        OnFrames(PythonFunction(red), 0)
    with pytest.raises(ValueError, match="got 'middle'"):
        OnFrames(PythonFunction(red), "middle")
    reward = MotionAmount()
    with pytest.raises(ValueError, match=r"expects videos \(B, F, 3, H, W\), got \(3, 3, 8, 8\)"):
        reward(videos()[:, 0], [None] * 3)
