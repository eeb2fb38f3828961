"""The comparison on moving shapes, rehearsed with an untrained tiny model."""

import importlib
import json

import numpy as np
import pytest

TINY = ["--size", "tiny", "--prompts", "2", "--chunk", "2", "--device", "cpu", "--batch_size", "4"]
TINY += ["--fit_prompts", "3", "--fit_samples", "2", "--nfe", "8"]


@pytest.fixture(scope="module")
def world():
    return importlib.import_module("benchmarks.video_world")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "video.json"
    main = importlib.import_module("benchmark").main
    main(["video", "--json", str(path), *TINY, "--samplers", "base", "dlbs-2"])
    return path


def test_cells_are_measured_counted_and_resumed(file):
    before = json.loads(file.read_text())
    fit, base, dlbs = before["rows"]
    assert fit["kind"] == "fit"
    assert fit["fit"]["method"] == "equal", "an untrained model shows the judge nothing"
    assert [row["sampler"] for row in (base, dlbs)] == ["base", "dlbs-2"]
    assert base["nfe"] == base["budget"] == 4
    assert 4 <= dlbs["nfe"] <= 8
    for row in (base, dlbs):
        assert row["right"] == np.mean(row["per_prompt"]["right"]) == 0
        assert row["right_interval"][0] == 0 < row["right_interval"][1]
    main = importlib.import_module("benchmark").main
    main(["video", "--json", str(file), *TINY, "--samplers", "base", "dlbs-2"])
    assert json.loads(file.read_text())["rows"] == before["rows"]
    main(["video", "--json", str(file), *TINY, "--samplers", "fk", "--minutes", "0"])
    assert len(json.loads(file.read_text())["rows"]) == 3


def test_budgets_are_used(world):
    from steering.search import Facts

    for nfe in (200, 400):
        for name in world.SAMPLERS[1:]:
            search = world.search_of(name, nfe, 25)
            spent = search.plan(Facts(25, 25)).cost.nfe
            assert 0.95 * nfe <= spent <= nfe, name
            if name.startswith("dlbs"):
                assert search.lookahead == int(name[-1])
                assert search.start <= 8
    with pytest.raises(ValueError, match="unknown sampler 'dlbs-x'"):
        world.search_of("dlbs-x", 200, 25)


def test_prompts_of_a_chunk_are_of_all_kinds_and_none_is_fitted_on(world):
    from steering import shapes

    chosen = importlib.import_module("benchmarks.video").chosen
    texts = shapes.prompts("motion")
    mixed = chosen(texts, 128, 32)
    assert sorted(mixed) == sorted(texts)
    for first in range(0, 128, 32):
        kinds = [shapes.parse_motion(text).kind for text in mixed[first : first + 32]]
        assert [kinds.count(kind) for kind in ("one", "pace", "two")] == [8, 8, 16]
    assert not set(world.fit_prompts(60, texts)) & set(texts)


def test_the_fit_finds_what_agrees_with_the_judge(world):
    rng = np.random.default_rng(0)
    groups = [i // 8 for i in range(160)]
    target = rng.integers(0, 2, 160).astype(float)
    good, useless = target + 0.3 * rng.normal(size=160), rng.normal(size=160)
    fit = world.fit({"good": list(good), "useless": list(useless)}, list(target), groups)
    assert fit.weights[0] > 0.8
    assert fit.correlation > 0.8


def test_the_page_is_written_from_the_file(file, tmp_path):
    page = importlib.import_module("video_page")
    path = tmp_path / "video.md"
    path.write_text(f"Above\n{page.BEGIN}\nold\n{page.END}\nbelow\n")
    page.write(file, path)
    text = path.read_text()
    assert text.startswith("Above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert "| dlbs-2 | " in text
    assert "| colour-motion | 0.20 | " in text
    path.write_text("no marks")
    with pytest.raises(ValueError, match="must hold each of the lines"):
        page.write(file, path)
