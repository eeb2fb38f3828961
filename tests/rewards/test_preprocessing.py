"""Against open_clip's own PIL transforms."""

from dataclasses import asdict

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from rewards.clip import ContrastiveScore
from rewards.encoders import OpenClipEncoder
from rewards.preprocessing import Preprocess
from steering.reward import Item

SIZES = [(32, 32), (20, 32), (96, 160), (301, 200), (768, 512)]


def official(config, pictures):
    transform = image_transform_v2(config, is_train=False)
    return torch.stack([transform(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pictures])


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equals_the_pil_transforms(pictures, mode, height, width):
    config = PreprocessCfg(size=32, resize_mode=mode, fill_color=40)
    media = pictures(4, height, width)
    ours = Preprocess.from_config(asdict(config))(media / 255)
    theirs = official(config, media)
    assert ours.shape == theirs.shape
    level = 1 / 255 / min(config.std)
    apart = (ours - theirs).abs()
    assert apart.max() < 2.1 * level  # a tie of the first rounding, then of the second
    assert (apart > level / 10).float().mean() < 2e-3


@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_equals_the_pil_transforms_for_oblong_models(pictures, size):
    config = PreprocessCfg(size=size)
    media = pictures(4, 77, 61)
    ours = Preprocess.from_config(asdict(config))(media / 255)
    assert (ours - official(config, media)).abs().mean() < 1e-4


def test_bilinear(pictures):
    config = PreprocessCfg(size=32, interpolation="bilinear")
    media = pictures(2, 77, 61)
    ours = Preprocess.from_config(asdict(config))(media / 255)
    assert (ours - official(config, media)).abs().mean() < 1e-4


@pytest.mark.parametrize(("height", "width"), [*SIZES, (1024, 1536)])
def test_scores_agree_within_a_thousandth_of_their_spread(net, tokenizer, pictures, height, width):
    reward = ContrastiveScore(OpenClipEncoder(net, tokenizer))
    media = pictures(24, height, width)
    feature = reward.prepare(Item("two red rings"))
    ours = reward(media / 255, [feature] * 24)
    config = PreprocessCfg(**net.visual.preprocess_cfg)
    images = net.encode_image(official(config, media), normalize=True)
    theirs = 100 * images @ net.encode_text(tokenizer(["two red rings"]), normalize=True)[0]
    assert (ours - theirs).square().mean().sqrt() < 1e-3 * theirs.std()


def test_pictures_of_the_right_size_are_not_touched():
    media = torch.rand(2, 3, 32, 32)
    plain = Preprocess((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert torch.equal(plain(media), media)


def test_gradients_pass_the_roundings():
    media = torch.rand(2, 3, 40, 50, requires_grad=True)
    plain = Preprocess((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    (gradient,) = torch.autograd.grad(plain(media).sum(), media)
    # A resize that keeps the mean hands each input its share of the output's weight.
    assert gradient.sum() == pytest.approx(2 * 3 * 32 * 32, rel=0.02)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("crop", ["round", "floor"])
def test_gradients_are_finite_differences(pictures, mode, crop):
    media = (pictures(1, 71, 50) / 255 * 0.6 + 0.2).requires_grad_(True)
    preprocess = Preprocess((32, 32), (0.4,) * 3, (0.2,) * 3, resize_mode=mode, crop=crop)
    weights = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((preprocess(media) * weights).sum(), media)
    step = 2.0 * gradient / gradient.norm()  # long, since pixels are rounded to 8 bits
    with torch.no_grad():
        ahead, behind = ((preprocess(media + s * step) * weights).sum() for s in (1, -1))
    assert float(ahead - behind) / 4 == pytest.approx(float(gradient.norm()), rel=0.03)


def test_unknown_crops_are_refused():
    with pytest.raises(ValueError, match="crop is round or floor; got 'left'"):
        Preprocess((8, 8), (0.0,), (1.0,), crop="left")


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match=r"shortest, longest, squash; got 'crop'"):
        Preprocess((8, 8), (0.0,), (1.0,), resize_mode="crop")
    with pytest.raises(ValueError, match="got 'nearest'"):
        Preprocess((8, 8), (0.0,), (1.0,), interpolation="nearest")
