"""Stand-ins for the tokenizers and configurations that diffusers' tests download.

A tokenizer here splits a text into characters. Its special tokens have the numbers that the tests' text
encoders expect; characters beyond the size of the vocabulary are unknown.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c.get('text', '<|image_pad|>') }}{% endfor %}{% endif %} "
    "{% endfor %}"
)


@dataclass(frozen=True)
class Words:
    """What a repository's tokenizer is like.

    Attributes:
        special: special tokens in the order of their numbers, named by their roles.
        size: of the vocabulary.
        form: special tokens around a text ``$A``.
        length: longest sequence.
        numbered: further special tokens that are given by name and number.
        left: whether padding comes first, with the positions of the tokens beside them (ChatGLM).
    """

    special: tuple[str, ...] = ("pad", "eos", "unk", "bos")
    size: int = 99
    form: str = "$A eos"
    length: int = 512
    numbered: tuple[tuple[str, int], ...] = ()
    left: bool = False


_CLIP = Words(("bos", "pad", "eos", "unk"), form="bos $A eos", length=77)
_BERT = Words(("pad", "bos", "eos", "unk"), form="bos $A eos")
_TINY_GEMMA = Words(("pad", "eos", "bos", "unk"), size=8, form="bos $A", length=8192)
_LLAMA = Words(("bos", "unk", "eos", "pad"), form="bos $A", length=8192)
_QWEN = Words(
    form="$A",
    length=8192,
    numbered=(
        ("<|vision_start|>", 151652),
        ("<|vision_end|>", 151653),
        ("<|image_pad|>", 151655),
        ("<|video_pad|>", 151656),
    ),
)

#: Tokenizers by the last part of a repository's name.
TOKENIZERS = {
    "tiny-random-clip": _CLIP,
    "tiny-random-t5": Words(),
    "tiny-random-T5Model": Words(),
    "tiny-random-umt5": Words(),
    "tiny-random-mclip-base": _BERT,
    "tiny-random-roberta": _BERT,
    "tiny-random-BertModel": _BERT,
    "dummy-gemma": _TINY_GEMMA,
    "tiny-random-LlamaForCausalLM": _LLAMA,
    "llama-tokenizer": _LLAMA,
    "dummy-hunyaunvideo": _LLAMA,
    "tiny-random-Qwen2VLForConditionalGeneration": _QWEN,
    "Qwen3-Embedding-0.6B": _QWEN,
    "glm-4-9b-chat": Words(form="$A", length=8192),
    "tiny-random-chatglm3-6b": Words(form="bos $A", length=8192, left=True),
    "Mistral-Small-3.1-24B-Instruct-2503-only-processor": _LLAMA,
}


def _t5_config() -> Any:
    return transformers.T5Config(
        vocab_size=1103,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=5,
        num_heads=4,
        decoder_start_token_id=0,
    )


def _bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=1124,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=5,
        num_attention_heads=4,
    )
    return transformers.BertModel(config).eval()


def _umt5() -> Any:
    config = transformers.UMT5Config(
        vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return transformers.UMT5EncoderModel(config).eval()


def _llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _chatglm() -> Any:
    from diffusers.pipelines.kolors import text_encoder  # slow, and two tests alone want it

    config = text_encoder.ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=99,
        hidden_size=8,
        ffn_hidden_size=37,
        kv_channels=4,
        num_attention_heads=2,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
    )
    model = text_encoder.ChatGLMModel(config, empty_init=False)
    for parameter in model.parameters():  # its norms come without numbers
        torch.nn.init.ones_(parameter) if parameter.ndim == 1 else torch.nn.init.normal_(parameter)
    return model.eval()


#: Configurations and models, likewise.
CONFIGURATIONS: dict[str, Callable[[], Any]] = {"tiny-random-t5": _t5_config}
MODELS: dict[str, Callable[[], Any]] = {
    "tiny-random-t5": lambda: transformers.T5EncoderModel(_t5_config()).eval(),
    "tiny-random-BertModel": _bert,
    "tiny-random-umt5": _umt5,
    "tiny-random-LlamaForCausalLM": _llama,
    "tiny-random-chatglm3-6b": _chatglm,
}


#: Options of what prepares pictures, likewise.
PICTURES = {"tiny-random-DPTForDepthEstimation": {"size": {"height": 32, "width": 32}}}


def _processor(words: Words) -> Any:
    """A tokenizer; with what reads pictures beside it where the tests ask for both."""
    if not words.numbered:
        return tokenizer(words)
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=784, max_pixels=3136),
        tokenizer=tokenizer(words),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=_CHAT,
    )


class _Positioned(PreTrainedTokenizerFast):
    """Says where tokens stand, counted without the padding before them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = super().__call__(*args, **kwargs)
        found["position_ids"] = (found["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return found


def tokenizer(words: Words) -> PreTrainedTokenizerFast:
    """A tokenizer of characters."""
    special = [f"<{name}>" for name in words.special]
    tokens = [*special, " ", *string.ascii_letters, *string.digits]
    if words.size < len(tokens):
        tokens = [*special, *"aeot"]
    numbers = {token: i for i, token in enumerate(tokens[: words.size])} | dict(words.numbered)
    core = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    form = " ".join(p if p == "$A" else f"<{p}>" for p in words.form.split())
    ends = [(token, numbers[token]) for token in special]
    core.post_processor = processors.TemplateProcessing(single=form, special_tokens=ends)
    core.add_special_tokens([*special, *dict(words.numbered)])
    core.decoder = decoders.Sequence(
        [decoders.Replace("<unk>", "?"), decoders.Fuse()]
    )  # a text as long
    kind = _Positioned if words.left else PreTrainedTokenizerFast
    return kind(
        padding_side="left" if words.left else "right",
        tokenizer_object=core,
        model_max_length=words.length,
        chat_template=_CHAT,
        **{f"{name}_token": f"<{name}>" for name in words.special},
    )


def _standing_in(kinds: dict[str, Any], make: Callable[[Any], Any]) -> Any:
    def from_pretrained(name: str, *args: Any, **kwargs: Any) -> Any:
        kind = kinds.get(str(name).rsplit("/", 1)[-1])
        if kind is None:
            raise OSError(f"{name} is not on this machine and has no stand-in")
        return make(kind)

    return staticmethod(from_pretrained)


def _prepared(cls: type, name: str, **_: Any) -> Any:
    """What prepares pictures, of the class that was asked for."""
    options = PICTURES.get(str(name).rsplit("/", 1)[-1])
    if options is None:
        raise OSError(f"{name} is not on this machine and has no stand-in")
    return cls(**options)


def stand_in() -> None:
    """From here on, ``from_pretrained`` answers with stand-ins, and fails for all else."""
    words = _standing_in(TOKENIZERS, tokenizer)
    for kind, answer in (
        (PreTrainedTokenizerBase, words),
        (transformers.AutoTokenizer, words),
        (transformers.AutoProcessor, _standing_in(TOKENIZERS, _processor)),
        (transformers.ProcessorMixin, _standing_in(TOKENIZERS, _processor)),
        (transformers.AutoConfig, _standing_in(CONFIGURATIONS, lambda make: make())),
        (transformers.PreTrainedModel, _standing_in(MODELS, lambda make: make())),
        (transformers.ImageProcessingMixin, classmethod(_prepared)),
    ):
        patch.object(kind, "from_pretrained", answer).start()
