import math

import pytest
import torch

from steering.times import Time, TimeGrid, coefficients, column


def test_log_snr_of_a_time_and_its_infinite_ends():
    assert Time(0, 0.6, 0.3).log_snr == pytest.approx(math.log(4))
    assert Time(0, 1.0, 0.0).log_snr == math.inf
    assert Time(0, 0.0, 1.0).log_snr == -math.inf


@pytest.mark.parametrize(
    ("alpha", "sigma"), [(-1, 1), (1, -1), (0, 0), (math.nan, 1), (1, math.nan), (math.inf, 1)]
)
def test_impossible_noise_levels_are_refused(alpha, sigma):
    with pytest.raises(ValueError, match="alpha"):
        Time(0, alpha, sigma)


def test_a_grid_includes_its_end_and_slices_like_a_sequence():
    times = (Time(2, 0, 1), Time(1, 0.5, 0.5), Time(0, 1, 0))
    grid = TimeGrid(times)
    assert grid.steps == 2
    assert len(grid) == 3
    assert tuple(grid) == times
    assert grid[-1] == times[2]
    assert grid[:-1] == times[:2]


@pytest.mark.parametrize(
    "times",
    [
        (Time(0, 1, 1),),
        (Time(1, 0.5, 0.5), Time(1, 0.5, 0.5)),
        (Time(0, 1, 0), Time(1, 0.5, 0.5)),
    ],
    ids=["one time", "no noise lost", "noise gained"],
)
def test_a_grid_must_lose_noise_at_every_step(times):
    with pytest.raises(ValueError, match=r"grid needs|lose noise"):
        TimeGrid(times)


def test_coefficients_are_floats_for_one_time_and_columns_for_one_a_row():
    x = torch.zeros(2, 3, 4)
    assert coefficients(Time(0, 0.8, 0.6), x) == (0.8, 0.6)
    alpha, sigma = coefficients([Time(0, 0.8, 0.6), Time(1, 0.6, 0.8)], x)
    assert alpha.shape == sigma.shape == (2, 1, 1)
    assert alpha.dtype == torch.float32
    assert column([1.0, 2.0], x).flatten().tolist() == [1, 2]


def test_one_time_a_row_means_as_many_times_as_rows():
    with pytest.raises(ValueError, match="1 times for 2 rows"):
        coefficients([Time(0, 1, 1)], torch.zeros(2, 3))
