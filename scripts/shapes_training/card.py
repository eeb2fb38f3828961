"""MODEL_CARD.md from the measured figures."""

import json
from pathlib import Path

_HEAD = """# Model card: the world of shapes

Three small models and a judge for images of one to five coloured shapes (64 x 64 pixels), and a model
and a judge of shapes that move. They are trained from scratch on rendered pictures, for testing and
demonstrating inference-time steering; they are of no other use. The base models are imperfect by
intention, the reward is fallible by intention, and the judge has no learned part. Licence: Apache-2.0,
like the package.

## Loading and calling

```python
from diffusers import FluxPipeline, StableDiffusionPipeline
from steering import shapes

sd = StableDiffusionPipeline.from_pretrained(shapes.folder("shapes-sd"))
images = sd("a red ring", num_inference_steps=25, guidance_scale={sd_guidance}).images

flux = FluxPipeline.from_pretrained(shapes.folder("shapes-flux"))
images = flux(
    "a red ring",
    num_inference_steps=25,
    true_cfg_scale={flux_guidance},
    negative_prompt="",
    height=64,
    width=64,
    max_sequence_length=24,
).images

clip, tokenizer = shapes.load_clip()  # or open_clip.create_model(f"local-dir:{{folder}}")
```

Files are float16 safetensors; all models load as float32 unless another type is asked for.
shapes-flux needs the four arguments above: it knows pictures of 64 pixels and texts of 24 tokens,
and its guidance is true classifier-free guidance (no distilled embedding). The reward of
shapes-clip is the cosine of picture and text features.

## Training

`python scripts/train_shapes.py vae`, then `sd`, `flux`, `clip`: 320,000 rendered pictures without
held-out combinations, seed 0, AdamW (peak 1e-3, cosine), bfloat16, averaged weights. Steps as
shipped, on one H100: vae 3,981 steps of 128 (90 s); sd 6,927 of 512 and clip 1,000 of 512 side by side
(500 s); flux 6,500 of 512 by itself (238 s), against the shipped autoencoder in half precision.
A run ends at its number of steps or seconds, whichever comes first, so another run gives slightly
other weights. (The shipped autoencoder saw fewer pictures of kind "attributes" than the others.)

Never rendered in training: 4 of the 56 coloured shapes, 2 of the 21 pairs of shapes, 5 % of the
other pairs of coloured shapes (`steering/shapes/sampling.py`).
"""


def write_card(figures: Path, card: Path) -> None:
    """Fills the card's text with the figures of a JSON file."""
    values = json.loads(figures.read_text(encoding="utf-8"))
    sd, flux = values["shapes-sd"], values["shapes-flux"]
    head = _HEAD.format(
        sd_guidance=sd["arguments"]["guidance_scale"],
        flux_guidance=flux["arguments"]["true_cfg_scale"],
    )
    meta = values["meta"]
    versions = ", ".join(f"{name} {meta[name]}" for name in ("torch", "diffusers", "transformers"))
    parts = [
        head,
        "## Figures\n",
        f"All from `weights/card.json`, written by `{meta['command']}` ({meta['hardware']}, "
        f"{versions}); this page by `python scripts/train_shapes.py card`.\n",
        *_judge(values["judge"]),
        *_accuracy(sd, flux, values["shapes-clip"]),
        *_hard(sd, flux),
        *_guidance(sd, flux),
    ]
    video = figures.with_name("card-video.json")
    if video.exists():
        parts += _video(json.loads(video.read_text(encoding="utf-8")))
    card.write_text("\n".join(parts), encoding="utf-8")


def _judge(judge: dict) -> list[str]:
    return [
        f"**Judge** on {judge['pictures']} rendered pictures of the easy prompts: accepts "
        f"{judge['accepts']:.4f} of them, {judge['accepts_after_vae']:.4f} after the autoencoder "
        f"(mean absolute error {judge['vae_error']:.4f}), rejects {judge['rejects_negatives']:.4f} "
        "of the pictures of a hard negative.\n",
    ]


