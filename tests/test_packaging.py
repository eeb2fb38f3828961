"""The rules of the layout, and the wheel as a user gets it."""

import ast
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: what a package may import of ours; the command is the one place that puts all together
ALLOWED = {
    "steering": {"steering"},
    "samplers": {"samplers", "steering"},
    "rewards": {"rewards", "steering"},
}
REWARDS_MAY = ("steering.reward", "steering.shapes", "steering.flaws")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", list(ALLOWED))
def test_packages_import_only_what_they_may(package):
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        if "command" in path.parts:
            continue
        for name in imports(path):
            head = name.split(".")[0]
            if head in ALLOWED and head not in ALLOWED[package]:
                wrong.append(f"{path}: {name}")
            if package == "rewards" and head == "steering" and not name.startswith(REWARDS_MAY):
                wrong.append(f"{path}: {name}")
    assert wrong == []


def test_the_shapes_world_is_a_leaf():
    wrong = [
        f"{path}: {name}"
        for path in (ROOT / "steering" / "shapes").rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] in ALLOWED and not name.startswith("steering.shapes")
    ]
    assert wrong == []


def test_tests_run_against_the_installed_package():
    if os.environ.get("PYTHONPATH"):
        pytest.skip("run from a checkout on PYTHONPATH")
    import steering

    assert Path(steering.__file__) != ROOT / "steering" / "__init__.py"
    assert "site-packages" in steering.__file__


def test_every_configuration_says_what_it_is():
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert path.read_text().startswith("#"), path


def test_committed_weights_are_small_and_safe():
    files = [p for p in (ROOT / "steering" / "shapes" / "weights").rglob("*") if p.is_file()]
    assert max(p.stat().st_size for p in files) < 16e6
    assert sum(p.stat().st_size for p in files) < 50e6
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt"}


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    """Built, installed beside the dependencies that are here, and run from an empty folder."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT],
        check=True,
    )
    [wheel] = tmp_path.glob("diffusion_steering-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "samplers/fk.py",
        "rewards/clip.py",
        "steering/configs/sampler/fk.yaml",
        "steering/shapes/weights/shapes-sd/model_index.json",
        "steering/shapes/weights/shapes-clip",
    ):
        assert any(n.startswith(needed) for n in names), needed
    home = tmp_path / "venv"
    venv.create(home, system_site_packages=False, with_pip=False)
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel],
        check=True,
    )
    [here] = {p for p in sys.path if p.endswith("site-packages")}
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import steering;"
        "assert steering.__file__.startswith(sys.argv[1]), steering.__file__;"
        "from steering.command.main import main;"
        "sys.exit(main(['generate', '--pipeline', 'shapes-sd', '--sampler', 'fk', '--reward',"
        "'shapes-clip', '--prompt', 'a red ring', '--strength.unit', 'raw', '--output', 'out',"
        "'--pipeline.call.num_inference_steps', '2', '--sampler.start', '1', '--progress', 'false']))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [home / "bin" / "python", "-c", script, target, here],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    [record] = list((tmp_path / "out").glob("a-red-ring-*.json"))
    assert json.loads(record.read_text())["usage"]["nfe"] == 8
