"""The pages of docs/samplers and the README: their examples run, and no search is without a page."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

import samplers
from steering.command.main import main
from steering.command.options import names
from steering.search import Search
from steering.strength import Calibration, calibration_folders

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "samplers").glob("*.md"))
STEPS = 6  #: in place of the 25 of the examples; FK steering looks at the fifth
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


def ids(page):
    return page.stem


@pytest.fixture
def given(shapes_sd, shapes_clip, tmp_path, monkeypatch):
    """What a page takes for granted, in a folder of its own; lambda needs no pilot."""
    from steering import SteeredPipeline

    monkeypatch.chdir(tmp_path)
    sampler = samplers.FKSteering()
    steered = SteeredPipeline(shapes_sd, sampler=sampler, reward=shapes_clip)
    key = steered.calibration_key(num_inference_steps=STEPS, guidance_scale=2.0)
    Calibration(*key, centred=(-3.0, 3.0, -3.0, 3.0), prompts=1).save(calibration_folders()[0])
    return {
        "pipe": shapes_sd,
        "reward": shapes_clip,
        "sampler": sampler,
        "SteeredPipeline": SteeredPipeline,
    }


def shortened(code):
    """With few steps, half the particles, and a sampler where a line leaves it open."""
    code = re.sub(r"particles=(\d+)", lambda found: f"particles={max(int(found[1]) // 2, 2)}", code)
    code = code.replace("num_inference_steps=25", f"num_inference_steps={STEPS}")
    return (
        code.replace("sampler=...", "sampler=sampler")
        .replace("nfe=80", "nfe=40")
        .replace("nfe=300", "nfe=30")
    )


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "docs" / "pipelines.md", ROOT / "docs" / "repair.md", *PAGES],
    ids=ids,
)
def test_examples_run(page, given, capsys):
    found = blocks(page, "python")
    assert found
    for code in found:
        exec(compile(shortened(code), str(page), "exec"), given)
    if "out" in given and page.parent.name == "samplers":
        assert given["out"].steering.scores


TREE = ROOT / "docs" / "tree-of-frames.md"


def test_the_example_of_the_tree_of_frames_runs(monkeypatch):
    """On the tiny Helios, in place of one that is downloaded, and a reward without weights."""
    import diffusers
    from tiny_pipelines import chunked

    from rewards import PythonFunction

    pipe = chunked.helios()
    pipe.set_progress_bar_config(disable=True)
    pipe.to = lambda device: pipe
    monkeypatch.setattr(diffusers.HeliosPipeline, "from_pretrained", lambda name: pipe)
    bright = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)), name="bright")
    monkeypatch.setattr("rewards.clip.CLIPScore", lambda: bright)
    [code] = blocks(TREE, "python")
    told = re.search(r"# (\d+) chunks of (\d+) frames: (\d+) denoiser calls", code)
    made, _, calls = (int(number) for number in told.groups())
    given = {}
    small = '"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 16'
    call = re.search(r'"height": 384, "width": 640, "num_inference_steps": 50', code)[0]
    exec(compile(code.replace(call, small), str(TREE), "exec"), given)
    assert given["video"].shape == (132, 3, 16, 16)
    assert given["tree"].chunk_count == made
    assert given["tree"].plan().nfe == made * 2 == given["state"].spent.nfe
    assert calls == made * 50


def test_the_costs_of_the_tree_of_frames_are_as_said():
    from rewards import MotionAmount
    from samplers import ChunkLevel, TreeOfFrames

    judges = dict.fromkeys(("first", "middle", "last"), MotionAmount())
    rows = re.findall(r"^\| `branch=\((.*?)\), keep=(\d)` \| (.*?) \|$", TREE.read_text(), re.M)
    assert len(rows) == 2
    for branch, keep, counts in rows:
        for chunks, count in zip((4, 8, 16), counts.split(" | "), strict=True):
            levels = ChunkLevel.stages(
                chunks, **judges, branch=tuple(map(int, branch.split(","))), keep=int(keep)
            )
            assert TreeOfFrames(SimpleNamespace(chunks=None), levels).chunk_count == int(count)


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "README"], ids=ids)
def test_commands_parse_and_plan(page, capsys):
    found = blocks(page, "sh")
    assert found
    for line in "".join(found).replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line)
        assert words[:2] == ["steer", "generate"]
        at = words.index("--output")
        assert words[at + 1] == f"outputs/{page.stem.split('-noise')[0]}"
        assert main(["plan", *words[2:at], *words[at + 2 :]]) == 0, capsys.readouterr().err


def test_every_search_and_stage_has_a_page():
    index = (ROOT / "docs" / "samplers" / "README.md").read_text()
    for name in samplers.__all__:
        kind = getattr(samplers, name)
        if issubclass(kind, Search):
            assert f"`{name}`" in index, f"{name} is missing from docs/samplers/README.md"
        if name != "BestOfNState":
            assert any(name in page.read_text() for page in PAGES), f"no page says what {name} is"


def test_every_configuration_is_named_in_the_index_and_on_its_page():
    index = (ROOT / "docs" / "samplers" / "README.md").read_text()
    for name in names("sampler"):
        assert f"`{name}`" in index
        assert f"--sampler {name} " in (ROOT / "docs" / "samplers" / f"{name}.md").read_text()


@pytest.mark.parametrize(
    "page",
    [
        ROOT / "README.md",
        *(ROOT / "docs" / f"{name}.md" for name in ("pipelines", "repair", "video")),
        ROOT / "docs" / "tree-of-frames.md",
        *PAGES,
    ],
    ids=ids,
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_a_page_is_short_and_in_the_index(page):
    assert len(page.read_text().splitlines()) <= 120
    index = (ROOT / "docs" / "samplers" / "README.md").read_text()
    assert page.stem == "README" or f"({page.name})" in index
