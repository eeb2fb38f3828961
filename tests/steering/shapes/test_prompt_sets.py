import hashlib
from collections import Counter

import pytest

from steering.shapes import folder, kind, parse, prompts
from steering.shapes.grammar import EASY_KINDS
from steering.shapes.sampling import held_out


@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [("easy", 512, "e6d58772a853"), ("hard", 128, "8bb4ab43782b")],
)
def test_the_prompt_sets_are_fixed(name, count, digest):
    texts = prompts(name)
    assert len(set(texts)) == count
    assert all(str(parse(text)) == text for text in texts)
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] == digest


def test_kinds_and_held_out_combinations():
    easy, hard = prompts("easy"), prompts("hard")
    assert {kind(text) for text in easy} == set(EASY_KINDS)
    assert {kind(text) for text in hard} == {"chain", "relation", "groups"}
    held = Counter(kind(text) for text in easy if held_out(parse(text)))
    assert held["attributes"] >= 44
    assert min(held["colours"], held["two"]) >= 4


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown prompt set 'medium'; use one of easy, hard"):
        prompts("medium")
    with pytest.raises(
        ValueError, match="unknown embedded model 'shapes-xl'; use one of shapes-sd"
    ):
        folder("shapes-xl")
