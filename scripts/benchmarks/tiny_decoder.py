"""A tiny autoencoder of the embedded models' family, trained for the ranking of cheap decodes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from shapes_training.data import make_pictures
from shapes_training.vae import encode_all
from torch import Tensor

_SIZE: dict[str, Any] = {
    "latent_channels": 4,
    "encoder_block_out_channels": (8, 8, 8),  # only the decoder is trained and used
    "decoder_block_out_channels": (24, 24, 24),
    "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (2, 2, 1),
    "scaling_factor": 1.0,
}


def train_tiny(
    vae: Any, folder: Path, *, seconds: float, pictures: int = 8192, batch: int = 32, seed: int = 0
) -> None:
    """Teach a tiny decoder what the full one shows, of latents of clean pictures, as TAESD is taught.

    Args:
        vae: the full autoencoder of latents ``(n, 4, 16, 16)``.
        folder: where to save it, in diffusers' form.
        seconds: of training.
        pictures: to train on.
        batch: pictures of a step.
        seed: of everything random.
    """
    torch.manual_seed(seed)
    images = make_pictures(pictures, seed, str(vae.device)).images
    latents = encode_all(vae, images).float()
    tiny = AutoencoderTiny(**_SIZE).to(vae.device)
    optimiser = torch.optim.AdamW(tiny.decoder.parameters(), 2e-3)
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - spent / seconds) + 1e-5
        z = latents[torch.randint(len(latents), (batch,))]
        with torch.no_grad():
            target: Tensor = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)
        error = tiny.decode(z).sample - target
        loss = error.abs().mean() + error.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tiny.eval().save_pretrained(folder)
