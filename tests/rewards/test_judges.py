"""VQA score and JSON judge on a tiny LLaVA, against the library's own PIL road."""

import pytest
import torch
from PIL import Image
from reward_models import blip2_folder, llava_folder
from transformers import AutoModelForImageTextToText, AutoProcessor

from rewards import JSONJudge, VQAScore, WeightsUnavailable
from rewards.json_judge import read_marks
from rewards.testing import check_reward
from steering.reward import Item

ITEMS = [Item("a red ring"), Item("two star"), Item("a blue cross left of a ring")]
FIELDS = {"fit": (0.0, 10.0), "look": (1.0, 5.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llava_folder(tmp_path_factory.mktemp("llava") / "tiny")


def official(net, processor, media, item):
    """Probability of yes for one PIL picture."""
    content = [{"type": "image"}]
    content += [
        {
            "type": "text",
            "text": f'Does this figure show "{item.prompt}"? Please answer yes or no.',
        }
    ]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    picture = Image.fromarray((media.permute(1, 2, 0) * 255).round().byte().numpy())
    told = processor(images=picture, text=text, return_tensors="pt")
    with torch.no_grad():
        p = net(**told).logits[0, -1].softmax(-1)
    return sum(p[processor.tokenizer.convert_tokens_to_ids(w)] for w in ("Yes", "yes"))


@pytest.mark.parametrize("size", [(32, 32), (97, 160), (768, 512), (1024, 1024)])
def test_vqa_is_the_probability_of_yes(folder, pictures, size):
    media, items = pictures(9, *size) / 255, ITEMS * 3
    reward = VQAScore(str(folder))
    scores = reward(media, [reward.prepare(item) for item in items])
    net = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    expected = torch.stack(
        [official(net, processor, row, item) for row, item in zip(media, items, strict=True)]
    )
    # by prompt: the spread over pictures is what counts
    apart = (scores - expected).view(3, 3).square().mean(0).sqrt()
    assert (apart < 1e-3 * expected.view(3, 3).std(0)).all()


def test_vqa_abilities(folder, pictures):
    reward = VQAScore(str(folder), against="no")
    check_reward(reward, pictures(3, 40, 40) / 255, ITEMS)
    assert reward.name == "vqa-tiny"


def test_answers_are_kept_by_content(folder, pictures):
    reward, rows = VQAScore(str(folder)), []
    inner = reward.judge.next_words
    reward.judge.next_words = lambda pictures, q: rows.append(len(pictures)) or inner(pictures, q)
    media = pictures(3, 32, 32) / 255
    features = [reward.prepare(ITEMS[0])] * 3
    first = reward(media, features)
    again = reward(media[[2, 0, 1]].clone(), features)
    assert torch.equal(again, first[[2, 0, 1]])
    assert rows == [3]
    reward(media[[0, 0]], [features[0], reward.prepare(ITEMS[1])])
    assert rows == [3, 1]
    del reward.judge.next_words


def test_against_no_is_the_odds(folder, pictures):
    media = pictures(2, 32, 32) / 255
    whole, odds = VQAScore(str(folder)), VQAScore(str(folder), against="no")
    no = VQAScore(str(folder), yes=["No", "no"])
    assert whole.judge is odds.judge
    p, q, r = (reward(media, [reward.prepare(ITEMS[0])] * 2) for reward in (whole, no, odds))
    torch.testing.assert_close(r, p / (p + q))


def test_questions_take_metadata(folder):
    reward = VQAScore(str(folder), question="{prompt} two {colour}")
    assert reward.prepare(Item("a ring", {"colour": "red"})) == "a ring two red"
    with pytest.raises(ValueError, match="asks for 'colour', which the metadata of 'a ring' lack"):
        reward.prepare(Item("a ring"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "is it right"}, "must hold {prompt}"),
        ({"against": "maybe"}, "against is 'all' or 'no', got 'maybe'"),
        ({"yes": ["Indeed"]}, "none of 'Indeed' is one token"),
    ],
)
def test_nonsense_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        VQAScore(str(folder), **options)


def test_without_a_network_it_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match="give that folder"):
        VQAScore("nobody/nothing", cache_dir=str(tmp_path))


# ---- JSON


def answering(folder, answer, **options):
    judge = JSONJudge(str(folder), FIELDS, **options)
    judge.judge = type("Fixed", (), {"answers": staticmethod(answer)})()
    return judge


