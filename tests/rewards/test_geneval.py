"""GenEval's rules on boxes that are known, and the detectors against the library's own road."""

import pytest
import torch
from PIL import Image
from reward_models import grounding_folder, llava_folder, owl_folder
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from rewards import Detector, GenEval
from rewards.detectors import Boxes
from rewards.geneval import COLOURS, Spec, crops, judge, relations
from rewards.testing import check_reward
from steering.reward import Item


def boxes(*corners, scores=None):
    rows = torch.tensor(corners, dtype=torch.float32).view(-1, 4)
    return Boxes(rows, torch.linspace(0.9, 0.5, len(rows)) if scores is None else scores)


def spec(*include, exclude=(), tag=""):
    return Spec.of({"include": include, "exclude": exclude, "tag": tag})


def no_colours(found, kind):
    raise AssertionError("no colour was asked for")


def verdict(wanted, detected, colours=no_colours):
    return judge(wanted, detected, colours)


DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
HERE, THERE = (10, 10, 30, 30), (60, 12, 80, 32)


def test_single_object():
    assert verdict(spec(DOG), {"dog": boxes(HERE)}) == (True, 1)
    assert verdict(spec(DOG), {"dog": boxes()}) == (False, 0)


def test_two_objects():
    both = spec(DOG, CAT)
    assert both.classes == ("dog", "cat")
    assert verdict(both, {"dog": boxes(HERE), "cat": boxes(THERE)}) == (True, 1)
    assert verdict(both, {"dog": boxes(HERE), "cat": boxes()}) == (False, 0.5)


def test_counting_is_exact():
    two = spec({"class": "dog", "count": 2}, exclude=[{"class": "dog", "count": 3}], tag="counting")
    assert two.counting
    assert two.classes == ("dog",)
    assert verdict(two, {"dog": boxes(HERE)}) == (False, 0.75)
    assert verdict(two, {"dog": boxes(HERE, THERE)}) == (True, 1)
    assert verdict(two, {"dog": boxes(HERE, THERE, HERE)}) == (False, 0.5)


def test_colours_are_those_of_the_surest():
    red = spec({**DOG, "color": "red"})
    seen = []

    def colours(found, kind):
        seen.append((len(found), kind))
        return ["red", "blue"][: len(found)]

    assert verdict(red, {"dog": boxes(HERE, THERE)}, colours) == (True, 1)
    two = spec({"class": "dog", "count": 2, "color": "red"})
    assert verdict(two, {"dog": boxes(HERE, THERE)}, colours) == (False, 0.75)
    assert seen == [(1, "dog"), (2, "dog")]
    assert verdict(red, {"dog": boxes()}) == (False, 0)  # nothing to name the colour of


def test_colour_attribution():
    both = spec({**DOG, "color": "red"}, {**CAT, "color": "blue"})
    found = {"dog": boxes(HERE), "cat": boxes(THERE)}
    right, wrong = {"dog": ["red"], "cat": ["blue"]}, {"dog": ["blue"], "cat": ["red"]}
    assert verdict(both, found, lambda _, kind: right[kind]) == (True, 1)
    assert verdict(both, found, lambda _, kind: wrong[kind]) == (False, 0.5)


