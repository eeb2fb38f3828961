import json

import pytest
import torch
from helpers import mixture
from scipy.stats import spearmanr

from steering.clarity import Clarity, clarity_folders
from steering.mixtures import flow_grid
from steering.watching import steps_of

GRID = mixture(steps=10)[1].grid


def made(ranked, looked=(1, 4, 7)):
    levels = tuple(GRID[i].log_snr for i in looked)
    return Clarity("m", "r", 10, tuple(looked), levels, tuple(ranked), 12, 2)


def test_it_is_spearmans_correlation_within_prompts():
    generator = torch.Generator().manual_seed(0)
    final = [torch.randn(9, generator=generator).double() + 100 * i for i in range(3)]
    early = [
        torch.stack([f + torch.randn(9, generator=generator) * s for s in (3.0, 0.3)])
        for f in final
    ]
    found = Clarity.of("m", "r", GRID, [2, 6], list(zip(early, final, strict=True)))
    for level in range(2):
        by_hand = [spearmanr(e[level], f).statistic for e, f in zip(early, final, strict=True)]
        assert found.ranked[level] == pytest.approx(sum(by_hand) / 3)
    assert found.log_snr == (GRID[2].log_snr, GRID[6].log_snr)
    assert (found.samples, found.prompts, found.steps) == (27, 3, 10)


def test_ties_constants_and_impossible_candidates():
    final = torch.tensor([0.0, 1.0, 1.0, 2.0, -torch.inf], dtype=torch.float64)
    early = torch.tensor([[5.0, 6.0, 6.0, 7.0, 9.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    flat = (early[:, :4], torch.ones(4).double())
    found = Clarity.of("m", "r", GRID, [2, 6], [(early, final), flat])
    assert found.ranked == pytest.approx((1.0, 0.0))
    assert (found.samples, found.prompts) == (4, 1)
    with pytest.raises(ValueError, match="reward 'r' needs a prompt with three samples"):
        Clarity.of("m", "r", GRID, [2, 6], [flat])


def test_the_first_trusted_step():
    known = made([0.2, 0.6, 0.9])
    assert [known.trusted(t) for t in (0.1, 0.5, 0.6, 0.95)] == [1, 4, 7, None]
    noisy = made([0.6, 0.2, 0.9])  # what falls with less noise is noise of the measurement
    assert noisy.rising == pytest.approx([0.4, 0.4, 0.9])
    assert noisy.trusted(0.5) == 7


def test_it_is_saved_and_found(tmp_path, monkeypatch):
    known = made([0.2, 0.6, 0.9])
    path = known.save(tmp_path)
    assert Clarity.load(path) == Clarity.find("m", "r", [tmp_path / "none", tmp_path]) == known
    assert Clarity.find("m", "other", [tmp_path]) is None
    path.write_text(json.dumps({"model": "m"}))
    with pytest.raises(ValueError, match="holds no clarity"):
        Clarity.load(path)
    monkeypatch.setenv("DIFFUSION_STEERING_CACHE", str(tmp_path))
    assert clarity_folders() == [tmp_path / "clarity"]


def test_another_grid_is_refused():
    made([0.2, 0.6, 0.9]).check(GRID)
    for other in (flow_grid(10), flow_grid(20)):
        with pytest.raises(ValueError, match="measure it for this scheduler"):
            made([0.2, 0.6, 0.9]).check(other)


def test_levels_are_steps_or_shares():
    assert steps_of([0.1, 0.5, 0.9, 5], 10) == [1, 5, 9]
    assert steps_of([0.1, 0.99], 1) == [0]
    for levels in ([], [10], [-1], [2.5]):
        with pytest.raises(ValueError, match="from 0 to 9"):
            steps_of(levels, 10)
