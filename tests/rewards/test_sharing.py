"""One forward a batch for rewards on one encoder; texts and models are kept by content."""

import gc

import pytest
import torch
from safetensors.torch import save_file

from rewards import AestheticScore, CLIPScore, PythonFunction, WeightedSum
from rewards.caching import Bounded, digest, levels, shared
from steering.reward import Item, scoring_call

ITEM = Item("a red ring")


@pytest.fixture
def pair(clip_folder, tmp_path):
    """A CLIP score and an aesthetic score on one encoder, and the sizes of its forwards."""
    torch.manual_seed(1)
    head = {"layers.0.weight": torch.randn(1, 24), "layers.0.bias": torch.randn(1)}
    save_file(head, tmp_path / "head.safetensors")
    clip = CLIPScore(str(clip_folder))
    look = AestheticScore(str(tmp_path / "head.safetensors"), str(clip_folder), None)
    sizes = []
    clip.encoder.net.visual.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    return clip, look, sizes


def test_one_forward_a_batch(pair, pictures):
    clip, look, sizes = pair
    media = pictures(5, 40, 32) / 255
    alone = clip(media, [clip.prepare(ITEM)] * 5), look(media, [None] * 5)
    assert sizes == [5, 5]
    both = WeightedSum({"clip": clip, "look": look})
    columns = both(media, [both.prepare(ITEM)] * 5)
    assert sizes == [5, 5, 5]
    assert torch.equal(columns["clip"], alone[0])
    assert torch.equal(columns["look"], alone[1])


def test_features_cost_no_further_forward(pair, pictures):
    clip, look, sizes = pair
    media = pictures(5, 40, 32) / 255
    both = WeightedSum({"clip": clip, "look": look})
    both.batch_limit = clip.batch_limit = 2
    features = [both.prepare(ITEM)] * 5
    for reward in (clip, both):
        assert reward.embeds
        with scoring_call():
            reward(media, features if reward is both else [clip.prepare(ITEM)] * 5)
            forwards = sum(sizes)
            found = reward.embed(media)
        assert sum(sizes) == forwards, reward.name
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert not PythonFunction.embeds


def test_one_backward_too(pair, pictures):
    clip, look, sizes = pair
    media = (pictures(3, 32, 32) / 255).requires_grad_(True)
    both = WeightedSum({"clip": clip, "look": look})
    (together,) = torch.autograd.grad(
        both(media, [both.prepare(ITEM)] * 3)["weighted-sum"].sum(), media
    )
    assert sizes == [3]
    scores = clip(media, [clip.prepare(ITEM)] * 3) + look(media, [None] * 3)
    (apart,) = torch.autograd.grad(scores.sum(), media)
    torch.testing.assert_close(together, apart)


def test_a_reward_without_gradient_leaves_none_to_its_neighbour_and_takes_none(pair, pictures):
    clip, look, _ = pair
    media = (pictures(2, 32, 32) / 255).requires_grad_(True)
    look.differentiable = False
    with scoring_call():
        assert not look(media, [None] * 2).requires_grad
        assert clip(media, [clip.prepare(ITEM)] * 2).requires_grad


def test_other_media_and_changed_media_are_seen(pair, pictures):
    clip, _, sizes = pair
    media = pictures(2, 32, 32) / 255
    features = [clip.prepare(ITEM)] * 2
    with scoring_call():
        first = clip(media, features)
        assert torch.equal(clip(media, features), first)
        assert torch.equal(clip(media.clone(), features), first)
        media.mul_(0.5)
        assert not torch.equal(clip(media, features), first)
    assert len(sizes) == 3
    clip(media, features)
    assert len(sizes) == 4


def test_preprocessing_is_shared_between_encoders(clip_folder, pictures):
    exact, half = CLIPScore(str(clip_folder)), CLIPScore(str(clip_folder), dtype="bfloat16")
    assert exact.encoder is not half.encoder
    media, calls = pictures(2, 64, 48) / 255, []
    with scoring_call() as memo:
        for clip in (exact, half):
            clip(media, [clip.prepare(ITEM)] * 2)
        memo.get(exact.encoder.preprocess, media, lambda: calls.append(1))
    assert calls == []


def test_texts_are_embedded_once(pair):
    clip, _, _ = pair
    texts = []
    clip.encoder.encode_texts, inner = (
        lambda prompts: texts.append(prompts) or inner(prompts),
        clip.encoder.encode_texts,
    )
    first = clip.prepare(ITEM)
    assert torch.equal(clip.prepare(ITEM), first)
    found = clip.encoder.texts(["two stars", "a red ring", "two stars"])
    assert texts == [["a red ring"], ["two stars"]]
    assert torch.equal(found[0], found[2])


