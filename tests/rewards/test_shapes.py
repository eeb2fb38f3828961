import pytest

from rewards import ShapesCLIP, ShapesVerifier
from rewards.testing import check_reward
from steering import shapes
from steering.reward import Item

PROMPTS = ["a red ring", "two stars", "a blue cross left of a ring"]


@pytest.fixture(scope="module")
def rendered():
    return shapes.render([shapes.parse(prompt) for prompt in PROMPTS], seed=0)


def test_verifier_abilities(rendered):
    check_reward(ShapesVerifier(), rendered, [Item(prompt) for prompt in PROMPTS])


def test_verifier_knows(rendered):
    verifier = ShapesVerifier()
    right = [verifier.prepare(Item(prompt)) for prompt in PROMPTS]
    assert verifier(rendered, right).tolist() == [1, 1, 1]
    assert verifier(rendered, [right[1], right[2], right[0]]).tolist() == [0, 0, 0]


def test_verifier_refuses_prompts_outside_the_grammar():
    with pytest.raises(ValueError, match="cannot read the prompt 'a nice photo'"):
        ShapesVerifier().prepare(Item("a nice photo"))


def test_clip_is_the_embedded_model(net, tokenizer, pictures, monkeypatch):
    monkeypatch.setattr(shapes, "load_clip", lambda: (net, tokenizer))
    reward = ShapesCLIP()
    assert reward.name == "shapes-clip"
    check_reward(reward, pictures(3, 32, 32) / 255, [Item(prompt) for prompt in PROMPTS])


def test_clip_with_the_shipped_weights(rendered):
    try:
        reward = ShapesCLIP()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    features = [reward.prepare(Item(prompt)) for prompt in PROMPTS]
    right = reward(rendered, features)
    wrong = reward(rendered, [features[1], features[2], features[0]])
    assert (right > wrong).all()
    items = [Item(prompt) for prompt in PROMPTS]
    check_reward(reward, rendered * 0.8 + 0.1, items, step=0.01)  # a trained score curves strongly
