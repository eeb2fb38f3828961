"""What all encoders of pictures and texts share: one forward a batch, however many rewards ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rewards.caching import Bounded
from rewards.preprocessing import Preprocess
from steering.reward import scoring_call

Precision = Literal["float32", "float16", "bfloat16"]

_TEXTS = 4096  #: embeddings of texts that are kept: 16 MB at 1,024 numbers each


class Encoder(nn.Module):
    """Embeds pictures and texts in one space; frozen.

    Within one scoring call the embeddings of a batch of pictures are computed once, and so is the
    preprocessing that several encoders agree on. Embeddings of texts are kept by text.

    Args:
        net: the model, which is set to evaluation.
        preprocess: the road from pictures to its input.
        dtype: precision of the weights; embeddings are float32 always.
    """

    patient = (
        True  #: goes where its pictures are by itself, and only if it has to compute something
    )

    def __init__(self, net: nn.Module, preprocess: Preprocess, dtype: Precision) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.net = net.to(getattr(torch, dtype)).eval().requires_grad_(False)
        self._texts: Bounded[str, Tensor] = Bounded(_TEXTS)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of preprocessed pictures, float32, not normalised."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode_pixels(pixels)")

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings ``(n, D)`` of texts, float32, not normalised."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode_texts(prompts)")

    @property
    def place(self) -> tuple[torch.device, torch.dtype]:
        """Where and how precise the weights are."""
        held = next(self.net.parameters())
        return held.device, held.dtype

    def follow(self, device: torch.device) -> None:
        """Go where the pictures are."""
        if self.place[0] != device:
            self.to(device)

    def images(self, media: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of pictures ``(B, 3, H, W)`` in [0, 1], not normalised."""
        with scoring_call() as memo:

            def embed() -> Tensor:
                pixels = memo.get(self.preprocess, media, lambda: self.preprocess(media))
                self.follow(media.device)
                return self.encode_pixels(pixels)

            return memo.get(self, media, embed)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings ``(n, D)`` of texts; not normalised. The tokenizer cuts what is too long."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        fresh = dict(zip(missing, self.encode_texts(missing), strict=True)) if missing else {}
        rows = [fresh[p] if p in fresh else self._texts[p] for p in prompts]
        for prompt, row in fresh.items():
            self._texts[prompt] = row
        return torch.stack([row.to(self.place[0]) for row in rows])
