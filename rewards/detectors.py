"""Zero-shot object detectors of transformers: boxes of the classes that a prompt names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, nms
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from rewards.caching import fingerprint, shared
from rewards.embedding import Precision
from rewards.weights import from_transformers


@dataclass(frozen=True, eq=False)
class Boxes:
    """Objects of one class in one picture, the surest first.

    Attributes:
        corners: ``(n, 4)``: left, top, right, bottom in pixels, on the CPU.
        scores: ``(n,)``, falling, in [0, 1].
    """

    corners: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float, most: int) -> Boxes:
        """The first ``most`` whose score is above a threshold."""
        keep = int((self.scores > threshold).sum())
        return Boxes(self.corners[: min(keep, most)], self.scores[: min(keep, most)])


class Detector(nn.Module):
    """Finds objects by the name of their class; OWL-ViT, OWLv2 and Grounding DINO.

    Pictures go as 8-bit tensors through the model's own image processor, on their device.

    Args:
        net: a model of AutoModelForZeroShotObjectDetection; it is frozen and set to evaluation.
        processor: its processor.
        max_overlap: of two boxes of one class whose intersection over union is above this, only the
            surer one counts (these models report an object several times); 1 keeps all.

    Raises:
        ValueError: the model is of another kind.
    """

    def __init__(self, net: Any, processor: Any, *, max_overlap: float = 0.6) -> None:
        super().__init__()
        kind = net.config.model_type
        if kind not in ("owlvit", "owlv2", "grounding-dino"):
            raise ValueError(
                f"no detector is known of the kind {kind!r}; give OWL-ViT, OWLv2 or Grounding DINO"
            )
        self.grounded = kind == "grounding-dino"
        self.net: Any = net.eval().requires_grad_(False)
        self.processor, self.max_overlap = processor, max_overlap

    @classmethod
    def load(
        cls,
        model: str,
        *,
        max_overlap: float = 0.6,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        cache_dir: str | None = None,
        place: tuple[str | None, str] = (None, "resident"),
    ) -> Detector:
        """The detector of this hub id or folder; one for all rewards that ask for it.

        Args:
            model: hub id or folder.
            max_overlap: as above.
            allow_pickle: load weights that are not safetensors.
            dtype: precision of the weights.
            cache_dir: where downloads are kept instead of the hub's cache.
            place: device and residency of the reward that asks.

        Raises:
            ValueError, WeightsUnavailable: as `rewards.weights.from_transformers`.
        """

        def make() -> Detector:
            from_transformers(AutoConfig.from_pretrained, model, cache_dir=cache_dir)
            net = from_transformers(
                AutoModelForZeroShotObjectDetection.from_pretrained,
                model,
                allow_pickle=allow_pickle,
                dtype=getattr(torch, dtype),
                cache_dir=cache_dir,
            )
            processor = from_transformers(AutoProcessor.from_pretrained, model, cache_dir=cache_dir)
            return cls(net, processor, max_overlap=max_overlap)

        key = ("detector", model, fingerprint(model), max_overlap, allow_pickle, dtype, place)
        return shared(key, make)

    @torch.no_grad()
    def find(self, pictures: Tensor, classes: Sequence[str]) -> list[dict[str, Boxes]]:
        """Objects of each class in each picture, uint8 ``(B, 3, H, W)``; none is left out by score."""
        held = next(self.net.parameters())
        text = list(classes) if self.grounded else [f"a photo of a {name}" for name in classes]
        told = self.processor(
            images=list(pictures.to(held.device)),
            text=[text] * len(pictures),
            padding=True,
            return_tensors="pt",
        ).to(held.device)
        told["pixel_values"] = told["pixel_values"].to(held.dtype)
        out = self.net(**told)
        scores = out.logits.float().sigmoid()
        if self.grounded:
            spans = self._spans(classes)
            scores = torch.stack([scores[..., span].amax(-1) for span in spans], -1)
        height, width = pictures.shape[-2:]
        # OWLv2 pads to a square first, so its boxes are in units of the longer edge.
        square = self.net.config.model_type == "owlv2"
        unit = [max(height, width)] * 4 if square else [width, height, width, height]
        boxes = box_convert(out.pred_boxes.float(), "cxcywh", "xyxy") * scores.new_tensor(unit)
        return [
            self._sorted(row, names, classes)
            for row, names in zip(boxes, scores[..., : len(classes)], strict=True)
        ]

    def _spans(self, classes: Sequence[str]) -> list[list[int]]:
        """Tokens of each class in the one text that the model reads: "a cat. a dog."."""
        names = [name.strip().lower() for name in classes]
        text = ". ".join(names) + "."
        offsets = self.processor.tokenizer(text, return_offsets_mapping=True).offset_mapping
        spans, start = [], 0
        for name in names:
            end = start + len(name)
            spans.append([i for i, (a, b) in enumerate(offsets) if start <= a < b <= end])
            start = end + 2
        for name, span in zip(names, spans, strict=True):
            if not span:
                raise ValueError(f"the detector's tokenizer leaves nothing of the class {name!r}")
        return spans

    def _sorted(self, corners: Tensor, scores: Tensor, classes: Sequence[str]) -> dict[str, Boxes]:
        """Boxes by class: each box is one object, of the class that it is likeliest to be."""
        best, label = scores.max(-1)
        found: dict[str, Boxes] = {}
        for i, name in enumerate(classes):
            own = label == i
            mine, sure = corners[own].cpu(), best[own].cpu()
            order = (
                nms(mine, sure, self.max_overlap)
                if self.max_overlap < 1
                else sure.argsort(descending=True)
            )
            found[name] = Boxes(mine[order], sure[order])
        return found


Detected = Mapping[str, Boxes]
