"""One chunk a call is what the pipelines of diffusers do in one call for all of them."""

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import chunked, videos

from rewards import MotionAmount
from samplers import ChunkLevel, TreeOfFrames
from steering.adapters import Refusal
from steering.adapters.chunks import continuing
from steering.chunks import Continue, Prefix
from steering.reward import Item
from steering.streams import seeded_generator

PROMPT = "a red cat"
HELIOS = {
    "height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 2.0,
    "history_sizes": [4, 2, 1], "num_latent_frames_per_chunk": 2, "max_sequence_length": 16,
}  # fmt: skip
PYRAMID = {k: v for k, v in HELIOS.items() if k != "num_inference_steps"}
PYRAMID |= {"height": 64, "width": 64, "pyramid_num_inference_steps_list": [2, 1, 2]}
DISTILLED = {**PYRAMID, "guidance_scale": 1.0, "is_amplify_first_chunk": True}
ANY_FLOW = {"height": 32, "width": 32, "num_inference_steps": 3, "max_sequence_length": 16}
CASES = {
    "Helios": (chunked.helios, HELIOS),
    "pyramid": (chunked.helios_pyramid, PYRAMID),
    "distilled": (lambda: chunked.helios_pyramid(distilled=True), DISTILLED),
    "AnyFlow": (chunked.any_flow, ANY_FLOW),
    "AnyFlow, guided": (chunked.any_flow, {**ANY_FLOW, "guidance_scale": 2.0}),
}


@pytest.fixture(params=CASES)
def case(request):
    build, call = CASES[request.param]
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def extended(generator, count, seeds, *, rows=1, frames=True):
    """A chain of chunks of each row; a seed a chunk and row."""
    prefixes, costs = [Prefix()] * rows, []
    for chunk in range(count):
        drawn = [seeds(chunk, row) for row in range(rows)]
        made = generator.extend(prefixes, [Item(PROMPT)] * rows, drawn, frames=frames)
        prefixes = made.prefixes
        costs.append(made.costs)
    return prefixes, costs


@pytest.mark.parametrize("name", [n for n in CASES if "AnyFlow" not in n])
def test_a_chain_is_the_pipelines_own_long_call(name, monkeypatch):
    build, call = CASES[name]
    pipe = quiet(build())
    latents = pipe(
        PROMPT, num_frames=15, generator=seeded_generator(7), output_type="latent", **call
    ).frames
    video = pipe(
        PROMPT, num_frames=15, generator=seeded_generator(7), output_type="pt", **call
    ).frames
    shared = seeded_generator(7)  # drawn from by turns, as in a single call
    monkeypatch.setattr("steering.adapters.chunk_calls.seeded_generator", lambda seed: shared)
    [prefix], costs = extended(continuing(pipe, call), 3, lambda chunk, row: 0)
    assert torch.equal(prefix.latents, latents[0])
    assert torch.equal(prefix.video[: video.shape[1]], video[0])  # a call cuts 15 frames to 13
    assert prefix.video.shape[0] == 15
    amplified = call.get("is_amplify_first_chunk", False)
    steps = sum(call.get("pyramid_num_inference_steps_list", [3]))
    assert [c[0].nfe for c in costs] == [steps * 2 if amplified else steps, steps, steps]


@pytest.mark.parametrize("name", ["AnyFlow", "AnyFlow, guided"])
def test_a_chain_of_any_flow_is_its_own_long_call(name, monkeypatch):
    build, call = CASES[name]
    pipe = quiet(build())
    generator = continuing(pipe, call)
    noise = torch.randn(1, 16, 7, 4, 4)
    whole = {"num_frames": 25, "latents": noise, **call}
    latents = pipe(PROMPT, output_type="latent", **whole).frames
    video = pipe(PROMPT, output_type="pt", **whole).frames
    draw = type(pipe).prepare_latents

    def prepared(self, *args):
        made = draw(self, *args)
        return noise[:, :, : made.shape[2]]

    monkeypatch.setattr(type(pipe), "prepare_latents", prepared)
    [prefix], costs = extended(generator, generator.chunks, lambda chunk, row: 0)
    assert torch.equal(prefix.latents.transpose(0, 1), latents[0])
    assert torch.equal(prefix.video, video[0])
    # 3 steps of two chunks and of one each, and a pass for each chunk that is read
    assert [c[0].nfe for c in costs] == [7, 5, 6]


def test_a_tree_of_one_candidate_a_level_is_the_users_own_chain_of_calls():
    pipe = quiet(chunked.helios())
    levels = [ChunkLevel(MotionAmount())] * 3
    [state] = TreeOfFrames(continuing(pipe, HELIOS), levels)([PROMPT])
    history, frames = None, []
    for node in state.nodes:
        kept = {}
        if history is not None:
            kept = {
                "video_latents": history, "add_noise_to_video_latents": False,
                "image_latents": history[:, :, :1], "add_noise_to_image_latents": False,
            }  # fmt: skip
        for output in ("pt", "latent"):
            out = pipe(
                [PROMPT],
                num_frames=5,
                generator=[seeded_generator(node.seed)],
                output_type=output,
                **kept,
                **HELIOS,
            ).frames
            if output == "pt":
                frames.append(out[0])
        history = out
    assert torch.equal(state.prefix.latents, history[0])
    assert torch.equal(state.video, torch.cat(frames))


