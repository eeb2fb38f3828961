"""Image-text-to-text models of transformers: one question a picture, in batches whose order is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from rewards.caching import fingerprint, shared
from rewards.embedding import Precision
from rewards.weights import from_transformers

_PLAIN = "Question: {question} Answer:"  #: for models without a chat template


class VisionLanguageModel(nn.Module):
    """A model that reads a picture and a question.

    Pictures go as 8-bit tensors through the model's own image processor, on their device: what it
    makes of them is what it makes of a PIL image.

    Args:
        net: a model of AutoModelForImageTextToText; it is frozen and set to evaluation.
        processor: its processor.
    """

    def __init__(self, net: Any, processor: Any) -> None:
        super().__init__()
        self.net: Any = net.eval().requires_grad_(False)
        self.processor = processor
        self.two_towers = bool(getattr(net.config, "is_encoder_decoder", False)) or (
            getattr(getattr(net.config, "text_config", None), "is_encoder_decoder", False) is True
        )
        # On the left, so that all answers of a batch begin at its last place.
        self.processor.tokenizer.padding_side = "right" if self.two_towers else "left"
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token

    @classmethod
    def load(
        cls,
        model: str,
        *,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        cache_dir: str | None = None,
        place: tuple[str | None, str] = (None, "resident"),
    ) -> VisionLanguageModel:
        """The model of this hub id or folder; one for all rewards that ask for it.

        Args:
            model: hub id or folder.
            allow_pickle: load weights that are not safetensors.
            dtype: precision of the weights.
            cache_dir: where downloads are kept instead of the hub's cache.
            place: device and residency of the reward that asks.

        Raises:
            ValueError, WeightsUnavailable: as `rewards.weights.from_transformers`.
        """

        def make() -> VisionLanguageModel:
            net = from_transformers(
                AutoModelForImageTextToText.from_pretrained,
                model,
                allow_pickle=allow_pickle,
                dtype=getattr(torch, dtype),
                cache_dir=cache_dir,
            )
            processor = from_transformers(AutoProcessor.from_pretrained, model, cache_dir=cache_dir)
            return cls(net, processor)

        return shared(("vlm", model, fingerprint(model), allow_pickle, dtype, place), make)

    def inputs(self, pictures: Tensor, questions: Sequence[str]) -> Any:
        """The model's inputs for pictures uint8 ``(B, 3, H, W)`` with a question each."""
        held = next(self.net.parameters())
        told = self.processor(
            images=[[picture] for picture in pictures.to(held.device)],
            text=[self._asked(question) for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(held.device)
        for name, value in told.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                told[name] = value.to(held.dtype)
        return told

    def _asked(self, question: str) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            return _PLAIN.format(question=question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    @torch.no_grad()
    def next_words(self, pictures: Tensor, questions: Sequence[str]) -> Tensor:
        """Log-probabilities ``(B, vocabulary)`` of the first token of each answer, float32."""
        told = self.inputs(pictures, questions)
        if self.two_towers:
            start = _start_token(self.net.config)
            told["decoder_input_ids"] = torch.full(
                (len(pictures), 1), start, device=told["input_ids"].device
            )
        logits = self.net(**told).logits[:, -1]
        return torch.log_softmax(logits.float(), -1)

    @torch.no_grad()
    def answers(self, pictures: Tensor, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """The likeliest answers, word by word (no sampling), in the order of the pictures."""
        told = self.inputs(pictures, questions)
        ids = self.net.generate(
            **told,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        if not self.two_towers and ids.shape[1] >= told["input_ids"].shape[1]:
            ids = ids[:, told["input_ids"].shape[1] :]
        return self.processor.batch_decode(ids, skip_special_tokens=True)

    def tokens(self, words: Sequence[str]) -> list[int]:
        """Token of each word that is one token, with or without a space before it.

        Raises:
            ValueError: none of them is.
        """
        tokenizer, found = self.processor.tokenizer, set()
        for word in words:
            for spelled in (word, f" {word}"):
                ids = tokenizer(spelled, add_special_tokens=False).input_ids
                if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                    found.add(ids[0])
        if not found:
            raise ValueError(f"none of {', '.join(map(repr, words))} is one token of this model")
        return sorted(found)


def _start_token(config: Any) -> int:
    for place in (config, getattr(config, "text_config", None)):
        start = getattr(place, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError("the model's configuration names no decoder_start_token_id")
