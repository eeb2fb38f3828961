"""docs/rewards.md: its examples run, and no reward or configuration is left out."""

import re
from pathlib import Path

import torch

import rewards
from rewards.geneval import Spec
from rewards.testing import check_reward
from steering.command.options import names
from steering.reward import Item

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_examples_run(capsys):
    given = {}
    for code in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S):
        exec(compile(code.replace("steps=25", "steps=2"), str(PAGE), "exec"), given)
    assert "fits" in capsys.readouterr().out
    assert Spec.of(given["metadata"]).include[1].relation == "left of"
    media = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    check_reward(given["Redness"](), media, [Item("")] * 3)


def test_every_reward_and_configuration_is_there():
    for name in rewards.__all__:
        kind = getattr(rewards, name)
        if (
            isinstance(kind, type)
            and issubclass(kind, rewards.RewardModel)
            and name != "RewardModel"
        ):
            assert f"{name}`" in TEXT, f"{name} is missing from docs/rewards.md"
    for name in names("reward"):
        assert f"`{name}`" in TEXT, f"the configuration {name} is missing from docs/rewards.md"


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (PAGE.parent / link).exists(), link


def test_it_is_one_page():
    assert len(TEXT.splitlines()) <= 150
