"""Editors and painters made of diffusers pipelines, and the repair loop on the embedded world."""

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

from rewards import FlawCount, ShapesCLIP, ShapesPlanner, ShapesVerifier
from samplers import BestOfN, Repair
from steering import SteeredPipeline, shapes
from steering.adapters.editor import PipelineEditor, SteeredPainter
from steering.cost import Budget, Cost
from steering.flaws import Editor, Flaw, Painter
from steering.reward import Item
from steering.streams import seeded_generator

PROMPTS = ["a red ring and a blue cross", "two stars", "a ring left of a cross"]
ITEMS = [Item(prompt) for prompt in PROMPTS]
FLAWS = [Flaw("wrong", "mend", "a red ring", ((0.0, 0.0, 0.5, 0.5),))] * 3
CALL = {"num_inference_steps": 4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def inpaint(shapes_sd):
    return _quiet(StableDiffusionInpaintPipeline(**shapes_sd.components))


@pytest.fixture(scope="module")
def image_to_image(shapes_sd):
    return _quiet(StableDiffusionImg2ImgPipeline(**shapes_sd.components))


def _quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def media():
    return shapes.render([shapes.parse(prompt) for prompt in PROMPTS], seed=0)


def test_inpainting_is_the_pipelines_own_and_is_counted(inpaint, media):
    editor = PipelineEditor(inpaint, {**CALL, "strength": 1.0}, margin=0.0)
    assert isinstance(editor, Editor)
    edited = editor.edit(media, ITEMS, FLAWS, [1, 2, 3])
    mask = torch.zeros(3, 1, 64, 64)
    mask[:, :, :32, :32] = 1
    expected = inpaint(
        PROMPTS,
        image=media,
        mask_image=mask,
        generator=[seeded_generator(seed) for seed in (1, 2, 3)],
        output_type="pt",
        **CALL,
        strength=1.0,
    ).images
    torch.testing.assert_close(edited.pictures, expected.clamp(0, 1), atol=1e-4, rtol=0)
    assert edited.costs == [Cost(nfe=4, decodes=1)] * 3
    far = media[:, :, 44:, 44:]  # beyond what the autoencoder mixes
    assert (edited.pictures[:, :, 44:, 44:] - far).abs().mean() < 0.02


def test_image_to_image_costs_what_its_strength_leaves(image_to_image, media):
    editor = PipelineEditor(image_to_image, {**CALL, "strength": 0.5})
    assert editor.cost() == Cost(nfe=4, decodes=1)
    edited = editor.edit(media, ITEMS, FLAWS, [1, 2, 3])
    assert edited.costs == [Cost(nfe=2, decodes=1)] * 3
    assert editor.cost() == Cost(nfe=2, decodes=1)


def test_a_row_does_not_depend_on_its_batch(image_to_image, media):
    call = {**CALL, "strength": 0.5}
    whole = PipelineEditor(image_to_image, call).edit(media, ITEMS, FLAWS, [1, 2, 3]).pictures
    parts = PipelineEditor(image_to_image, call, batch_size=2)
    order = [2, 0, 1]
    some = [[rows[i] for i in order] for rows in (ITEMS, FLAWS, [1, 2, 3])]
    apart = parts.edit(media[order], *some).pictures
    torch.testing.assert_close(apart, whole[order], atol=1e-4, rtol=0)


def test_the_text_is_rewritten_for_each_flaw(shapes_sd):
    editor = PipelineEditor(shapes_sd, CALL, wording="{prompt}: {instruction}; {target}")
    flaw = Flaw("missing", "add a ring", "a ring")
    assert editor.text(ITEMS[1], flaw) == "two stars: add a ring; a ring"
    assert editor.text(ITEMS[1], Flaw("extra", "remove it")).endswith("; two stars")


def test_without_a_picture_the_pipeline_draws_anew(shapes_sd, media):
    editor = PipelineEditor(shapes_sd, CALL, wording="{target}")
    drawn = editor.edit(media[:1], ITEMS[:1], FLAWS[:1], [5])
    generator = [seeded_generator(5)]
    expected = shapes_sd(["a red ring"], generator=generator, output_type="pt", **CALL).images
    torch.testing.assert_close(drawn.pictures, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("call", "options", "error", "message"),
    [
        ({"image": 1}, {}, ValueError, "sets 'image' itself"),
        ({"strengh": 0.5}, {}, TypeError, "no argument 'strengh'"),
        ({}, {"wording": "{words}"}, ValueError, "wording must hold"),
        ({}, {"wording": "a ring"}, ValueError, "wording must hold"),
        ({}, {"margin": 2.0}, ValueError, "margin is a fraction"),
        ({}, {"batch_size": 0}, ValueError, "at least 1 picture"),
    ],
)
def test_nonsense_is_refused(inpaint, call, options, error, message):
    with pytest.raises(error, match=message):
        PipelineEditor(inpaint, call, **options)


def test_a_pipeline_without_a_text_is_refused():
    class Unconditional:
        def __call__(self, image):
            raise AssertionError

    with pytest.raises(TypeError, match="takes no prompt"):
        PipelineEditor(Unconditional())


def painter(shapes_sd, n=1):
    search = SteeredPipeline(shapes_sd, sampler=BestOfN(n), reward=ShapesVerifier(), seed=0)
    return SteeredPainter(search, CALL)


def test_a_steered_pipeline_paints(shapes_sd):
    paints = painter(shapes_sd, 2)
    assert isinstance(paints, Painter)
    assert paints.cost() == Cost(nfe=8, decodes=2, reward_calls=2)
    painted = paints.paint(ITEMS, ["a", "b", "c"])
    assert painted.costs == [Cost(nfe=8, decodes=2, reward_calls=2)] * 3
    assert painted.pictures.shape == (3, 3, 64, 64)
    again = paints.paint(ITEMS[1:], ["b", "other"]).pictures
    torch.testing.assert_close(again[0], painted.pictures[1], atol=1e-4, rtol=0)
    assert (again[1] - painted.pictures[2]).abs().max() > 0.1


def test_painted_pictures_come_with_the_reward_of_their_search(shapes_sd):
    clip = ShapesCLIP()
    paints = SteeredPainter(SteeredPipeline(shapes_sd, sampler=BestOfN(2), reward=clip), CALL)
    assert paints.reward is clip
    painted = paints.paint(ITEMS, ["a", "b", "c"])
    again = clip(painted.pictures, [clip.prepare(item) for item in ITEMS])
    torch.testing.assert_close(torch.tensor(painted.rewards), again, atol=1e-3, rtol=0)


def test_the_embedded_world_is_repaired(shapes_sd, inpaint):
    """Real models, the exact judge: what is called right is right, and costs are what was run."""
    planner, paints = ShapesPlanner(), painter(shapes_sd)
    editor = PipelineEditor(inpaint, {**CALL, "strength": 1.0})
    reward = FlawCount(planner)  # not the painter's, whose reward call comes on top
    loop = Repair(planner, editor, reward, paints, tries=2, budget=Budget(nfe=64))
    states = loop(PROMPTS)
    truth = ShapesVerifier()(torch.stack([s.best for s in states]), PROMPTS)
    for state, verdict in zip(states, truth.tolist(), strict=True):
        assert state.done in ("right", "budget")
        assert (state.done == "right") == bool(verdict)
        assert state.spent.nfe == 4 * state.paints + 4 * state.edits <= 64
        assert state.spent.decodes == state.paints + state.edits
        assert state.spent.reward_calls == 2 * state.paints + state.edits
        kept = [r for r in state.history if r["event"] == "edit" and r["accepted"]]
        assert all(max(r["rewards"]) > r["before"] for r in kept)
    assert any(s.edits for s in states)