def test_an_encoder_lives_as_long_as_its_users(clip_folder):
    first = CLIPScore(str(clip_folder))
    assert CLIPScore(str(clip_folder)).encoder is first.encoder
    assert CLIPScore(str(clip_folder), device="cpu").encoder is not first.encoder
    made = []
    key = object()
    kept = shared(key, lambda: made.append(1) or torch.nn.Linear(1, 1))
    assert shared(key, lambda: made.append(1) or torch.nn.Linear(1, 1)) is kept
    del kept
    gc.collect()
    shared(key, lambda: made.append(1) or torch.nn.Linear(1, 1))
    assert len(made) == 2


def test_changed_weights_are_another_model(clip_folder):
    first = CLIPScore(str(clip_folder))
    file = clip_folder / "open_clip_model.safetensors"
    state = {
        k: v * 0.5 if v.is_floating_point() else v
        for k, v in first.encoder.net.state_dict().items()
    }
    save_file({k: v.contiguous() for k, v in state.items()}, file)
    assert CLIPScore(str(clip_folder)).encoder is not first.encoder


def test_residency(clip_folder, pictures):
    """Between calls the weights are on the CPU; what they compute is the same."""
    moves = []
    away = CLIPScore(str(clip_folder), residency="scoring")
    stays = CLIPScore(str(clip_folder))
    media = pictures(2, 32, 32) / 255
    scores = away(media, [away.prepare(ITEM)] * 2)
    assert torch.equal(scores, stays(media, [stays.prepare(ITEM)] * 2))
    away._move = lambda target, **_: moves.append(target)
    away(media, [away.prepare(ITEM)] * 2)
    assert moves == [torch.device("cpu")] * 2  # to the media's device, and away
    away(media.requires_grad_(True), [away.prepare(ITEM)] * 2)
    assert len(moves) == 3  # a backward pass may follow
    assert away.key == stays.key
    with pytest.raises(ValueError, match="residency is resident or scoring, got 'gpu'"):
        CLIPScore(str(clip_folder), residency="gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_residency_on_a_gpu(clip_folder, pictures):
    media = (pictures(2, 32, 32) / 255).cuda()
    for residency, after in (("scoring", "cpu"), ("resident", "cuda")):
        reward = CLIPScore(str(clip_folder), residency=residency)
        reward(media, [reward.prepare(ITEM)] * 2)
        assert next(reward.encoder.parameters()).device.type == after


def test_bounded_forgets_what_was_used_longest_ago():
    kept = Bounded(2)
    kept["a"], kept["b"] = 1, 2
    assert kept["a"] == 1
    kept["c"] = 3
    assert list(kept) == ["a", "c"]


def test_digests_tell_pictures_apart(pictures):
    first, second = levels(pictures(2, 8, 8) / 255)
    assert digest(first) == digest(first.clone())
    assert digest(first) != digest(second)
    assert digest(first) != digest(first.view(3, 4, 16))


def test_a_function_sees_its_media_as_before():
    seen = []
    PythonFunction(lambda x, _: seen.append(x.shape) or x.mean((1, 2, 3)), name="f")(
        torch.rand(3, 3, 4, 4), [""] * 3
    )
    assert seen == [(3, 3, 4, 4)]


def test_both_ways_of_the_benchmark_score_alike(monkeypatch):
    """What is timed as the published way is what the batch computes."""
    import importlib
    from pathlib import Path

    from PIL import Image

    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    cases = importlib.import_module("benchmarks.reward_models").CASES
    media = torch.rand(1, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    media = (media * 255).byte() / 255
    picture = Image.fromarray((media[0] * 255).byte().permute(1, 2, 0).numpy())
    for name in ("clip", "hps", "pickscore", "image-reward"):
        case = cases[name](True, "cpu", "float32")
        with torch.no_grad():
            score = float(case.reward(media, [case.reward.prepare(ITEM)]))
            published = case.one(picture, ITEM.prompt)
        scale = {"clip": 100, "hps": 100, "pickscore": 100 / 14.285}.get(name, 1)
        if name == "image-reward":
            published = (published - 0.16717362830052426) / 1.0333394966054072
        assert abs(score - published * scale) < 2e-2, name