def test_marks_stay_with_their_picture(folder, pictures):
    """Marks that tell the picture: its mean level; in any order and batch."""

    def answer(pictures, questions, _):
        assert all("fit" in q and "from 1 to 5" in q for q in questions)
        means = pictures.float().mean((1, 2, 3)) / 25.5
        return [f'Sure:\n```json\n{{"fit": {m:.4f}, "look": 3}}\n```' for m in means]

    media = pictures(5, 16, 16) / 255
    reward = answering(folder, answer, batch_limit=2)
    features = [reward.prepare(ITEMS[0])] * 5
    columns = reward(media, features)
    assert list(columns) == ["fit", "look", "judge-tiny"]
    torch.testing.assert_close(columns["fit"], media.mean((1, 2, 3)) * 10, atol=1e-3, rtol=0)
    torch.testing.assert_close(columns["judge-tiny"], (columns["fit"] / 10 + 0.5) / 2)
    other = answering(folder, answer)
    order = [4, 2, 0, 1, 3]
    assert torch.equal(other(media[order], features)["fit"], columns["fit"][order])


def test_marks_are_read_and_checked():
    assert read_marks('{"fit": 7, "look": 1.5, "why": "{}"}', FIELDS) == {"fit": 7, "look": 1.5}
    assert read_marks('{oh} {"look": 5, "fit": 0}', FIELDS) == {"fit": 0, "look": 5}
    for answer in (
        "",
        "seven",
        '{"fit": 7}',
        '{"fit": 7, "look": 6}',
        '{"fit": "7", "look": 2}',
        '{"fit": true, "look": 2}',
        '{"fit": NaN, "look": 2}',
        "[7, 2]",
        '{"fit": 7, "look": 2',
    ):
        with pytest.raises(ValueError, match=r"fit in \[0, 10\], look in \[1, 5\]"):
            read_marks(answer, FIELDS)


def test_invalid_answers(folder, pictures):
    media = pictures(2, 16, 16) / 255

    def answer(pictures, questions, _):
        return ["I cannot say"] * len(pictures)

    strict, mild = answering(folder, answer), answering(folder, answer, invalid="lowest")
    with pytest.raises(ValueError, match=r"wrote no JSON object .* but 'I cannot say'"):
        strict(media, [strict.prepare(ITEMS[0])] * 2)
    assert mild(media, [mild.prepare(ITEMS[0])] * 2)["judge-tiny"].tolist() == [0, 0]


def test_a_real_model_writes_and_is_checked(folder, pictures):
    """The tiny model writes no JSON; that its words come back at all is what this looks at."""
    reward = JSONJudge(str(folder), FIELDS, invalid="lowest", max_new_tokens=4)
    written = reward.judge.answers(
        (pictures(3, 40, 32)), [reward.prepare(item) for item in ITEMS], 4
    )
    alone = reward.judge.answers(pictures(3, 40, 32)[1:2], [reward.prepare(ITEMS[1])], 4)
    assert len(written) == 3
    assert all(len(words.split()) <= 4 for words in written)
    assert alone == written[1:2]
    check_reward_scores = reward(
        pictures(3, 40, 32) / 255, [reward.prepare(item) for item in ITEMS]
    )
    assert check_reward_scores[reward.name].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {}, "fields need a least and a greater mark"),
        ({"fit": (3, 3)}, {}, "fields need a least and a greater mark"),
        ({"judge-tiny": (0, 1)}, {}, "named like the reward"),
        (FIELDS, {"question": "marks?"}, "must hold {prompt}"),
        (FIELDS, {"invalid": "skip"}, "'error' or 'lowest'"),
    ],
)
def test_nonsense_judges_are_refused(folder, fields, options, message):
    with pytest.raises(ValueError, match=message):
        JSONJudge(str(folder), fields, **options)


def test_an_encoder_and_decoder_answers_too(tmp_path, pictures):
    """BLIP-2 on a T5, whose answer begins at the decoder's first place."""
    folder = blip2_folder(tmp_path / "blip2")
    reward = VQAScore(str(folder), question="{prompt} yes or no")
    assert reward.judge.two_towers
    media = pictures(3, 60, 90)
    scores = reward(media / 255, [reward.prepare(item) for item in ITEMS])
    net = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for row, item, score in zip(media, ITEMS, scores, strict=True):
        picture = Image.fromarray(row.permute(1, 2, 0).numpy())
        text = f"Question: {item.prompt} yes or no Answer:"
        told = processor(images=picture, text=text, return_tensors="pt")
        start = torch.full((1, 1), processor.tokenizer.pad_token_id)
        with torch.no_grad():
            p = net(**told, decoder_input_ids=start).logits[0, -1].softmax(-1)
        expected = sum(p[processor.tokenizer.convert_tokens_to_ids(w)] for w in ("Yes", "yes"))
        torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-5)
    questions = [reward.prepare(item) for item in ITEMS]
    written = reward.judge.answers(media, questions, 3)
    assert written[1:2] == reward.judge.answers(media[1:2], questions[1:2], 3)