def test_position():
    left = spec(CAT, {**DOG, "position": ["left of", 0]})
    assert verdict(left, {"dog": boxes(HERE), "cat": boxes(THERE)}) == (True, 1)
    assert verdict(left, {"dog": boxes(THERE), "cat": boxes(HERE)}) == (False, 2 / 3)
    assert verdict(left, {"dog": boxes(THERE), "cat": boxes()}) == (False, 1 / 3)
    coloured = spec({**CAT, "color": "red"}, {**DOG, "position": ["left of", 0]})
    found = {"dog": boxes(HERE), "cat": boxes(THERE)}
    assert verdict(coloured, found, lambda *_: ["blue"])[0] is False  # no red cat to be left of


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (HERE, THERE, {"left of"}),
        (THERE, HERE, {"right of"}),
        ((10, 10, 30, 30), (10, 60, 30, 80), {"above"}),
        ((10, 60, 30, 80), (10, 10, 30, 30), {"below"}),
        ((10, 10, 30, 30), (60, 60, 80, 80), {"left of", "above"}),
        (HERE, HERE, set()),
        ((10, 10, 30, 30), (13, 10, 33, 30), set()),  # within a tenth of both widths
        ((10, 10, 30, 30), (15, 10, 35, 30), set()),  # beyond, but most of it is overlap
        ((10, 10, 30, 30), (20, 10, 40, 30), {"left of"}),
    ],
)
def test_relations(a, b, told):
    assert relations(torch.tensor(a), torch.tensor(b)) == told


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "got the keys none"),
        ({"prompt": "a dog"}, "got the keys prompt"),
        ({"include": [{"count": 1}]}, "expected a class and a count"),
        ({"include": [{"class": "dog", "count": 0}]}, "count of at least 1"),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "unknown colour 'mauve'"),
        ({"include": [{**DOG, "position": ["left of", 0]}]}, "the number of an earlier clause"),
        ({"include": [CAT, {**DOG, "position": ["near", 0]}]}, "expected a position like"),
    ],
)
def test_metadata_of_another_form_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        Spec.of(metadata)


def test_crops_stay_inside():
    picture = torch.rand(3, 20, 30)
    found = crops(
        picture, torch.tensor([[2.4, 3.6, 10.2, 8.0], [-5, -5, 99, 99], [40, 40, 50, 50]])
    )
    assert [tuple(c.shape) for c in found] == [(1, 3, 4, 8), (1, 3, 20, 30), (1, 3, 1, 1)]
    assert torch.equal(found[0][0], picture[:, 4:8, 2:10])


