import subprocess
import sys

import pytest
import torch

from rewards import RewardModel
from steering.reward import Item, Reward

MEDIA = torch.full((3, 3, 4, 4), 0.5)


class Fake(RewardModel):
    name = "fake"
    differentiable = True

    def __init__(self, score=lambda media: media.mean((1, 2, 3))):
        super().__init__()
        self.given = score
        self.sizes = []

    def score(self, media, features):
        self.sizes.append(len(media))
        return self.given(media)


def test_follows_the_protocol():
    assert isinstance(Fake(), Reward)


def test_scores_are_floats_on_the_medias_device():
    scores = Fake(lambda media: [1, 2, 3])(MEDIA, [None] * 3)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1, 2, 3]
    assert (
        Fake(lambda media: media.mean((1, 2, 3)).half())(MEDIA, [None] * 3).dtype == torch.float32
    )


@pytest.mark.parametrize("shape", [(), (2,), (3, 1), (1, 3)])
def test_wrong_shape_names_what_came_and_what_was_expected(shape):
    with pytest.raises(
        ValueError, match=r"'fake' returned shape .* of 3 pictures; expected \(3,\)"
    ):
        Fake(lambda media: torch.zeros(shape))(MEDIA, [None] * 3)


def test_scores_that_are_no_numbers():
    with pytest.raises(TypeError, match="returned str"):
        Fake(lambda media: "good")(MEDIA, [None] * 3)


def test_columns_need_the_total():
    columns = {"a": torch.zeros(3)}
    with pytest.raises(ValueError, match="columns a; one of them must be named like the reward"):
        Fake(lambda media: columns)(MEDIA, [None] * 3)


@pytest.mark.parametrize(
    ("media", "error", "message"),
    [
        (torch.zeros(3, 3, 4, 4, dtype=torch.uint8), TypeError, "float tensor of pictures, got"),
        ([1.0], TypeError, "got list"),
        (torch.zeros(3, 4, 4), ValueError, r"got \(3, 4, 4\)"),
        (torch.zeros(3, 1, 4, 4), ValueError, r"expects pictures \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 4, 4), ValueError, "got 2 pictures and 3 features"),
    ],
)
def test_media_of_another_form(media, error, message):
    with pytest.raises(error, match=message):
        Fake()(media, [None] * 3)


def test_prompts_of_another_form():
    reward = Fake()
    assert reward.prepare(Item("")) is None
    with pytest.raises(TypeError, match="must be text, got int: 3"):
        reward.prepare(Item(3))
    reward.needs_text = True
    with pytest.raises(ValueError, match="give a prompt, or choose"):
        reward.prepare(Item("  "))


def test_a_batch_limit_splits_the_rows_and_nothing_else():
    media = torch.rand(5, 3, 4, 4)
    reward = Fake()
    whole = reward(media, [None] * 5)
    reward.batch_limit = 2
    assert torch.equal(reward(media, [None] * 5), whole)
    assert reward.sizes == [5, 2, 2, 1]


def test_no_graph_without_the_ability():
    reward = Fake()
    media = MEDIA.clone().requires_grad_(True)
    assert reward(media, [None] * 3).requires_grad
    reward.differentiable = False
    assert not reward(media, [None] * 3).requires_grad


def test_the_weights_follow_the_media_or_stay_where_they_were_put():
    reward = Fake()
    reward.net = torch.nn.Linear(1, 1)
    reward(MEDIA, [None] * 3)
    assert reward.net.weight.device.type == "cpu"
    assert reward.to("meta") is reward
    assert reward.net.weight.device.type == "meta"


def test_importing_the_package_is_fast():
    code = "import sys, rewards; print([n for n in ('torch', 'open_clip') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import rewards

    assert all(hasattr(rewards, name) for name in rewards.__all__)
    assert set(rewards.__all__) <= set(dir(rewards))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        rewards.Nothing  # noqa: B018
