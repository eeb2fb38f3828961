import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def train(folder, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / "train_shapes.py"), *arguments]
    command += ["--tiny", "--device", "cpu", "--work", str(folder), "--out", str(folder / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_every_model_trains_is_saved_and_resumes(tmp_path):
    first = train(tmp_path, "vae", "sd", "flux", "clip", "video", "--steps", "2")
    assert first.count("step 2 loss") == 5
    assert "resumed" not in first
    for name in ("shapes-sd/unet", "shapes-flux/transformer", "shapes-clip", "shapes-video/unet"):
        assert list((tmp_path / "out" / name).glob("*.safetensors")), name
    again = train(tmp_path, "sd", "flux", "clip", "video", "--steps", "4")
    assert again.count("resumed at step 2") == 4
    assert again.count("step 4 loss") == 4


def test_an_unknown_command_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train_shapes.py"), "sdxl"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "invalid choice: 'sdxl'" in result.stderr
