"""Trains the denoiser of shapes-video: movies of moving shapes in the form of AnimateDiff.

The autoencoder is that of the pictures and reads each frame by itself. UNet, layers of motion and
text encoder are trained together from scratch, to predict velocity: where everything is noise it
decides the layout and the way, which noise prediction hardly learns.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, UNetMotionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from shapes_training.diffusion import draw_captions
from shapes_training.loop import Plan, Trainer
from shapes_training.networks import Size, make_clip_text, make_motion_unet
from shapes_training.store import save_pipeline
from shapes_training.texts import clip_tokenizer, encode, motion_words
from shapes_training.vae import encode_all
from steering.shapes.motion import FRAMES
from steering.shapes.motion_render import draw_motion
from steering.shapes.motion_sampling import random_movie

_SHARES = {"one": 0.35, "pace": 0.2, "two": 0.45}
_CHUNK = 1024  # movies drawn and encoded at once
_TEXT_LAYERS = 2


@dataclass(frozen=True)
class Movies:
    """N captioned movies.

    Attributes:
        latents: (N, 8, 4, 16, 16) float16, scaled, on the training device.
        captions: N texts.
    """

    latents: Tensor
    captions: list[str]


def make_movies(count: int, seed: int, vae: AutoencoderKL) -> Movies:
    """Draws `count` captioned movies on the autoencoder's device and keeps their latents.

    Args:
        count: Movies.
        seed: Fixes captions and movies (on the same kind of device).
        vae: Encodes the frames.
    """
    rng = random.Random(seed)
    kinds = rng.choices(list(_SHARES), list(_SHARES.values()), k=count)
    movies = [random_movie(kind, rng) for kind in kinds]
    generator = torch.Generator(vae.device).manual_seed(seed)
    latents = []
    for start in range(0, count, _CHUNK):
        frames = draw_motion(movies[start : start + _CHUNK], generator).flatten(0, 1)
        latents.append(encode_all(vae, (frames * 255).round().byte()).unflatten(0, (-1, FRAMES)))
    return Movies(torch.cat(latents), [str(movie) for movie in movies])


def train_video(size: Size, plan: Plan, vae_folder: Path, work: Path, out: Path) -> None:
    """Trains UNet and text encoder together and saves the pipeline folder `out`/shapes-video.

    Args:
        size: Widths, movies, and frames of a batch.
        plan: See `Plan`.
        vae_folder: The autoencoder of the pictures.
        work: Folder of the checkpoint.
        out: Folder of the models.
    """
    # Its backward pass fails with heads of 32 on some versions of cuDNN.
    torch.backends.cuda.enable_cudnn_sdp(False)
    vae = AutoencoderKL.from_pretrained(vae_folder).to(plan.device).eval()
    movies = make_movies(size.movies, plan.seed, vae)
    print(f"video: {len(movies.captions)} movies", flush=True)
    scheduler = make_scheduler()
    tokenizer = clip_tokenizer(motion_words())
    torch.manual_seed(plan.seed)
    text = make_clip_text(tokenizer, size.motion_text, _TEXT_LAYERS).to(plan.device)
    unet = make_motion_unet(size).to(plan.device)
    module = nn.ModuleDict({"net": unet, "text": text}).train()
    draw_ids = draw_captions(encode(tokenizer, ["", *movies.captions]), plan.device)
    levels = scheduler.alphas_cumprod.to(plan.device)
    batch = max(2, size.batch // FRAMES)

    def loss() -> Tensor:
        index = torch.randint(len(movies.latents), (batch,), device=plan.device)
        clean = movies.latents[index].transpose(1, 2).float()
        noise = torch.randn_like(clean)
        # One time from every equal slice: less variance than independent times.
        slices = torch.arange(batch, device=plan.device)
        time = ((slices + torch.rand(batch, device=plan.device)) / batch * 1000).long()
        time = time.clamp(max=999)
        level = levels[time][:, None, None, None, None]
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        states = text(draw_ids(index)).last_hidden_state.repeat_interleave(FRAMES, 0)
        guess = unet(alpha * clean + sigma * noise, time, states).sample
        return (guess.float() - (alpha * noise - sigma * clean)).square().mean()

    trainer = Trainer(module, loss, plan, work / "video.pt")
    trainer.run()
    pipeline = _assemble(vae, trainer.average["text"], tokenizer, trainer.average["net"])
    save_pipeline(pipeline, out / "shapes-video")


def make_scheduler() -> DDIMScheduler:
    """Velocity prediction; at its last time next to nothing is left of the movie."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.016,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def untrained(size: Size, vae_folder: Path) -> AnimateDiffPipeline:
    """A pipeline of the form of shapes-video with random weights, for rehearsals."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(motion_words())
    text = make_clip_text(tokenizer, size.motion_text, _TEXT_LAYERS).eval()
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    return _assemble(vae, text, tokenizer, make_motion_unet(size).eval())


def _assemble(
    vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNetMotionModel
) -> AnimateDiffPipeline:
    return AnimateDiffPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        motion_adapter=None,
        scheduler=make_scheduler(),
    )
