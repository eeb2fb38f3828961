import itertools

import pytest
import torch
from scipy import stats

from steering.streams import Streams, prompt_keys, seeded_generator

SHAPE = (4, 3)


def draw(seed=0, key="p", purpose="transition", draw_id=0, step=0) -> torch.Tensor:
    return Streams(seed, key).normal(purpose, [draw_id], step, SHAPE)[0]


def test_numbers_do_not_depend_on_order_or_batching():
    together = Streams(5, "a").normal("transition", [0, 1, 2, 3], 7, SHAPE)
    streams = Streams(5, "a")
    streams.uniform("resampling", 0, 7, 5)  # odd amounts drawn before must leave no trace
    apart = {d: streams.normal("transition", [d], 7, SHAPE)[0] for d in (3, 0)}
    apart |= dict(zip((2, 1), streams.normal("transition", [2, 1], 7, SHAPE), strict=True))
    assert torch.equal(torch.stack([apart[d] for d in range(4)]), together)


def test_a_longer_row_begins_like_a_shorter_one():
    short = Streams(0, "a").normal("initial", [0], 0, (5,))
    long = Streams(0, "a").normal("initial", [0], 0, (2, 500))
    assert torch.equal(long.flatten()[:5], short.flatten())


VARIANTS = [
    {},
    {"seed": 1},
    {"seed": 2**32},
    {"seed": 2**63},
    {"seed": -1},
    {"key": "q"},
    {"purpose": "initial"},
    {"draw_id": 1},
    {"draw_id": 2**40},
    {"step": 1},
    {"step": 2**33},
]


def test_every_argument_makes_another_stream():
    rows = [draw(**variant) for variant in VARIANTS]
    for a, b in itertools.combinations(rows, 2):
        assert not torch.isin(a, b).any()


def test_neighbouring_streams_are_uncorrelated():
    streams = Streams(0, "a")
    rows = torch.stack(
        [streams.normal("transition", [d], s, (4000,))[0] for d in range(3) for s in range(3)]
    )
    correlation = torch.corrcoef(rows.double()) - torch.eye(9)
    assert float(correlation.abs().max()) < 5 / 4000**0.5


def test_normals_are_normal_and_uniforms_uniform():
    streams = Streams(11, "a")
    normal = streams.normal("transition", range(200), 3, (100,)).flatten().numpy()
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    first = streams.normal("transition", range(200, 4200), 3, (1,)).flatten().numpy()
    assert stats.kstest(first, "norm").pvalue > 1e-4, "across streams, at their first number"
    uniform = streams.uniform("resampling", 0, 0, 20_000).numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert 0 <= uniform.min() <= uniform.max() < 1


def test_reuse_of_an_address_is_an_error():
    streams = Streams(0, "a")
    streams.normal("transition", [0, 1], 0, SHAPE)
    for again in (
        lambda: streams.normal("transition", [2, 1], 0, SHAPE),
        lambda: streams.uniform("transition", 0, 0, 3),
        lambda: streams.integer("transition", 1, 0),
    ):
        with pytest.raises(RuntimeError, match=r"already used.*serials"):
            again()
    streams.normal("transition", [0], 1, SHAPE)
    streams.normal("initial", [0], 0, SHAPE)


def test_no_draws_give_no_rows():
    assert Streams(0, "a").normal("initial", [], 0, SHAPE).shape == (0, *SHAPE)


def test_kinds_of_numbers():
    streams = Streams(0, "a")
    assert streams.normal("n", [0], 0, SHAPE).dtype == torch.float32
    assert streams.uniform("u", 0, 0, 3).dtype == torch.float64
    assert 0 <= streams.integer("i", 0, 0) < 2**63
    assert Streams(0, "a").integer("i", 0, 0) == Streams(0, "a").integer("i", 0, 0)


def test_prompt_keys_are_the_text_and_its_occurrence_or_the_id():
    keys = prompt_keys(["a", "b", "a"])
    assert len(set(keys)) == 3
    assert prompt_keys(["b", "a", "c", "a"])[1::2] == [keys[0], keys[2]], (
        "order of others matters not"
    )
    assert len({*prompt_keys(["a", "a"], ids=[1, 2]), *keys}) == 5


@pytest.mark.parametrize("ids", [[1], [1, 1], [1, "1"], [1, 2, 3]])
def test_ids_must_be_one_a_prompt_and_distinct(ids):
    with pytest.raises(ValueError, match="one distinct id"):
        prompt_keys(["a", "b"], ids)


def test_a_seeded_generator_keeps_all_64_bits():
    def draw(seed):
        return torch.randn(1000, generator=seeded_generator(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(3 + (1 << 32)))
    assert not torch.equal(draw(3), draw(3 + (1 << 62)))
    many = torch.cat([draw(s << 32) for s in range(50)])
    assert abs(float(many.mean())) < 0.02
    assert float(many.std()) == pytest.approx(1.0, abs=0.02)
