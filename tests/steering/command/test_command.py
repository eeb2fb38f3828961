"""The command, run as a user would; two steps, so that it is fast."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rewards import JPEGCompressibility, ShapesCLIP
from samplers import FKSteering
from steering.command.main import main
from steering.command.options import UsageError, read_prompts, resolve_names
from steering.pipeline import SteeredPipeline

FAST = ["--pipeline", "shapes-sd", "--pipeline.call.num_inference_steps", "3"]
FK = ["--sampler", "fk", "--sampler.particles", "2", "--sampler.start", "1", "--sampler.every", "1"]
REWARD = ["--reward", "shapes-clip", "--strength.unit", "raw", "--strength.value", "0.5"]


def generate(output, *more, prompts=("a red ring", "two blue squares")):
    words = [w for p in prompts for w in ("--prompt", p)]
    return main(
        ["generate", *FAST, *FK, *REWARD, *words, "--output", str(output), *more,
         "--progress", "false"]
    )  # fmt: skip


def pictures(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted(Path(folder).glob("*.png"))}


def records(folder):
    found = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("*.json"))]
    return {r["prompt"]: r for r in found if "prompt" in r}


def test_pictures_carry_metadata_and_traces_are_written(tmp_path, capsys):
    assert generate(tmp_path, "--held_out", "shapes-verifier", "--seed", "5") == 0
    found = records(tmp_path)
    assert set(found) == {"a red ring", "two blue squares"}
    record = found["a red ring"]
    assert record["usage"]["nfe"] == 6
    assert record["lambda"] == 0.5
    assert {"shapes-clip", "shapes-verifier"} == set(record["scores"][0])
    assert [r["step"] for r in record["trace"] if "ess" in r] == [1, 2, 3]
    text = Image.open(tmp_path / record["files"][0]).text
    assert (text["prompt"], text["seed"]) == ("a red ring", "5")
    assert json.loads(text["scores"]) == record["scores"][0]
    assert text["sampler"].startswith("FKSteering(particles=2")
    assert text["version"]


def test_several_rewards_are_held_out(tmp_path, capsys):
    judges = ("--held-out", "shapes-verifier", "jpeg", "--held_out.quality", "50")
    one = ("a red ring",)
    assert generate(tmp_path / "one", *judges, prompts=one) == 0
    more = ("--held-out", "shapes-verifier", "--held-out=jpeg", "--held-out.quality", "50")
    assert generate(tmp_path / "one", *more, prompts=one) == 0  # the same settings, said otherwise
    (record,) = records(tmp_path / "one").values()
    (scores,) = record["scores"]
    assert list(scores) == ["shapes-clip", "shapes-verifier", "jpeg"]
    (file,) = record["files"]
    picture = Image.open(tmp_path / "one" / file)
    media = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    expected = JPEGCompressibility(quality=50)(media, [None])
    assert scores["jpeg"] == pytest.approx(float(expected[0]))
    assert generate(tmp_path / "one", *judges[:2], prompts=one) == 2
    assert "held_out" in capsys.readouterr().err


@pytest.mark.parametrize("judges", [("jpeg", "jpeg"), ("shapes-clip",)])
def test_two_rewards_of_one_name_are_refused(tmp_path, capsys, judges):
    assert generate(tmp_path, "--held-out", *judges) == 2
    assert f"two rewards are called '{judges[0]}'" in capsys.readouterr().err
    assert generate(tmp_path, "--held-out", "jepg") == 2
    assert "did you mean 'jpeg'?" in capsys.readouterr().err


def test_the_door_is_an_option_and_said(tmp_path, capsys):
    assert generate(tmp_path, "--door", "inverted", prompts=("a red ring",)) == 0
    (record,) = records(tmp_path).values()
    assert record["door"] == "inverted"
    assert "door='inverted' was asked for" in record["reason"]
    assert "the pipeline's door is inverted" in capsys.readouterr().err


def test_a_second_run_skips_what_is_done_and_other_settings_are_refused(tmp_path, capsys):
    assert generate(tmp_path) == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    assert generate(tmp_path, prompts=("a red ring", "two blue squares", "a green cross")) == 0
    after = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    assert len(after) == 3
    assert all(after[p] == t for p, t in before.items())
    assert generate(tmp_path, "--seed", "1") == 2
    assert "seed" in capsys.readouterr().err
    assert generate(tmp_path, "--seed", "1", "--overwrite", "true") == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shapes-sd", "shapes-flux"])
def test_processes_order_and_resumption_change_nothing(tmp_path, model):
    """Deterministic mode: one process, two processes, and one that was killed half-way."""
    prompts = ["a red ring", "two blue squares", "a green cross", "a ring", "three crosses"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    (tmp_path / "turned.txt").write_text("\n".join(prompts[::-1]))
    common = [
        *FK, *REWARD, "--deterministic", "true", "--bucket", "4", "--progress", "false",
        "--pipeline.device", "cpu", "--pipeline", model, "--pipeline.call.num_inference_steps", "3",
    ]  # fmt: skip
    script = str(Path(__file__).parents[3] / "scripts" / "generate.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(output, *launcher, file="prompts.txt", more=()):
        words = [*launcher, script, *common, "--output", str(tmp_path / output), *more]
        words += ["--prompts_file", str(tmp_path / file)]
        return subprocess.Popen([sys.executable, *words], env=environment)

    assert start("one").wait() == 0
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    launch += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    assert start("two", *launch, file="turned.txt").wait() == 0
    killed = start("killed", more=("--chunk", "1", "--batch_size", "1"))
    while killed.poll() is None:
        if len(records(tmp_path / "killed")) >= 1:
            killed.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    killed.wait()
    assert 1 <= len(records(tmp_path / "killed")) < 5
    assert start("killed", more=("--chunk", "2")).wait() == 0
    reference, traces = pictures(tmp_path / "one"), records(tmp_path / "one")
    assert len(reference) == 5
    for other in ("two", "killed"):
        found = pictures(tmp_path / other)
        assert found.keys() == reference.keys()
        assert all(np.array_equal(found[name], reference[name]) for name in found)
        for prompt, record in records(tmp_path / other).items():
            assert record["trace"] == traces[prompt]["trace"]
            assert record["log_weights"] == traces[prompt]["log_weights"]


def test_another_reward_or_an_overwritten_folder_leaves_nothing_behind(tmp_path, capsys):
    jpeg = ["--reward", "jpeg", "--strength.unit", "raw"]
    assert generate(tmp_path, *jpeg, "--reward.quality", "50", prompts=("a ring",)) == 0
    assert generate(tmp_path, *jpeg, "--reward.quality", "90", prompts=("a ring",)) == 2
    assert "reward" in capsys.readouterr().err
    (tmp_path / "mine.json").write_text("{}")
    other = (*jpeg, "--reward.quality", "90", "--overwrite", "true")
    assert generate(tmp_path, *other, prompts=("a cross",)) == 0
    assert [p.name[:7] for p in tmp_path.glob("*.png")] == ["a-cross"]
    assert (tmp_path / "mine.json").is_file()


def test_a_pilot_of_a_run_is_written_down(tmp_path):
    words = ("--strength.unit", "spread", "--strength.value", "1", "--reward", "jpeg")
    assert generate(tmp_path, *words, prompts=("a ring",)) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["pilot"]["nfe"] == 8 * 3


def test_flux_takes_its_negative_prompt_and_calibration_from_its_configuration(tmp_path):
    words = ["--pipeline", "shapes-flux", *FK, "--reward", "shapes-clip", "--prompt", "a ring"]
    assert main(["generate", *words, "--output", str(tmp_path), "--progress", "false"]) == 0
    record = records(tmp_path)["a ring"]
    assert record["usage"]["passes"] == 2 * record["usage"]["nfe"] == 2 * 2 * 25
    run = json.loads((tmp_path / "run.json").read_text())
    assert "pilot" not in run  # the shipped calibration was found


def test_a_plan_loads_no_weights(capsys, monkeypatch):
    import diffusers

    import rewards

    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", never)
    monkeypatch.setattr(rewards.ShapesCLIP, "__init__", never)
    words = ["plan", "--pipeline", "shapes-sd", "--sampler", "fk", "--reward", "shapes-clip"]
    assert main([*words, "--prompts_file", "shapes:hard"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["nfe"] == 128 * 4 * 25
    assert said["decodes"] == said["reward_calls"] == 128 * 4 * 5
    assert said["seconds"] == "not measured"


def test_a_run_leaves_figures_for_the_next_plan_and_for_python(tmp_path, capsys, shapes_sd):
    assert generate(tmp_path) == 0
    words = ["plan", *FAST, *FK, "--reward", "shapes-clip", "--prompt", "a ring"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["seconds"] > 0
    assert said["memory_bytes"] > 1e8

    steered = SteeredPipeline(
        shapes_sd, sampler=FKSteering(2, start=1, every=1), reward=ShapesCLIP()
    )
    here = steered.plan("a ring", num_inference_steps=3, guidance_scale=2.0)
    assert here["seconds"] == said["seconds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "fkk"], "did you mean 'fk'"),
        (["--reward", "shapes-clp"], "did you mean 'shapes-clip'"),
        (["--pipeline", "shapes-ds"], "did you mean 'shapes-sd'"),
        (["--sampler.particels", "3"], "did you mean 'particles'"),
        (["--sampler.particles", "many"], "many"),
        (["--sampler.particles", "0"], "at least 1"),
        (["--strenght", "3"], "did you mean 'strength'"),
        (["--pipeline.modl", "x"], "modl"),
        (["--pipeline", "."], "no model_index.json"),
        (["--pipeline", "/no/such/folder"], "no pipeline '/no/such/folder'"),
        (["--output", "/proc/nowhere"], "cannot write to the output folder '/proc/nowhere'"),
        (["--prompts_file", "/no/prompts.txt"], "no prompts file"),
        (["--strength.value", "-1"], "not below 0"),
        (["--budget.nfe", "2"], "budget"),
        (["--pipeline.call.num_inference_stepz", "2"], "did you mean 'num_inference_steps'"),
        (["--pipeline.call.output_type", "np"], "output_type must be 'pil'"),
        (["--samplr.n", "2"], "did you mean 'sampler'"),
        (["--sampler.zz", "3"], "known are particles"),
    ],
)
def test_mistakes_are_named_with_the_fix(words, message, tmp_path, capsys):
    given = ["generate", *FAST, *FK, *REWARD, "--prompt", "a ring", "--output", str(tmp_path)]
    assert main([*given, "--progress", "false", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_most_mistakes_load_no_model(monkeypatch, tmp_path, capsys):
    import rewards

    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(rewards.ShapesCLIP, "__init__", never)
    for words in (["--sampler.particels", "3"], ["--output", "/proc/x"], ["--pipeline", "."]):
        given = ["generate", *FAST, *FK, *REWARD, "--prompt", "a", "--output", str(tmp_path)]
        assert main([*given, *words]) == 2


def test_a_failed_prompt_exits_with_1_and_the_others_are_written(tmp_path, capsys):
    reward = tmp_path / "moody.py"
    reward.write_text(
        "def score(images, prompts):\n"
        "    if 'two blue squares' in prompts:\n"
        "        raise ValueError('not today')\n"
        "    return images.mean((1, 2, 3))\n"
    )
    words = ["--reward", "rewards.PythonFunction", "--reward.fn", f"{reward}:score"]
    assert generate(tmp_path / "out", *words) == 1
    assert "prompt 'two blue squares': not today" in capsys.readouterr().err
    assert set(records(tmp_path / "out")) == {"a red ring"}


def test_prompts_from_files(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# comment\n a ring \n\na: b\n")
    assert read_prompts(["x"], file) == ["x", "a ring", "a: b"]
    assert len(read_prompts([], Path("shapes:hard"))) == 128
    with pytest.raises(UsageError, match="no prompts"):
        read_prompts([], None)


def test_prompts_reach_the_parser_as_they_are():
    words = resolve_names(["--prompt", "a: b", "--prompt=[x", "--sampler=fk"])
    assert words[:2] == ["--prompt+=a: b", "--prompt+=[x"]
    assert words[2].endswith("sampler/fk.yaml")


def test_the_list_names_every_configuration(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "shapes-flux" in said
    assert "best-of-n" in said
    assert "shapes-clip" in said


def test_the_demo_writes_pictures_plot_and_summary(tmp_path, capsys):
    words = ["demo", "--prompts", "2", "--candidates", "2", "--output", str(tmp_path)]
    assert main([*words, "--strength", '{"value": 1.0, "unit": "raw"}', "--progress", "false"]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    keys = {"sampler", "nfe", "decodes", "reward_calls", "seconds", "reward", "accuracy", "prompts"}
    assert [r["sampler"] for r in rows] == ["base", "best-of-2", "fk-2"]
    assert all(keys <= set(r) for r in rows)
    assert rows[1]["nfe"] == rows[2]["nfe"] == 50
    assert Image.open(tmp_path / "grid.png").size[0] > 300
    assert (tmp_path / "plot.png").is_file()
    assert "grid.png" in capsys.readouterr().out