def _accuracy(sd: dict, flux: dict, clip: dict) -> list[str]:
    kinds = ["single", "colours", "two", "counting", "position", "attributes", "overall"]
    lines = [
        f"**Easy prompts**, {sd['steps']} steps, {sd['easy']['samples'] // 512} samples a prompt; "
        "for shapes-clip: how often a rendered picture is closer to its caption than to one hard "
        "negative.\n",
        "| | " + " | ".join([*kinds, "held out"]) + " |",
        "| --- |" + " --- |" * (len(kinds) + 1),
    ]
    rows = {"shapes-sd": sd["easy"], "shapes-flux": flux["easy"], "shapes-clip": clip}
    for name, values in rows.items():
        held = f"{values['held_out']:.3f}" if "held_out" in values else ""
        cells = [*(f"{values[kind]:.3f}" for kind in kinds), held]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    intervals = [
        "{:.3f} to {:.3f}".format(*model["easy"]["position_interval"]) for model in (sd, flux)
    ]
    text = (
        f"\nPosition, 95 % intervals: {intervals[0]} (shapes-sd), {intervals[1]} (shapes-flux). "
        "Chance is .25 for a picture whose objects are right: neither model has learned relations, "
        "so they are work for a search.\n"
    )
    return [*lines, text]


def _hard(sd: dict, flux: dict) -> list[str]:
    lines = [
        f"**Hard prompts**, {sd['hard']['samples_per_prompt']} samples a prompt: share of right "
        "single samples, and the reward (cosine): its mean, its standard deviation within a "
        "prompt, and how much higher it is for right pictures. Rates of every prompt are in the "
        "JSON.\n",
        "| | chain | relation | groups | overall | reward | spread | gain when right |",
        "| --- |" + " --- |" * 7,
    ]
    names = ("chain", "relation", "groups", "overall", "mean", "spread", "reward_gain_when_right")
    for model, values in (("shapes-sd", sd["hard"]), ("shapes-flux", flux["hard"])):
        lines.append(f"| {model} | " + " | ".join(f"{values[n]:.3f}" for n in names) + " |")
    return [*lines, ""]


def _guidance(sd: dict, flux: dict) -> list[str]:
    lines = [
        "**Guidance**, overall on the easy prompts (two samples a prompt, other seeds than above; the "
        "best is used above):\n"
    ]
    for name, model in (("shapes-sd", sd), ("shapes-flux", flux)):
        scans = [
            f"{next(v for k, v in entry['arguments'].items() if 'scale' in k)}: "
            f"{entry['overall']:.3f}"
            for entry in model["scan"]
        ]
        lines.append(f"- {name}: " + ", ".join(scans))
    sizes = [
        f"{part} {count / 1e6:.2f} M"
        for model in (sd, flux)
        for part, count in model["parameters"].items()
    ]
    return [*lines, "", "Parameters: " + ", ".join(dict.fromkeys(sizes)) + ".", ""]


_VIDEO = """## shapes-video

An `AnimateDiffPipeline` for movies of one or two shapes that move: 8 frames of 64 x 64 pixels, prompts
such as "a red circle moving left slowly and a star standing still". The autoencoder is that of the
pictures, frame by frame; UNet, layers of motion and text encoder predict velocity (DDIM).

```python
from diffusers import AnimateDiffPipeline
from steering import shapes

pipe = AnimateDiffPipeline.from_pretrained(shapes.folder("shapes-video"))
call = dict(num_frames=8, num_inference_steps={steps}, guidance_scale={guidance_scale})
frames = pipe("a red ring moving left", **call).frames[0]
```

`python scripts/train_shapes.py video`: 64,000 movies, batches of 64, seed 0, AdamW (peak 1e-3, cosine),
bfloat16, averaged weights, 200 s on one H100. No combination is held out.
"""


def _video(figures: dict) -> list[str]:
    meta, judge = figures["meta"], figures["judge"]
    kinds = ["one", "pace", "two", "overall"]
    lines = [
        _VIDEO.format(**figures),
        f"`weights/card-video.json`, written by `{meta['command']}` ({meta['hardware']}, torch "
        f"{meta['torch']}): {figures['samples']} samples of the {judge['movies']} prompts "
        '`shapes.prompts("motion")`, plain calls. Right: the judge accepts the video. Frames: share '
        "that show just the shapes. Motion: over those frames they move as asked.\n",
        "| | one shape | with a pace | two shapes | overall |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in ("right", "frames", "motion"):
        cells = " | ".join(f"{figures[name][kind]:.3f}" for kind in kinds)
        lines.append(f"| {name} | {cells} |")
    scan = ", ".join(f"{s['guidance_scale']}: {s['right']['overall']:.3f}" for s in figures["scan"])
    sizes = ", ".join(f"{part} {n / 1e6:.2f} M" for part, n in figures["parameters"].items())
    lines += [
        f"\nGuidance, one sample a prompt, other seeds: {scan}.",
        f"\nThe judge of movies accepts {judge['accepts']:.3f} of rendered ones, "
        f"{judge['accepts_after_vae']:.3f} after the autoencoder, and rejects "
        f"{judge['rejects_backwards']:.3f} of those played backwards.",
        f"\nParameters: {sizes}.\n",
    ]
    return lines
