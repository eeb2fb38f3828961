"""Trains the autoencoder that shapes-sd and shapes-flux share."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from shapes_training.data import Pictures
from shapes_training.loop import Plan, Trainer
from shapes_training.networks import Size, make_vae

_DIVERGENCE = 4e-5  # weight of the Kullback-Leibler term, per latent number
_BATCH_SHARE = 4  # pictures cost more than latents, and many steps sharpen edges


def train_vae(pictures: Pictures, size: Size, plan: Plan, work: Path) -> AutoencoderKL:
    """Trains and saves the autoencoder as `work`/vae, latents scaled to unit variance."""
    torch.manual_seed(plan.seed)
    vae = make_vae(size).to(plan.device, memory_format=torch.channels_last)
    batch = max(1, size.batch // _BATCH_SHARE)

    def loss() -> Tensor:
        index = torch.randint(len(pictures.images), (batch,), device=plan.device)
        target = pictures.images[index].float() / 127.5 - 1
        target = target.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(target).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = vae.decode(latents).sample.float() - target
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error.abs().mean() + error.square().mean() + _DIVERGENCE * divergence

    trainer = Trainer(vae, loss, plan, work / "vae.pt")
    trainer.run()
    trained = trainer.average
    sample = encode_all(trained, pictures.images[:8192])
    trained.register_to_config(scaling_factor=round(1 / sample.float().std().item(), 4))
    trained.to(memory_format=torch.contiguous_format).save_pretrained(work / "vae")
    return trained


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Mean latents of (N, 3, 64, 64) uint8 pictures, scaled; (N, 4, 16, 16) float16."""
    parts = (part.float() / 127.5 - 1 for part in images.split(2048))
    latents = torch.cat([vae.encode(part).latent_dist.mean.half() for part in parts])
    return latents * vae.config.scaling_factor
