"""Every configuration names a class and options that it takes."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from rewards import RewardModel
from steering.reward import Reward

FOLDER = Path(__file__).parents[2] / "configs" / "reward"
NAMES = {
    *("clip", "jpeg", "shapes-clip", "shapes-verifier", "siglip", "pickscore", "hps-v2"),
    *("image-reward", "aesthetic", "vqa", "judge", "geneval"),
}


def parse(kind, config):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=kind)
    return parser.parse_object({"reward": config}).reward


@pytest.mark.parametrize("kind", [RewardModel, Reward])
@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_configurations_parse(file, kind):
    config = yaml.safe_load(file.read_text())
    parsed = parse(kind, config)
    assert parsed.class_path == config["class_path"]
    for option, value in config.get("init_args", {}).items():
        found = parsed.init_args[option]
        assert (found.as_dict() if isinstance(found, Namespace) else found) == value


def test_the_usual_ones_are_there():
    assert {file.stem for file in FOLDER.glob("*.yaml")} >= NAMES


def test_an_unknown_option_is_refused():
    config = {"class_path": "rewards.JPEGCompressibility", "init_args": {"qualty": 3}}
    with pytest.raises(ArgumentError, match="qualty"):
        parse(RewardModel, config)


def test_ensembles_from_configuration():
    members = {"size": {"class_path": "rewards.JPEGCompressibility"}}
    init = {"members": members, "weights": {"size": 2.0}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=RewardModel)
    config = {"reward": {"class_path": "rewards.WeightedSum", "init_args": init}}
    reward = parser.instantiate(parser.parse_object(config)).reward
    assert reward.weights == {"size": 2.0}
    assert reward.members["size"].name == "jpeg"
