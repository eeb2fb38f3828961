import pytest
import torch

from rewards import PythonFunction
from rewards.testing import check_reward
from steering.reward import Item

MEDIA = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
ITEMS = [Item("a"), Item("bb"), Item("ccc")]


def red(images, prompts):
    return images[:, 0].square().mean((1, 2))


def test_a_callable():
    reward = PythonFunction(red, differentiable=True)
    assert reward.name == "red"
    check_reward(reward, MEDIA, ITEMS)


def test_it_is_given_the_prompts():
    reward = PythonFunction(lambda images, prompts: [len(p) for p in prompts], needs_text=True)
    check_reward(reward, MEDIA, ITEMS)
    assert reward(MEDIA, [reward.prepare(item) for item in ITEMS]).tolist() == [1, 2, 3]


def test_without_gradient_by_default():
    check_reward(PythonFunction(red), MEDIA, ITEMS)


def test_by_path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def blue(images, prompts):\n    return images[:, 2].mean((1, 2))\n")
    reward = PythonFunction(f"{file}:blue", name="sky")
    assert reward.name == "sky"
    torch.testing.assert_close(reward(MEDIA, ["", "", ""]), MEDIA[:, 2].mean((1, 2)))
    assert PythonFunction("torch:numel").fn is torch.numel


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("torch.numel", ValueError, "'torch.numel' is; write 'package.module:function'"),
        ("torch:nothing", ValueError, "has no attribute 'nothing'"),
        ("torch:__version__", ValueError, "must be callable"),
        ("no_such_module_here:f", ImportError, "no_such_module_here"),
        ("nowhere.py:f", ImportError, r"no file 'nowhere\.py'"),
    ],
)
def test_paths_that_lead_nowhere(path, error, message):
    with pytest.raises(error, match=message):
        PythonFunction(path)


def test_a_wrong_shape_is_named():
    reward = PythonFunction(lambda images, prompts: images.mean(), name="mean")
    with pytest.raises(ValueError, match=r"'mean' returned shape \(\) .* expected \(3,\)"):
        reward(MEDIA, ["", "", ""])