def test_costs_are_at_most_what_was_said_and_the_pipeline_stays_as_it_was(case):
    pipe, call = case
    generator = continuing(pipe, call)
    assert isinstance(generator, Continue)
    parts = dict(pipe.components)
    before = {k: v for k, v in pipe.scheduler.__dict__.items() if isinstance(v, int | float | str)}
    state = torch.get_rng_state()
    _, costs = extended(generator, 2, lambda chunk, row: chunk)
    assert [c[0] for c in costs] == [generator.cost(chunk, frames=True) for chunk in range(2)]
    assert all(parts[name] is part for name, part in pipe.components.items())
    after = {k: v for k, v in pipe.scheduler.__dict__.items() if isinstance(v, int | float | str)}
    assert before == after
    assert torch.equal(state, torch.get_rng_state())


def test_a_row_depends_on_its_seeds_and_not_on_its_neighbours(case):
    generator = continuing(*case)
    [alone], _ = extended(generator, 2, lambda chunk, row: 10 + chunk)
    pair, _ = extended(generator, 2, lambda chunk, row: 10 * (row + 1) + chunk, rows=2)
    assert torch.allclose(pair[0].latents, alone.latents, atol=1e-4)
    assert torch.allclose(pair[0].video, alone.video, atol=1e-4)
    assert not torch.allclose(pair[1].latents, alone.latents, atol=0.1)


def test_rows_of_several_lengths_and_prompts_are_extended_in_order():
    generator = continuing(quiet(chunked.helios()), HELIOS)
    [one], _ = extended(generator, 1, lambda chunk, row: 3)
    items = [Item(PROMPT), Item("a blue star"), Item(PROMPT)]
    made = generator.extend([one, Prefix(), Prefix()], items, [4, 5, 3], frames=True).prefixes
    assert [p.chunks for p in made] == [2, 1, 1]
    assert torch.equal(made[0].latents[:, :2], one.latents)
    assert torch.allclose(made[2].latents, one.latents, atol=1e-4)


def test_frames_that_nobody_looks_at_are_not_decoded_where_that_can_be():
    generator = continuing(quiet(chunked.any_flow()), ANY_FLOW)
    [unseen], costs = extended(generator, 1, lambda chunk, row: 0, frames=False)
    assert unseen.parts == ()
    assert costs[0][0].decodes == generator.cost(0, frames=False).decodes == 0
    [seen] = generator.extend([unseen], [Item(PROMPT)], [1], frames=True).prefixes
    assert seen.video.shape == (17, 3, 32, 32)
    helios = continuing(quiet(chunked.helios()), HELIOS)
    [seen], _ = extended(helios, 1, lambda chunk, row: 0, frames=False)
    assert seen.video.shape == (5, 3, 16, 16)


def test_a_tree_searches_a_real_pipeline():
    levels = ChunkLevel.stages(
        3, first=MotionAmount(), middle=MotionAmount(), last=MotionAmount(), branch=(3, 2, 1)
    )
    search = TreeOfFrames(continuing(quiet(chunked.any_flow()), ANY_FLOW), levels)
    [state] = search([PROMPT])
    assert state.video.shape == (25, 3, 32, 32)
    planned = search.plan()
    assert replace(state.spent, seconds=0.0) == planned
    last = [n.scores["motion-amount"] for n in state.nodes if n.level == 2]
    assert state.nodes[state.best].scores["motion-amount"] == max(last)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ({"video": 1}, TypeError, "'video' of HeliosPipeline is set for each chunk"),
        ({"generator": 1}, TypeError, "'generator'"),
        ({"heigth": 16}, TypeError, "nearest is 'height'"),
        ({"negative_prompt": ["x"]}, TypeError, "one text for all videos"),
    ],
)
def test_arguments_that_cannot_be_are_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        continuing(chunked.helios(), call)


def test_what_cannot_be_gone_on_with_is_refused():
    with pytest.raises(Refusal, match=r"WanPipeline is not known to go on.*HeliosPipeline"):
        continuing(videos.wan())
    any_flow = chunked.any_flow()
    with pytest.raises(ValueError, match="use_kv_cache=False"):
        continuing(any_flow, {"use_kv_cache": False})
    with pytest.raises(ValueError, match="has 1 chunks, but the caches"):
        continuing(any_flow, {"chunk_partition": [1]})
    generator = continuing(any_flow, {**ANY_FLOW, "chunk_partition": [1, 1]})
    with pytest.raises(ValueError, match="1 chunks is whole"):
        generator.extend([Prefix(1)], [Item(PROMPT)], [0], frames=True)
    helios = continuing(chunked.helios(), HELIOS)
    with pytest.raises(ValueError, match="holds no latents"):
        helios.extend([Prefix(1)], [Item(PROMPT)], [0], frames=True)
    with pytest.raises(ValueError, match="holds no frames"):
        helios.extend([Prefix(1, torch.zeros(16, 2, 2, 2))], [Item(PROMPT)], [0], frames=True)
