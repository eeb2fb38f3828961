"""``steer compare`` and its report, opened in a real browser; four steps, so that it is fast."""

import html.parser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from steering.command.main import main
from steering.command.options import UsageError

ROOT = Path(__file__).parents[3]
PROMPTS = ("a red ring", "two blue squares & <b>crosses</b>")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def compare(output, *more, samplers=("base", "best-of-n", "fk:start=1,every=1"), prompts=PROMPTS):
    words = [w for p in prompts for w in ("--prompt", p)]
    return main(
        ["compare", "--pipeline", "shapes-sd", "--pipeline.call.num_inference_steps", "4",
         "--pipeline.device", "cpu", "--reward", "shapes-clip", "--strength.unit", "raw",
         "--strength.value", "0.5", "--samplers", *samplers, *words, "--output", str(output),
         "--held-out", "rewards.PythonFunction", "--held_out.fn", f"{output.parent / 'judge.py'}:red",
         "--held-out", "jpeg",
         "--progress", "false", *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished comparison."""
    home = tmp_path_factory.mktemp("compare")
    (home / "judge.py").write_text(
        "def red(images, prompts):\n"
        "    return (images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))).float()\n"
    )
    assert compare(home / "run", "--nfe", "8", "16", "--seeds", "2") == 0
    return home / "run"


class Page(html.parser.HTMLParser):
    """Tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag, **wanted):
        return [
            a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())
        ]


def test_budgets_are_kept_and_tables_written(folder):
    found = json.loads((folder / "results.json").read_text())
    assert [(r["sampler"], r["budget"]) for r in found["summary"]] == [
        ("base", {}),
        ("best-of-n", {"nfe": 8}),
        ("fk:start=1,every=1", {"nfe": 8}),
        ("best-of-n", {"nfe": 16}),
        ("fk:start=1,every=1", {"nfe": 16}),
    ]
    for row in found["summary"]:
        assert row["nfe"]["mean"] == row["budget"].get("nfe", 4)
        assert row["shapes-clip"]["low"] <= row["shapes-clip"]["mean"] <= row["shapes-clip"]["high"]
    assert len(found["searches"]) == 5 * 2 * 2
    assert {s["seed"] for s in found["searches"]} == {0, 1}
    lines = (folder / "results.csv").read_text().splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("run,sampler,budget,prompt,seed,shapes-clip,red,jpeg,nfe")
    record = json.loads(
        next((folder / "runs" / "fk_start_1_every_1--nfe-16").glob("a-*.json")).read_text()
    )
    assert [len(r["rewards"]) for r in record["looks"]["requests"]] == [4, 4, 4, 4]
    assert Image.open(folder / "runs" / "base" / record["looks"]["file"]).size == (128, 128)


