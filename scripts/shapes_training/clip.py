"""Trains shapes-clip: contrastive, with one hard negative a caption.

Contrast alone leaves relations at chance for long, because each tower waits for the other to tell
places apart. So one linear map, shared by both towers and dropped after training, must read from
the features where each shape is (pictures) or should be (texts).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from transformers import CLIPTokenizer

from shapes_training.data import Pictures, negative_captions, wanted_places
from shapes_training.loop import Plan, Trainer
from shapes_training.measure import caption_pairs, pair_accuracy
from shapes_training.networks import Size, open_clip_config
from shapes_training.store import save_open_clip
from shapes_training.texts import clip_tokenizer, encode

# A perfect reward could not be over-optimised, so training stops here.
_ENOUGH = 0.955
_ENOUGH_EACH = 0.85
_CHECK_EVERY = 100


def train_clip(pictures: Pictures, size: Size, plan: Plan, work: Path, out: Path) -> None:
    """Trains until it is good but fallible and saves the folder `out`/shapes-clip."""
    tokenizer = clip_tokenizer()
    config = open_clip_config(tokenizer, size)
    torch.manual_seed(plan.seed)
    parts = config["model_cfg"]
    clip = open_clip.CLIP(parts["embed_dim"], parts["vision_cfg"], parts["text_cfg"])
    places = nn.Linear(parts["embed_dim"], pictures.layout[0].numel())
    module = nn.ModuleDict({"clip": clip, "places": places}).to(plan.device)
    texts = _Texts.make(pictures.captions, tokenizer, plan)
    related = texts.places[:, 0].flatten(1).any(1).nonzero()[:, 0]

    def loss() -> Tensor:
        # Half of every batch has a relation: they are the hardest to learn.
        half = size.batch // 2
        index = torch.randint(len(texts.ids), (size.batch,), device=plan.device)
        index[:half] = related[torch.randint(len(related), (half,), device=plan.device)]
        images = pictures.images[index].float() / 127.5 - 1
        seen = clip.encode_image(images, normalize=True)
        told = clip.encode_text(texts.ids[index].transpose(0, 1).flatten(0, 1), normalize=True)
        told_places = texts.places[index].transpose(0, 1).flatten(0, 1)
        error = _place_error(places, seen, pictures.layout[index])
        error = error + _place_error(places, told, told_places)
        logits = clip.logit_scale.exp().clamp(max=100) * seen.float() @ told.float().T
        return _contrast(logits, texts.numbers[index]) + error

    trainer = Trainer(module, loss, plan, work / "clip.pt")
    trainer.run(after=_good_enough(trainer, tokenizer, plan), every=_CHECK_EVERY)
    save_open_clip(trainer.average["clip"], config, tokenizer, out / "shapes-clip")


@dataclass(frozen=True)
class _Texts:
    """Captions and hard negatives of N pictures.

    Attributes:
        ids: (N, 2, 24) tokens of caption and negative.
        numbers: (N, 2), equal for equal texts.
        places: (N, 2, 7, 2) what their relations ask for.
    """

    ids: Tensor
    numbers: Tensor
    places: Tensor

    @classmethod
    def make(cls, captions: list[str], tokenizer: CLIPTokenizer, plan: Plan) -> "_Texts":
        both = captions, negative_captions(captions, plan.seed)
        known = {text: n for n, text in enumerate(dict.fromkeys(captions + both[1]))}
        numbers = [torch.tensor([known[text] for text in texts]) for texts in both]
        return cls(
            torch.stack([encode(tokenizer, texts) for texts in both], 1).to(plan.device),
            torch.stack(numbers, 1).to(plan.device),
            torch.stack([wanted_places(texts) for texts in both], 1).to(plan.device),
        )


def _contrast(logits: Tensor, numbers: Tensor) -> Tensor:
    """Contrastive loss of (B, 2 B) logits: B captions, then B negatives, numbered (B, 2)."""
    batch = len(logits)
    # The same text elsewhere in the batch is no negative.
    same = numbers[:, :1] == numbers.T.flatten()
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -1e4)
    here = torch.arange(batch, device=logits.device)
    margin = logits.diagonal() - logits[:, batch:].diagonal()
    by_image = cross_entropy(logits, here)
    by_text = cross_entropy(logits[:, :batch].T, here)
    return by_image + by_text + 2 * softplus(-margin).mean()


def _place_error(places: nn.Linear, features: Tensor, wanted: Tensor) -> Tensor:
    guess = places(features * features.shape[1] ** 0.5).float()
    return 0.5 * (guess - wanted.flatten(1)).square().sum(1).mean()


def _good_enough(trainer: Trainer, tokenizer: Callable, plan: Plan) -> Callable[[int], bool]:
    """Whether the averaged model picks true captions often enough, on pictures of its own."""
    pairs = caption_pairs(seed=plan.seed + 1, repeats=4, device=plan.device)

    def check(step: int) -> bool:
        model = trainer.average["clip"]
        by_kind = pair_accuracy(model, lambda texts: encode(tokenizer, texts), pairs)
        print(step, {kind: round(value, 3) for kind, value in by_kind.items()}, flush=True)
        overall = by_kind.pop("overall")
        return overall >= _ENOUGH and min(by_kind.values()) >= _ENOUGH_EACH

    return check