class Known:
    """A detector of whatever is not background, which is every class."""

    net = torch.nn.Linear(1, 1)

    def find(self, pictures, classes):
        found = []
        for picture in pictures.float() / 255:
            ink = (picture - picture[:, :1, :1]).abs().sum(0) > 0.3
            ys, xs = torch.nonzero(ink, as_tuple=True)
            corners = [float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
            found.append({kind: boxes(corners) for kind in classes})
        return found


# ---- the detectors


DETECTORS = {
    "owlv2": lambda folder: owl_folder(folder, "owlv2"),
    "owlvit": lambda folder: owl_folder(folder, "owlvit"),
    "grounding-dino": grounding_folder,
}


@pytest.fixture(scope="module", params=list(DETECTORS))
def detector_folder(request, tmp_path_factory):
    return DETECTORS[request.param](tmp_path_factory.mktemp("detector") / request.param)


@pytest.mark.parametrize("size", [(64, 64), (60, 100), (200, 120)])
def test_detections_are_those_of_the_library(detector_folder, pictures, size):
    media, classes = pictures(2, *size), ["ring", "blue star"]
    detector = Detector.load(str(detector_folder), max_overlap=1.0)
    found = detector.find(media, classes)
    net = AutoModelForZeroShotObjectDetection.from_pretrained(detector_folder).eval()
    processor = AutoProcessor.from_pretrained(detector_folder)
    grounded = net.config.model_type == "grounding-dino"
    for row, mine in zip(media, found, strict=True):
        picture = Image.fromarray(row.permute(1, 2, 0).numpy())
        text = [classes if grounded else [f"a photo of a {c}" for c in classes]]
        told = processor(images=picture, text=text, return_tensors="pt")
        with torch.no_grad():
            out = net(**told)
        sizes = [size]
        if grounded:
            [theirs] = processor.post_process_grounded_object_detection(
                out, told["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=sizes
            )
        else:
            [theirs] = processor.post_process_grounded_object_detection(
                out, threshold=0.0, target_sizes=sizes
            )
        together = torch.cat([b.corners for b in mine.values()])
        assert len(together) == len(theirs["boxes"])
        apart = torch.cdist(together, theirs["boxes"])
        assert max(apart.amin(0).max(), apart.amin(1).max()) < 0.05  # pixels
        for i, (kind, own) in enumerate(mine.items()):
            assert kind == classes[i]
            assert (own.scores.diff() <= 0).all()
            if not grounded:
                expected = theirs["scores"][theirs["labels"] == i].sort(descending=True).values
                torch.testing.assert_close(own.scores, expected, atol=1e-4, rtol=1e-3)


def test_overlapping_boxes_are_one_object(tmp_path):
    folder = str(owl_folder(tmp_path / "owl"))
    corners = torch.tensor([HERE, (11, 10, 31, 30), THERE, (12, 10, 32, 30)], dtype=torch.float32)
    scores = torch.tensor([[0.5, 0.1], [0.9, 0.1], [0.3, 0.1], [0.2, 0.8]])
    for overlap, left in ((0.6, [1, 2]), (1.0, [1, 0, 2])):
        found = Detector.load(folder, max_overlap=overlap)._sorted(corners, scores, ["dog", "cat"])
        assert torch.equal(found["dog"].corners, corners[left])
        assert torch.equal(found["cat"].corners, corners[[3]])
    assert len(found["dog"].above(0.4, most=16)) == 2
    assert len(found["dog"].above(0.4, most=1)) == 1


def test_spans_of_grounded_classes(tmp_path):
    detector = Detector.load(str(grounding_folder(tmp_path / "dino")))
    # [CLS] ring . blue star . [SEP]
    assert detector._spans(["Ring", "blue star"]) == [[1], [3, 4]]


def test_other_models_are_no_detectors(tmp_path):
    from transformers import AutoModelForImageTextToText

    net = AutoModelForImageTextToText.from_pretrained(llava_folder(tmp_path / "llava"))
    with pytest.raises(ValueError, match="no detector is known of the kind 'llava'"):
        Detector(net, None)


# ---- the reward


def test_geneval_abilities(detector_folder, clip_folder, pictures):
    reward = GenEval(
        str(detector_folder), str(clip_folder), None, threshold=0.0, counting_threshold=0.0
    )
    items = [
        Item("a red ring", {"include": [{"class": "ring", "count": 1, "color": "red"}]}),
        Item("two stars", {"include": [{"class": "star", "count": 2}]}),
        Item("a ring", {"include": [{"class": "ring", "count": 1}]}),
    ]
    check_reward(reward, pictures(3, 64, 64) / 255, items)
    assert reward.name == "geneval"
    columns = reward(pictures(3, 64, 64) / 255, [reward.prepare(item) for item in items])
    assert list(columns) == ["geneval", "geneval-graded"]
    assert columns["geneval"].unique().tolist() != []
    assert ((columns["geneval"] == 1) == (columns["geneval-graded"] == 1)).all()


def test_the_clip_is_loaded_only_for_colours(tmp_path):
    reward = GenEval(str(owl_folder(tmp_path / "owl")), "nobody/nothing", None)
    reward.prepare(Item("a ring", {"include": [{"class": "ring", "count": 1}]}))
    assert reward.encoder is None


def test_metadata_errors_name_the_prompt(tmp_path):
    reward = GenEval(str(owl_folder(tmp_path / "owl")), graded=True)
    assert reward.name == "geneval-graded"
    with pytest.raises(ValueError, match="prompt 'a ring': GenEval needs metadata"):
        reward.prepare(Item("a ring"))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got 3"):
        GenEval(str(tmp_path / "owl"), threshold=3)


def test_colours_are_named_by_the_box(tmp_path):
    """With an encoder that sees mean colours, the rules see the colours that were drawn."""

    class Mean(torch.nn.Module):
        rgb = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}  # noqa: RUF012

        def follow(self, device):
            pass

        def preprocess(self, part):
            return part.mean((2, 3), keepdim=True)

        def encode_pixels(self, pixels):
            return pixels[..., 0, 0]

        def texts(self, prompts):
            named = [next((c for c in COLOURS if c in p), "") for p in prompts]
            return torch.tensor([self.rgb.get(c, (-1.0, -1.0, -1.0)) for c in named])

    reward = GenEval(str(owl_folder(tmp_path / "owl")))
    reward.encoder, reward.detector = Mean(), Known()
    media = torch.zeros(2, 3, 40, 40)
    media[0, 0, 5:15, 5:15] = 1  # red
    media[1, 2, 20:30, 5:15] = 1  # blue
    item = Item("a red ring", {"include": [{"class": "ring", "count": 1, "color": "red"}]})
    assert reward(media, [reward.prepare(item)] * 2)["geneval"].tolist() == [1, 0]
