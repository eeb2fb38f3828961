"""The shared check finds what is declared wrongly."""

import pytest
import torch

from rewards import PythonFunction
from rewards.testing import check_reward
from steering.reward import Item

MEDIA = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
ITEMS = [Item("a"), Item("bb"), Item("ccc")]


class HalfGradient(torch.autograd.Function):
    """The mean, with a gradient that forgets the lower half."""

    @staticmethod
    def forward(ctx, media):
        ctx.save_for_backward(media)
        return media.mean((1, 2, 3))

    @staticmethod
    def backward(ctx, outer):
        (media,) = ctx.saved_tensors
        gradient = torch.ones_like(media) / media[0].numel()
        gradient[:, :, 4:] = 0
        return gradient * outer.view(-1, 1, 1, 1)


class Restless:
    calls = 0

    def __call__(self, images, prompts):
        self.calls += 1
        return images.mean((1, 2, 3)) + self.calls


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (Restless(), {}, "other scores when repeated"),
        (lambda x, _: x.mean((1, 2, 3)) - x.mean(), {}, "scores rows differently alone"),
        (
            lambda x, _: x.mean((1, 2, 3)),
            {"needs_text": True},
            "other prompts give the same scores",
        ),
        (lambda x, _: x.mean((1, 2, 3)) / 0, {}, "not finite"),
        (lambda x, _: HalfGradient.apply(x), {"differentiable": True}, "by finite differences"),
        (
            lambda x, _: (0 * x).sum((1, 2, 3)),
            {"differentiable": True},
            "gradient of a row is zero",
        ),
        (lambda x, _: x.mean((1, 2, 3)), {"calls_per_row": 0}, "declares 0 calls per row"),
    ],
)
def test_false_declarations_are_found(function, options, message):
    reward = PythonFunction(function, name="liar", **options)
    with pytest.raises(AssertionError, match=message):
        check_reward(reward, MEDIA, ITEMS)


def test_a_false_range_is_found():
    reward = PythonFunction(lambda x, _: x.mean((1, 2, 3)), name="liar")
    reward.range = (0.9, 1.0)
    with pytest.raises(AssertionError, match=r"declares the range \(0\.9, 1\.0\)"):
        check_reward(reward, MEDIA, ITEMS)
