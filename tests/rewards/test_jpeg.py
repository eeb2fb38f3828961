import io

import pytest
import torch
from PIL import Image

from rewards import JPEGCompressibility
from rewards.testing import check_reward
from steering.reward import Item


def test_declared_abilities(pictures):
    check_reward(JPEGCompressibility(), pictures(3, 40, 64) / 255, [Item("")] * 3)


@pytest.mark.parametrize("size", [(32, 32), (97, 160), (768, 512)])
def test_is_the_size_of_the_file(pictures, size):
    media = pictures(8, *size)
    scores = JPEGCompressibility()(media / 255, [None] * 8)
    files = [io.BytesIO() for _ in media]
    for picture, file in zip(media, files, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=95)
    theirs = torch.tensor([-len(file.getvalue()) / 1000 for file in files])
    apart = scores - theirs  # encoders of other versions may write other headers: a constant
    assert (apart - apart.mean()).square().mean().sqrt() < 1e-3 * theirs.std()
    assert apart.mean().abs() < 0.02 * theirs.mean().abs()


def test_smooth_pictures_score_higher():
    noise, flat = torch.rand(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.5)
    low, high = JPEGCompressibility()(torch.cat([noise, flat]), [None] * 2)
    assert low < high < 0


@pytest.mark.parametrize("quality", [0, 101])
def test_unknown_quality(quality):
    with pytest.raises(ValueError, match=f"1 to 100, got {quality}"):
        JPEGCompressibility(quality)
