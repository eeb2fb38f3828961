import importlib
import json
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


def rows_of(file: Path, *args: str) -> list[dict]:
    threads = torch.get_num_threads()
    importlib.import_module("benchmark").main(["flows", "--json", str(file), *args])
    torch.set_num_threads(threads)
    return json.loads(file.read_text())["rows"]


def test_the_gaussian_part_covers_every_path_and_transition_and_goes_on(tmp_path):
    methods = importlib.import_module("benchmarks.flow_methods")
    file = tmp_path / "flows.json"
    rows = rows_of(file, "--parts", "gaussian", "--steps", "10")
    cells = {(row["path"], row["transition"]) for row in rows}
    assert cells == {(p, t) for p in methods.PATHS for t in methods.TRANSITIONS}
    (ode,) = [r for r in rows if (r["path"], r["transition"]) == ("flow", "ode")]
    assert ode["std_ratio"] == pytest.approx(0.8616, abs=1e-4)
    assert ode["mean_error"] == pytest.approx(0, abs=1e-9)
    (glass,) = [r for r in rows if (r["path"], r["transition"]) == ("flow", "glass-4")]
    assert glass["nfe"] == 40
    again = rows_of(file, "--parts", "gaussian", "--steps", "10", "20")
    assert again[: len(rows)] == rows
    assert len(again) == 2 * len(rows)


def test_the_embedded_flux_part_measures_quality_and_children(tmp_path):
    file, options = (
        tmp_path / "flows.json",
        ["--parts", "shapes-flux", "--quick", "--device", "cpu"],
    )
    methods = ["--methods", "flow/ode", "flow/glass-2"]
    importlib.import_module("benchmark").main(
        ["flows", "--json", str(file), *options, *methods, "--minutes", "0"]
    )
    assert not file.exists(), "no time, no cell"
    quality, other, children = rows_of(file, *options, *methods)
    assert (quality["measure"], quality["transition"], quality["nfe"]) == ("quality", "ode", 6)
    assert (other["measure"], other["nfe"]) == ("quality", 12)
    assert (children["measure"], children["transition"]) == ("children", "glass-2")
    for name in ("pixels_step", "pixels_onwards", "features_step", "features_onwards"):
        assert 0 < children[name] < 2
    assert children["noise_share"] == pytest.approx(0.8, abs=0.1)


def test_unknown_methods_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown methods"):
        rows_of(tmp_path / "flows.json", "--parts", "shapes-flux", "--methods", "flow/heun")