def test_the_page_is_whole_and_accessible(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(page.all("h1")) == 1
    assert {s["id"] for s in page.all("section")} == {
        "summary", "differences", "curves", "pictures", "genealogy", "settings",
    }  # fmt: skip
    links = [a.get(k, "") for _, a in page.tags for k in ("src", "href")]
    assert all(not link or link.startswith(("#", "data:")) for link in links)
    assert "url(" not in text.partition("</style>")[0]
    pictures = page.all("img")
    assert len(pictures) == 2 * 2 * (1 + 2 * 2)
    assert all(p["alt"] for p in pictures)
    assert {a["class"] for a in page.all("a") if "shot" in a.get("class", "")} <= {
        "shot right", "shot wrong",
    }  # fmt: skip
    assert len(page.all("caption")) == 4  # two budgets: figures, differences
    assert "<b>crosses</b>" not in text
    assert len(text) < 400_000


def test_the_report_is_made_from_the_files_alone(folder, tmp_path, capsys):
    before = (folder / "report.html").read_text()
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()
    assert main(["report", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "report.html").read_text() == before


def test_two_runs_are_compared(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for path in (other / "runs" / "best-of-n--nfe-8").glob("*.json"):
        record = json.loads(path.read_text())
        if "scores" in record:
            record["scores"][0]["shapes-clip"] += 1.0
            path.write_text(json.dumps(record))
    run = json.loads((other / "run.json").read_text())
    run["settings"]["seed"] = 7
    (other / "run.json").write_text(json.dumps(run))
    assert main(["report", str(folder), str(other), "--output", str(tmp_path / "both.html")]) == 0
    text = (tmp_path / "both.html").read_text()
    assert "B less A" in text
    assert "Settings that differ" in text
    row = text[text.index("best-of-n, 8 denoiser calls") :]
    assert re.search(r'class="num up"><span class="mean">\+1\.00', row.partition("</tr>")[0])
    assert "A · best-of-n" in text
    assert (tmp_path / "both.json").is_file()


def test_a_run_goes_on_where_it_was(folder, capsys):
    home = folder.parent / "again"  # beside the judge
    shutil.copytree(folder, home)
    cell = home / "runs" / "best-of-n--nfe-8"
    lost = next(cell.glob("a-*.json"))
    lost.unlink()
    before = {p: p.stat().st_mtime_ns for p in (home / "runs").rglob("*.png")}
    more = ("--nfe", "8", "--seeds", "2")
    assert compare(home, *more, samplers=("best-of-n", "bfs")) == 0
    after = {p: p.stat().st_mtime_ns for p in (home / "runs").rglob("*.png")}
    redone = {p for p, t in before.items() if after[p] != t}
    assert lost.with_suffix(".png") in redone
    assert {p.parent for p in redone} == {cell}
    assert {p.parent.name for p in after.keys() - before.keys()} == {"bfs--nfe-8"}
    text = (home / "report.html").read_text()
    assert "fk:start=1,every=1" in text
    assert ">bfs<" in text
    assert compare(home, "--nfe", "8", "--seed", "3") == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samplers", "fkk"], "did you mean 'fk'"),
        (["--samplers", "fk:particels=3"], "did you mean 'particles'"),
        (["--nfe", "2"], "'best-of-n' with the budget nfe=2"),
        (["--nfe", "many"], "many"),
        (["--samplrs", "fk"], "did you mean 'samplers'"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--limit", "0"], "limit must be at least 1"),
    ],
)
def test_mistakes_are_named_before_a_model_loads(words, message, tmp_path, capsys, monkeypatch):
    import rewards

    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(rewards.ShapesCLIP, "__init__", never)
    given = () if words[0] == "--nfe" else ("--nfe", "8")
    assert compare(tmp_path / "run", *given, *words, samplers=("best-of-n",)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_the_commands_of_the_page_are_understood(tmp_path, capsys, monkeypatch):
    page = (ROOT / "docs" / "compare.md").read_text()
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    words = shlex.split(block.replace("\\\n", " "))

    def enough(*args, **kwargs):
        raise UsageError("enough is understood")

    monkeypatch.setattr("steering.command.compare._opened", enough)
    monkeypatch.chdir(tmp_path)
    assert words[0] == "steer"
    assert main(words[1:]) == 2
    assert "enough is understood" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no folder of steer compare" in capsys.readouterr().err
    assert main(["report", *["x"] * 3]) == 2
    assert "one folder or two" in capsys.readouterr().err


PROBE = """
<script>
window.addEventListener("load", async () => {
  const tree = document.getElementById("tree");
  const loads = (src) => new Promise((done) => {
    const picture = new Image();
    picture.onload = () => done(picture.naturalWidth > 0);
    picture.onerror = () => done(false);
    picture.src = src;
  });
  const images = [...document.images];
  const found = { atStart: tree.querySelector("svg")?.getAttribute("aria-label") };
  found.visible = images.filter((i) => i.offsetParent !== null).length;
  found.broken = 0;
  for (const i of images) if (!i.naturalWidth) found.broken++;
  document.querySelector('.shot[data-prompt="1"][data-column="2"]:not([hidden])').click();
  found.afterClick = tree.querySelector("svg").getAttribute("aria-label");
  found.address = location.hash;
  found.nodes = tree.querySelectorAll(".node").length;
  found.kin = tree.querySelectorAll(".link.kin").length;
  found.sheet = await loads(tree.querySelector("image").getAttribute("href"));
  const last = tree.querySelector('.node[tabindex="0"]');
  last.focus();
  last.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
  found.told = document.getElementById("tree-told").textContent;
  const asked = performance.getEntriesByType("resource");
  found.requests = asked.filter((r) => !r.name.startsWith("data:")).length;
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")
def test_it_works_in_a_browser(folder, tmp_path):
    page = tmp_path / "probed.html"
    page.write_text((folder / "report.html").read_text().replace("</body>", PROBE))
    ran = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--window-size=1300,900", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{page}#prompt=0&column=2&budget=0"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in ran.stderr
    found = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', ran.stdout)[1]))
    assert found["atStart"] == "Genealogy: fk:start=1,every=1, a red ring"
    assert found["afterClick"] == f"Genealogy: fk:start=1,every=1, {PROMPTS[1]}"
    assert found["address"] == "#prompt=1&column=2&budget=1"
    assert found["visible"] == 2 * 3  # a seed and a budget at a time
    assert found["broken"] == 0
    assert found["nodes"] == 4 * 4  # three looks and the end, four particles
    assert found["kin"] == 3
    assert found["sheet"]
    assert "step 3" in found["told"].lower()
    assert found["requests"] == 0
