import base64
import io
import re
from xml.etree import ElementTree

import pytest
from helpers import jobs_for, mixture, run
from PIL import Image

from samplers import DTS, DTSStar
from samplers.tree_page import tree_page


def grown(search):
    problem, model = mixture(steps=10)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
    return result.outcome


@pytest.mark.parametrize("kind", [DTS, DTSStar])
def test_a_page_shows_every_node_and_the_path_to_the_best_leaf(kind, tmp_path):
    outcome = grown(kind(rollouts=12, in_flight=3))
    state = outcome.extra["state"]

    def picture(x_0):
        return [Image.new("RGB", (4, 4), (int(abs(x[0])) * 20, 0, 0)) for x in x_0]

    tree_page(state, tmp_path / "tree.html", picture=picture, title="<a & b>")
    text = (tmp_path / "tree.html").read_text()
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.S)[0])
    tags = [e.tag for e in svg.iter()]
    assert tags.count("rect") == len(state.tree)
    assert tags.count("line") == len(state.tree) - 1
    images = [e for e in svg.iter() if e.tag == "image"]
    assert len(images) == len(state.tree) - 1
    data = images[0].get("href").removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (48, 48)
    chosen = [e for e in svg.iter() if e.tag == "line" and e.get("class") == "chosen"]
    assert len(chosen) == state.tree.depths + 1
    assert "&lt;a &amp; b&gt;" in text
    assert f"{float(outcome.scores.total.max()):.4g}" in text
    assert "http" not in text


def test_a_page_needs_a_tree(tmp_path):
    state = grown(DTS(rollouts=2)).extra["state"]
    with pytest.raises(ValueError, match="at least 8 pixels"):
        tree_page(state, tmp_path / "tree.html", size=2)
