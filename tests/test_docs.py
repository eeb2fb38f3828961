"""The pages of docs/samplers and the README: their examples run, and no search is without a page."""

import re
import shlex
from pathlib import Path

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
    [ROOT / "README.md", ROOT / "docs" / "pipelines.md", ROOT / "docs" / "repair.md", *PAGES],
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
