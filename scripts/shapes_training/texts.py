"""Tokenizers of the embedded models: every word of the grammar is one token."""

import json
import string
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer, T5TokenizerFast

from steering.shapes.grammar import COLOURS, COUNTS, RELATIONS, SHAPES, Group
from steering.shapes.motion import PACES, WAYS

LENGTH = 24  # tokens of every text
_LETTERS = [*string.ascii_lowercase, *string.digits, *",.-'"]


def words() -> list[str]:
    """The words of the grammar."""
    plurals = [str(Group(2, shape)).split()[-1] for shape in SHAPES]
    relations = [word for relation in RELATIONS for word in relation.split()]
    rest = ["a", "an", "and", "that", "is", "are"]
    return sorted({*SHAPES, *plurals, *COLOURS, *COUNTS, *relations, *rest})


def motion_words() -> list[str]:
    """The words of moving shapes beside those of the grammar of pictures."""
    return sorted({*words(), *WAYS, *PACES, "moving", "standing", "still"})


def clip_tokenizer(vocabulary: Sequence[str] | None = None) -> CLIPTokenizer:
    """A byte-pair encoding in which each known word is one token, other words are letters.

    Args:
        vocabulary: The known words; `words` if nothing else is given.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=_LETTERS,
        end_of_word_suffix="</w>",
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([" ".join(vocabulary or words())], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    letters = [*_LETTERS, *(letter + "</w>" for letter in _LETTERS)]
    # The end token has the highest number: that is where open_clip reads the text's feature.
    names = [*dict.fromkeys([*letters, *learned["vocab"]]), "<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocab = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def t5_tokenizer() -> T5TokenizerFast:
    """A unigram vocabulary of the words of the grammar, and of letters for all others."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab = [*special, *(("▁" + word, -1.0) for word in words())]
    vocab += [(letter, -8.0) for letter in _LETTERS]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=LENGTH)


def encode(tokenizer: CLIPTokenizer | T5TokenizerFast, texts: Sequence[str]) -> Tensor:
    """Texts as token numbers, (N, 24) int64; every distinct text is tokenized once."""
    distinct = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    numbers = tokenizer(
        list(distinct),
        padding="max_length",
        max_length=LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return numbers[torch.tensor([distinct[text] for text in texts])]
