import pytest
import torch

from steering.interpolants import Cosine, RectifiedFlow, VarianceExploding, VPLinear
from steering.prediction import Posterior, known_prediction, output_of, posterior_of
from steering.times import Time

KINDS = ["epsilon", "v_prediction", "sample", "flow_prediction"]
PATHS = {"vp": VPLinear(), "cosine": Cosine(), "flow": RectifiedFlow(), "ve": VarianceExploding()}


def truth(rows: int, dtype=torch.float64) -> Posterior:
    generator = torch.Generator().manual_seed(1)
    x_0, eps = torch.randn(2, rows, 3, 4, dtype=dtype, generator=generator)
    return Posterior(x_0, eps)


def mixed(posterior: Posterior, times: list[Time]) -> torch.Tensor:
    return torch.stack(
        [
            t.alpha * x + t.sigma * e
            for t, x, e in zip(times, posterior.x_0, posterior.eps, strict=True)
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_every_prediction_round_trips_on_every_interpolant(kind, path):
    posterior = truth(4)
    times = [path.time(t) for t in (0.1, 0.4, 0.6, 0.9)]
    x_t = mixed(posterior, times)
    found = posterior_of(kind, output_of(kind, posterior, times), x_t, times)
    torch.testing.assert_close(found.x_0, posterior.x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eps, posterior.eps, rtol=1e-9, atol=1e-9)


def test_a_time_for_all_rows_equals_one_a_row():
    posterior, time = truth(4), RectifiedFlow().time(0.3)
    x_t = mixed(posterior, [time] * 4)
    for kind in KINDS:
        together = posterior_of(kind, posterior.eps, x_t, time)
        apart = posterior_of(kind, posterior.eps, x_t, [time] * 4)
        torch.testing.assert_close(together.x_0, apart.x_0)
        torch.testing.assert_close(together.eps, apart.eps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_change_by_a_bit_with_its_neighbours_times(kind):
    posterior = truth(2, torch.float32)
    for path in PATHS.values():
        other = path.time(0.5)
        for t in torch.linspace(0.05, 0.95, 19).tolist():
            time = path.time(t)
            alone = posterior_of(kind, posterior.eps, posterior.x_0, [time, time])
            beside = posterior_of(kind, posterior.eps, posterior.x_0, [time, other])
            assert torch.equal(alone.x_0[0], beside.x_0[0])
            assert torch.equal(alone.eps[0], beside.eps[0])


def test_a_start_without_signal_refuses_epsilon_and_takes_v_and_flow():
    start, x_t = Time(999, 0.0, 1.0), torch.randn(2, 3)
    v = -torch.ones(2, 3)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        posterior_of("epsilon", v, x_t, start)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        posterior_of("epsilon", v, x_t, [Time(1, 0.5, 0.5), start])
    for kind in ("v_prediction", "flow_prediction"):
        posterior = posterior_of(kind, v, x_t, start)
        assert torch.isfinite(posterior.x_0).all()
        torch.testing.assert_close(posterior.eps, x_t)
    torch.testing.assert_close(posterior_of("v_prediction", v, x_t, start).x_0, -v)


def test_an_end_without_noise_refuses_sample_prediction():
    with pytest.raises(ValueError, match="sigma is 0"):
        posterior_of("sample", torch.ones(1, 2), torch.ones(1, 2), Time(0, 1.0, 0.0))


def test_posteriors_are_indexed_by_rows():
    posterior = truth(4)
    picked = posterior[torch.tensor([2, 2, 0])]
    assert torch.equal(picked.x_0, posterior.x_0[[2, 2, 0]])
    assert torch.equal(posterior[1:3].eps, posterior.eps[1:3])


def test_unknown_predictions_are_named_with_the_known_ones():
    assert known_prediction("epsilon") == "epsilon"
    with pytest.raises(ValueError, match=r"'eps'.*epsilon, v_prediction, sample, flow_prediction"):
        known_prediction("eps")
