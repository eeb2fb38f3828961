"""Every configuration of a sampler, and every nested option of one, as the command reads them."""

import importlib
import json
from pathlib import Path

import pytest
import yaml

import samplers
from steering.command.main import main
from steering.command.options import config_folder, names
from steering.search import Search

NAMES = set(names("sampler"))
#: where it is not particles
COUNTS = {
    "adaptive": "in_flight", "best-first": "in_flight", "best-of-n": "n", "depth-first": "chains",
    "dlbs": "beams", "dts": "in_flight", "dts-star": "in_flight", "evo": "in_flight",
    "halving": "n", "metropolis": "chains", "paths": "paths", "rbf": "chains", "reno": "chains",
    "treeg": "active", "zeno": "samples", "zero-order": "neighbours",
}  # fmt: skip
#: what they spend depends on what they find
BOUNDED = {"adaptive", "best-first", "depth-first", "dts-star"}
PLAN = ["plan", "--pipeline", "shapes-sd", "--reward", "shapes-clip", "--prompt", "a ring"]


@pytest.fixture
def planned(capsys):
    """Plan as the command does."""

    def say(*words):
        status = main([*PLAN, *words])
        said = capsys.readouterr()
        assert status == 0, said.err
        return json.loads(said.out)

    return say


def test_every_search_has_a_configuration():
    found = {load(name)["class_path"] for name in names("sampler")}
    searches = {
        f"samplers.{name}"
        for name in samplers.__all__
        if isinstance(getattr(samplers, name), type) and issubclass(getattr(samplers, name), Search)
    }
    assert searches == found


def load(name):
    file = Path(config_folder()) / "sampler" / f"{name}.yaml"
    assert file.read_text().startswith("# "), "the first line says what it is"
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_configuration_is_the_class_with_its_defaults(name):
    config = load(name)
    module, _, kind = config["class_path"].rpartition(".")
    search = getattr(importlib.import_module(module), kind)
    assert search(**config.get("init_args", {})) == search()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_options_of_a_configuration_can_be_overridden(name, planned):
    option = COUNTS.get(name, "particles")
    few, many = (planned("--sampler", name, f"--sampler.{option}", n) for n in ("4", "8"))
    assert few["rows_alive"] < many["rows_alive"]
    assert few["bound"] == ("at most" if name in BOUNDED else "exact")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # particles 4, steps 25, a look at every one
        ("smc", {"nfe": 100, "decodes": 104}),
        ("smc transition=steering.flow_sde.FlowSDE transition.g=square", {"nfe": 100}),
        (
            "smc transition=steering.flow_sde.FlowSDE transition.g=ancestral "
            "transition.discretisation=euler transition.interpolant=steering.interpolants.Cosine",
            {"nfe": 100},
        ),
        ("smc transition=steering.glass.GLASS transition.inner=3", {"nfe": 300}),
        ("smc transition=steering.transitions.DDIM transition.eta=0.5", {"nfe": 100}),
        ("smc path=steering.paths.SamplingPath", {"nfe": 100}),
        ("smc path.interpolant=steering.interpolants.Cosine path.warp=rbf", {"nfe": 100}),
        ("smc temperature=exponential", {"nfe": 100}),
        ("smc temperature=samplers.temperature.Adaptive temperature.ess=0.8", {"nfe": 100}),
        ("smc initial=TopB initial.candidates=30", {"nfe": 126, "decodes": 130}),
        ("smc initial=samplers.Resampled", {"nfe": 121}),
        ("smc initial=PCNL initial.gradients=false", {"nfe": 140, "backwards": 0}),
        ("smc value=samplers.SoftValue value.samples=2 value.steps=2", {"decodes": 204}),
        ("smc value=samplers.Successor", {"nfe": 196}),
        ("smc gradient=samplers.Gradient gradient.scale=0.5", {"backwards": 100}),
        ("smc gradient.largest=2", {"backwards": 100}),
        ("smc start=0.25 every=0.25", {"decodes": 20}),
        ("smc steps=[5,10]", {"decodes": 12}),
        ("smc resampler=ssp potential=max anneal=ess islands=2", {"nfe": 100}),
        ("tds gradient=null", {"backwards": 0}),
        ("rbf start=TopB start.candidates=10 nfe=100", {"nfe": 100}),
        ("rbf path=null start=Prior", {"nfe": 500}),
        ("rbf path.warp=rbf transition=steering.flow_sde.FlowSDE", {"nfe": 500}),
        ("metropolis levels=[1.0] start=samplers.TopB start.candidates=8", {"nfe": 1708}),
        ("best-of-n start=samplers.TopB start.per_particle=true", {"nfe": 200}),
        ("best-of-n solver=steering.transitions.DDIM solver.eta=0.5", {"nfe": 100}),
        # beams 4 of 2 candidates: 4 + 24 x 8
        ("dlbs keep=samplers.Diverse keep.bonus=0.5", {"nfe": 196}),
        ("dlbs lookahead=6 initial=TopB initial.candidates=8", {"nfe": 1040}),
        (
            "dlbs transition=steering.flow_sde.FlowSDE path=steering.paths.SamplingPath",
            {"nfe": 196},
        ),
        ("halving steps=[2,0.5] transition.eta=0.5", {"nfe": 176}),
        ("halving gate=Gate gate.threshold=0.7", {"nfe": 400, "bound": "at most"}),
        ("halving value=samplers.LookAhead value.steps=2", {"nfe": 248}),
        ("adaptive stop.threshold=0.1 stop.estimate=tail n=8", {"nfe": 200, "bound": "at most"}),
        ("best-of-n stop=samplers.ExpectedGain", {"nfe": 100, "bound": "at most"}),
        ("smc value=samplers.LookAhead value.steps=2", {"nfe": 196}),
        ("zero-order solver=steering.transitions.DDIM solver.eta=0.0 chains=2", {"nfe": 850}),
        ("paths transition=steering.transitions.DDIM transition.eta=0.5", {"decodes": 40}),
        ("evo schedule=[0.5] populations=[8,4] solver=DDIM solver.eta=0", {"decodes": 12}),
        ("reno iterations=3 chains=2", {"nfe": 150, "backwards": 100}),
        ("gibbs temperature=samplers.Signal temperature.power=2", {"nfe": 325}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_are_chosen_on_the_command_line(words, expected, planned):
    name, *options = words.split()
    given = [f"--sampler.{option}" for option in options]
    plan = planned("--sampler", name, *given)
    assert {key: plan[key] for key in expected} == expected


def test_a_search_without_noise_is_refused_by_name(capsys):
    words = ["--sampler", "smc", "--sampler.transition", "steering.transitions.DDIM"]
    assert main([*PLAN, *words, "--sampler.transition.eta", "0.0"]) == 2
    assert "deterministic DDIM(eta=0.0)" in capsys.readouterr().err


def test_the_list_names_every_search(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
