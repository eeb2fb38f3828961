import io

import pytest
import torch
from PIL import Image

from rewards import JPEGCompressibility
from rewards.testing import check_reward
from steering.reward import Item


def test_declared_abilities(pictures):
    check_reward(JPEGCompressibility(), pictures(3, 40, 64) / 255, [Item("")] * 3)


def test_is_the_size_of_the_file(pictures):
    media = pictures(3, 128, 96)
    scores = JPEGCompressibility()(media / 255, [None] * 3)
    for picture, score in zip(media, scores, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=95)
        # Encoders differ in a few bytes.
        assert float(score) == pytest.approx(-len(file.getvalue()) / 1000, rel=0.02)


def test_smooth_pictures_score_higher():
    noise, flat = torch.rand(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.5)
    low, high = JPEGCompressibility()(torch.cat([noise, flat]), [None] * 2)
    assert low < high < 0


@pytest.mark.parametrize("quality", [0, 101])
def test_unknown_quality(quality):
    with pytest.raises(ValueError, match=f"1 to 100, got {quality}"):
        JPEGCompressibility(quality)
