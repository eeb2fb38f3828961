"""VQA score: the probability that a model which looks at the picture says yes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rewards.base import Residency, RewardModel
from rewards.caching import Bounded, digest, levels
from rewards.embedding import Precision
from rewards.vision_language import VisionLanguageModel
from steering.reward import Item

_QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
_ANSWERS = 65536  #: answers that are kept


class VQAScore(RewardModel):
    """Probability of "yes" (Lin et al. 2024, VQAScore, https://arxiv.org/abs/2404.01291).

    By any image-text-to-text model of transformers. Answers are kept by content of picture and
    question, so a picture that comes again costs nothing.

    Args:
        model: hub id or folder.
        question: with ``{prompt}`` in it; further fields are taken from the item's metadata.
        yes: words that mean yes; each counts if it is one token of the model.
        no: words that mean no.
        against: "all": the probability among all words, as published; "no": yes against no.
        batch_limit: most pictures at once.
        allow_pickle: load weights that are not safetensors.
        dtype: precision of the weights.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        ValueError: the question has no ``{prompt}``, or no word is one token.
        WeightsUnavailable: as `rewards.weights.from_transformers`.
    """

    needs_text = True
    range = (0.0, 1.0)

    def __init__(
        self,
        model: str,
        *,
        question: str = _QUESTION,
        yes: Sequence[str] = ("Yes", "yes"),
        no: Sequence[str] = ("No", "no"),
        against: str = "all",
        batch_limit: int = 8,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(device=device, residency=residency)
        if "{prompt}" not in question:
            raise ValueError(f"the question must hold {{prompt}}, got {question!r}")
        if against not in ("all", "no"):
            raise ValueError(f"against is 'all' or 'no', got {against!r}")
        self.judge = VisionLanguageModel.load(
            model,
            allow_pickle=allow_pickle,
            dtype=dtype,
            cache_dir=cache_dir,
            place=(device, residency),
        )
        self.question, self.against, self.batch_limit = question, against, batch_limit
        self.name = f"vqa-{Path(model).name}"
        self._yes, self._no = self.judge.tokens(yes), self.judge.tokens(no)
        self._known: Bounded[tuple[bytes, str], float] = Bounded(_ANSWERS)

    def featurize(self, item: Item) -> str:
        """The question about this prompt.

        Raises:
            ValueError: it has a field that the metadata lack.
        """
        return asked(self.question, item)

    def score(self, media: Tensor, features: Sequence[str]) -> Tensor:
        """Probabilities ``(B,)``."""
        pictures = levels(media)
        keys = [(digest(p), question) for p, question in zip(pictures, features, strict=True)]

        def make(rows: list[int]) -> list[float]:
            log_p = self.judge.next_words(pictures[rows], [features[row] for row in rows])
            yes = log_p[:, self._yes].logsumexp(-1)
            if self.against == "no":
                yes = yes - torch.logaddexp(yes, log_p[:, self._no].logsumexp(-1))
            return yes.exp().clamp(max=1.0).tolist()

        return torch.tensor(self._known.filled(keys, make), device=media.device)


def asked(question: str, item: Item) -> str:
    """The question with the fields of a prompt and its metadata filled in.

    Raises:
        ValueError: the metadata lack a field.
    """
    try:
        return question.format(**{**item.metadata, "prompt": item.prompt})
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"the question {question!r} asks for {error}, which the metadata of {item.prompt!r} lack"
        ) from error
