"""GenEval's checks as a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from rewards.base import Residency, RewardModel
from rewards.caching import Bounded, levels
from rewards.detectors import Boxes, Detector
from rewards.embedding import Encoder, Precision
from rewards.encoders import OpenClipSource
from rewards.geneval import COLOURS, Spec, crops, judge
from steering.reward import Item

_TEMPLATES = (
    "a photo of a {c} {kind}",
    "a photo of a {c}-colored {kind}",
    "a photo of a {c} object",
)


class GenEval(RewardModel):
    """Whether a picture shows what GenEval's metadata of its prompt ask for: 1 or 0.

    Objects are found by a zero-shot detector, where the published code has Mask2Former on the 80
    classes of COCO; so any class will do, but figures are not comparable with published ones.
    Colours are named by CLIP on the boxes' contents, as there. The metadata of each prompt
    (`steering.reward.Item.metadata`) have the form of GenEval's prompt files.

    Args:
        detector: hub id or folder of OWL-ViT, OWLv2 or Grounding DINO.
        model: name, hub id or folder of the CLIP that names colours, loaded when a prompt first has
            one; as in `CLIPScore`.
        pretrained: tag or file of its weights, with a built-in name.
        graded: the total is the share of conditions that hold instead of the verdict, which is
            easier to climb; both are columns.
        threshold: score from which on something is an object.
        counting_threshold: the same where numbers are asked for, as the published code has it.
        max_objects: most objects of a class.
        max_overlap: as in `rewards.detectors.Detector`.
        batch_limit: most pictures at once.
        dtype: precision of the weights.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        ValueError: a threshold outside [0, 1], or a detector of another kind.
        WeightsUnavailable: as `rewards.weights.from_transformers`.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        detector: str = "google/owlv2-base-patch16-ensemble",
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        *,
        graded: bool = False,
        threshold: float = 0.3,
        counting_threshold: float = 0.3,
        max_objects: int = 16,
        max_overlap: float = 0.6,
        batch_limit: int = 8,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(device=device, residency=residency)
        for value in (threshold, counting_threshold, max_overlap):
            if not 0 <= value <= 1:
                raise ValueError(f"thresholds and overlaps lie in [0, 1], got {value}")
        self.detector = Detector.load(
            detector,
            max_overlap=max_overlap,
            dtype=dtype,
            cache_dir=cache_dir,
            place=(device, residency),
        )
        self._source = OpenClipSource(model, pretrained, False, dtype, device, residency, cache_dir)
        self.encoder: Encoder | None = None
        self.graded, self.max_objects, self.batch_limit = graded, max_objects, batch_limit
        self.thresholds = {False: threshold, True: counting_threshold}
        self.name = "geneval-graded" if graded else "geneval"
        self._named: Bounded[str, Tensor] = Bounded(1024)

    def featurize(self, item: Item) -> Spec:
        """What the metadata of the prompt ask for.

        Raises:
            ValueError: they have another form, see `rewards.geneval.Spec.of`.
        """
        try:
            spec = Spec.of(item.metadata)
        except ValueError as error:
            raise ValueError(f"prompt {item.prompt!r}: {error}") from error
        if self.encoder is None and any(wanted.colour for wanted in spec.include):
            self.encoder = self._source.encoder()
        return spec

    def score(self, media: Tensor, features: Sequence[Spec]) -> Mapping[str, Tensor]:
        """Verdicts and shares ``(B,)``."""
        pictures = levels(media)
        verdicts, shares = media.new_zeros(len(media)), media.new_zeros(len(media))
        for classes in dict.fromkeys(spec.classes for spec in features):
            rows = [i for i, spec in enumerate(features) if spec.classes == classes]
            for row, found in zip(rows, self.detector.find(pictures[rows], classes), strict=True):
                spec = features[row]
                sure = {
                    kind: boxes.above(self.thresholds[spec.counting], self.max_objects)
                    for kind, boxes in found.items()
                }
                picture = pictures[row].float() / 255
                right, share = judge(spec, sure, partial(self.colours, picture))
                verdicts[row], shares[row] = float(right), share
        other = "geneval" if self.graded else "geneval-graded"
        total, rest = (shares, verdicts) if self.graded else (verdicts, shares)
        return {self.name: total.float(), other: rest.float()}

    def colours(self, picture: Tensor, boxes: Boxes, kind: str) -> list[str]:
        """The colour of each box of a class in a picture ``(3, H, W)``."""
        assert self.encoder is not None  # a prompt with a colour was prepared
        parts = [self.encoder.preprocess(part) for part in crops(picture, boxes.corners)]
        self.encoder.follow(picture.device)
        embedded = self.encoder.encode_pixels(torch.cat(parts))
        logits = functional.normalize(embedded, dim=-1) @ self._palette(kind).to(embedded.device).T
        return [COLOURS[i] for i in logits.argmax(-1).tolist()]

    def _palette(self, kind: str) -> Tensor:
        """An embedding ``(colours, D)`` of each colour of a class, the mean over some phrases."""
        if kind not in self._named:
            assert self.encoder is not None
            texts = [t.format(c=c, kind=kind) for c in COLOURS for t in _TEMPLATES]
            embedded = functional.normalize(self.encoder.texts(texts), dim=-1)
            mean = embedded.view(len(COLOURS), len(_TEMPLATES), -1).mean(1)
            self._named[kind] = functional.normalize(mean, dim=-1)
        return self._named[kind]
