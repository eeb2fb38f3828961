"""The benchmark of offloading, without a GPU as far as that goes."""

import importlib
import json

import pytest
import torch


def test_a_row_without_offloading(tmp_path):
    path = tmp_path / "found.json"
    words = ["offload", "--json", str(path), "--size", "tiny", "--steps", "2", "--candidates", "2"]
    words += ["--device", "cpu", "--modes", "none"]
    for _ in range(2):  # the second finds all done
        importlib.import_module("benchmark").main(words)
    (row,) = json.loads(path.read_text())["rows"]
    assert row["max_diff"] < 1e-4
    assert row["search_seconds"] > 0
    assert row["search_peak_bytes"] is None


def test_offloading_needs_a_gpu(tmp_path):
    words = ["offload", "--json", str(tmp_path / "found.json"), "--device", "cpu"]
    with pytest.raises(ValueError, match="allows --modes none alone"):
        importlib.import_module("benchmark").main(words)


@pytest.mark.gpu
def test_offloading_saves_memory_and_changes_no_picture(tmp_path):
    path = tmp_path / "found.json"
    words = ["offload", "--json", str(path), "--size", "tiny", "--steps", "3"]
    importlib.import_module("benchmark").main(words)
    rows = {row["mode"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {"none", "model", "sequential"}
    assert all(row["max_diff"] < 5e-2 for row in rows.values())  # half precision
    assert not torch.backends.cudnn.allow_tf32
