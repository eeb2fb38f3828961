"""Trains the denoisers of shapes-sd (noise prediction) and shapes-flux (rectified flow)."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor, nn

from shapes_training.data import Pictures
from shapes_training.loop import Plan, Trainer
from shapes_training.networks import (
    LATENT_SIZE,
    Size,
    make_clip_text,
    make_flux,
    make_t5,
    make_unet,
)
from shapes_training.store import save_pipeline
from shapes_training.texts import LENGTH, clip_tokenizer, encode, t5_tokenizer
from shapes_training.vae import encode_all

DROPPED = 0.1  # captions emptied, for classifier-free guidance
_MOST_WEIGHT = 20.0  # of one time in the loss of shapes-sd
_SHIFT = 2.0  # of the sampling times of shapes-flux towards high noise


def train_sd(pictures: Pictures, size: Size, plan: Plan, work: Path, out: Path) -> None:
    """Trains UNet and text encoder together and saves the pipeline folder `out`/shapes-sd."""
    vae = AutoencoderKL.from_pretrained(work / "vae").to(plan.device)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    tokenizer = clip_tokenizer()
    torch.manual_seed(plan.seed)
    text = make_clip_text(tokenizer, size.text, size.text_layers).to(plan.device)
    unet = make_unet(size).to(plan.device)
    module = nn.ModuleDict({"net": unet, "text": text}).train()
    latents = encode_all(vae, pictures.images)
    draw_ids = draw_captions(encode(tokenizer, ["", *pictures.captions]), plan.device)
    levels = scheduler.alphas_cumprod.to(plan.device)

    def loss() -> Tensor:
        index = torch.randint(len(latents), (size.batch,), device=plan.device)
        clean = latents[index].float()
        noise = torch.randn_like(clean)
        # One time from every equal slice: less variance than independent times.
        slices = torch.arange(size.batch, device=plan.device)
        time = ((slices + torch.rand(size.batch, device=plan.device)) / size.batch * 1000).long()
        time = time.clamp(max=999)
        level = levels[time][:, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        states = text(draw_ids(index)).last_hidden_state
        guess = unet(noisy, time, states).sample
        # The weight that velocity prediction would give: colours and layout are decided at high
        # noise, where the plain loss has almost no weight.
        weight = (1 / level).clamp(max=_MOST_WEIGHT)
        return (weight * (guess.float() - noise).square()).mean()

    trainer = Trainer(module, loss, plan, work / "sd.pt")
    trainer.run()
    unet, text = trainer.average["net"], trainer.average["text"]
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save_pipeline(pipeline, out / "shapes-sd")


def train_flux(pictures: Pictures, size: Size, plan: Plan, work: Path, out: Path) -> None:
    """Trains transformer and both text encoders and saves the pipeline folder `out`/shapes-flux."""
    # Its backward pass fails with heads of 32 on some versions of cuDNN.
    torch.backends.cuda.enable_cudnn_sdp(False)
    vae = AutoencoderKL.from_pretrained(work / "vae").to(plan.device)
    tokenizers = clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(plan.seed)
    module = nn.ModuleDict(
        {
            "net": make_flux(size),
            "text": make_clip_text(tokenizers[0], size.pooled, 2),
            "text_2": make_t5(tokenizers[1], size.text, size.text_layers),
        }
    )
    module = module.to(plan.device).train()
    latents = _pack(encode_all(vae, pictures.images))
    texts = ["", *pictures.captions]
    draw_both = draw_captions(
        torch.stack([encode(tokenizer, texts) for tokenizer in tokenizers], 1), plan.device
    )
    image_ids = FluxPipeline._prepare_latent_image_ids(
        1, LATENT_SIZE // 2, LATENT_SIZE // 2, plan.device, torch.float32
    )
    text_ids = torch.zeros(LENGTH, 3, device=plan.device)

    def loss() -> Tensor:
        index = torch.randint(len(latents), (size.batch,), device=plan.device)
        clean = latents[index].float()
        noise = torch.randn_like(clean)
        # High noise decides the layout: it gets the larger share of the times.
        sigma = torch.sigmoid(0.4 + 1.2 * torch.randn(size.batch, device=plan.device))
        noisy = clean + sigma[:, None, None] * (noise - clean)
        ids, ids_2 = draw_both(index).unbind(1)
        velocity = module["net"](
            hidden_states=noisy,
            timestep=sigma,
            pooled_projections=module["text"](ids).pooler_output,
            encoder_hidden_states=module["text_2"](ids_2).last_hidden_state,
            txt_ids=text_ids,
            img_ids=image_ids,
        ).sample
        return (velocity.float() - (noise - clean)).square().mean()

    trainer = Trainer(module, loss, plan, work / "flux.pt")
    trainer.run()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=_SHIFT),
        vae=vae,
        text_encoder=trainer.average["text"],
        tokenizer=tokenizers[0],
        text_encoder_2=trainer.average["text_2"],
        tokenizer_2=tokenizers[1],
        transformer=trainer.average["net"],
    )
    save_pipeline(pipeline, out / "shapes-flux")


def draw_captions(ids: Tensor, device: str) -> Callable[[Tensor], Tensor]:
    """A function from picture numbers to token numbers that empties some captions.

    Args:
        ids: (1 + N, ..., 24); the first row is the empty text.
        device: Where the batches are drawn.
    """
    ids = ids.to(device)

    def pick(index: Tensor) -> Tensor:
        dropped = torch.rand(len(index), device=device) < DROPPED
        return ids[torch.where(dropped, 0, index + 1)]

    return pick


def _pack(latents: Tensor) -> Tensor:
    """(N, C, H, W) as the Flux form's 2 x 2 patches, (N, H / 2 * W / 2, 4 * C)."""
    patches = latents.unfold(2, 2, 2).unfold(3, 2, 2)  # (N, C, H / 2, W / 2, 2, 2)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).contiguous()
