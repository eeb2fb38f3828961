"""``steer repair`` on the embedded world."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rewards import FlawCount, ShapesPlanner, ShapesVerifier
from rewards.weights import WeightsUnavailable
from samplers import Repair
from samplers.repair_state import save_states
from steering.command import repair as command
from steering.command.main import main
from steering.cost import Cost
from steering.live import SearchFailed
from steering.streams import prompt_keys

PROMPTS = ["a red ring and a star", "two stars left of a ring"]


def words(output, *more):
    return [
        "repair",
        *("--pipeline", "shapes-sd", "--pipeline.call.num_inference_steps", "4"),
        *("--reward", "shapes-flaws", "--planner", "shapes", "--editor.call.strength", "1.0"),
        *("--budget.nfe", "20", "--output", str(output), "--progress", "false"),
        *(word for prompt in PROMPTS for word in ("--prompt", prompt)),
        *more,
    ]


def records(output):
    found = [json.loads(path.read_text()) for path in output.glob("*.json")]
    return {record["prompt"]: record for record in found if "prompt" in record}


def test_pictures_and_histories_are_written_once(tmp_path, monkeypatch, capsys):
    assert main(words(tmp_path)) == 0, capsys.readouterr().err
    found = records(tmp_path)
    assert set(found) == set(PROMPTS)
    for prompt, record in found.items():
        pixels = np.asarray(Image.open(tmp_path / record["files"][0]), dtype=np.float32) / 255
        right = ShapesVerifier()(torch.from_numpy(pixels).permute(2, 0, 1)[None], [prompt])
        assert bool(right) == (record["done"] == "right") == (record["reward"] == 0)
        usage = record["usage"]
        assert usage["nfe"] == 4 * (usage["paints"] + usage["edits"]) <= 20
        assert record["trace"][0]["event"] == "picture"
    assert not (tmp_path / "in-flight.safetensors").exists()
    monkeypatch.setattr(command, "_run", pytest.fail)
    assert main(words(tmp_path)) == 0  # nothing is left to do
    assert main(words(tmp_path, "--tries", "2")) == 2
    assert "tries differ" in capsys.readouterr().err


class Free:
    """An editor that is never asked to edit."""

    def cost(self):
        return Cost()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    """What lies in flight is gone on with: a state that says it is done is written as it is."""
    flight = tmp_path / "in-flight.safetensors"
    loop = Repair(ShapesPlanner(), Free(), FlawCount(ShapesPlanner()), rounds=1)
    states = loop.begin(PROMPTS, pictures=torch.rand(2, 3, 64, 64), keys=prompt_keys(PROMPTS))
    for state in states:
        state.done = "right"
    save_states(flight, states)
    assert main(words(tmp_path)) == 0, capsys.readouterr().err
    for state in states:
        picture = Image.open(tmp_path / records(tmp_path)[state.item.prompt]["files"][0])
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert torch.equal(pixels, (state.best * 255).round().byte())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--planner", "shape"], "did you mean 'shapes'"),
        (["--editor.kind", "own"], "give a model with kind own"),
        (["--editor.call.strengh", "0.5"], "no argument 'strengh'"),
        (["--editor.wording", "do"], "wording must hold"),
        (["--prompt", "a purple cow", "--reward", "shapes-verifier"], "cow"),
    ],
)
def test_mistakes_are_told(tmp_path, more, message, capsys):
    assert main(words(tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (WeightsUnavailable("no weights in the cache"), 2),
        (ImportError("pip install what is missing"), 2),
        (PermissionError("not yours"), 2),
        (SearchFailed("prompt 'a': no score today"), 1),
    ],
)
def test_errors_end_in_a_message_and_not_in_a_traceback(
    tmp_path, monkeypatch, capsys, error, status
):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(command, "load_pipeline", broken)
    assert main(words(tmp_path)) == status
    assert capsys.readouterr().err == f"steer: {error}\n"


def test_weights_that_cannot_be_had_are_told(tmp_path, monkeypatch, capsys):
    """The planner of another family, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(words(tmp_path, "--planner", "vlm")) == 2
    told = capsys.readouterr().err
    assert "cannot load 'Qwen" in told
    assert "hub's cache" in told


def test_a_run_without_an_end_is_refused_before_a_model_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_pipeline", pytest.fail)
    given = [w for w in words(tmp_path) if w not in ("--budget.nfe", "20")]
    assert main(given) == 2
    assert "nothing ends the repair" in capsys.readouterr().err


def test_image_to_image_edits_too(tmp_path, capsys):
    more = ["--editor.kind", "image-to-image", "--editor.call.strength", "0.5"]
    assert main(words(tmp_path, *more)) == 0, capsys.readouterr().err
    for record in records(tmp_path).values():
        usage = record["usage"]
        assert usage["nfe"] == 4 * usage["paints"] + 2 * usage["edits"]
