"""Checks compute without TensorFloat-32, and the user's choice comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import backends

from steering import shapes
from steering.adapters import learn as learning
from steering.adapters.checks import exact_float32
from steering.adapters.doors import enter


def _state() -> tuple[Any, ...]:
    cuda, cudnn = backends.cuda.matmul, backends.cudnn
    raw: Any = (cuda, cudnn.conv, backends)
    return tuple(operation.fp32_precision for operation in raw)


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    kept = backends.fp32_precision  # type: ignore[attr-defined]
    yield
    backends.fp32_precision = kept  # type: ignore[attr-defined]
    backends.cuda.matmul.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True


def _default() -> None: ...


def _older() -> None:
    torch.set_float32_matmul_precision("high")


def _newer() -> None:
    backends.fp32_precision = "tf32"  # type: ignore[attr-defined]


def _one_operation() -> None:
    backends.cuda.matmul.fp32_precision = "tf32"  # type: ignore[attr-defined]


@pytest.mark.parametrize("choose", [_default, _older, _newer, _one_operation])
def test_the_choice_comes_back_after_an_error(choose: Any) -> None:
    choose()
    before = _state()
    inside = []

    def fails() -> None:
        with exact_float32():
            inside.append(_state()[:2])
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert inside == [("ieee", "ieee")]
    assert _state() == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["shapes-sd", "shapes-flux"])
def test_replay_is_open_with_tensor_cores(name: str) -> None:
    torch.set_float32_matmul_precision("high")
    pipe = DiffusionPipeline.from_pretrained(shapes.folder(name)).to("cuda")
    assert enter(pipe, call={"num_inference_steps": 4}, door="replay").door == "replay"
    assert torch.get_float32_matmul_precision() == "high"
    assert backends.cudnn.allow_tf32


def test_a_pass_that_negative_prompts_bring_is_learned_exactly(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"num_inference_steps": 3, "height": 16, "width": 16, "true_cfg_scale": 3.0}
    entered = enter(tiny.flux(), call=call, door="replay")
    torch.set_float32_matmul_precision("high")
    seen = []
    checked = learning._check_alone
    monkeypatch.setattr(
        learning, "_check_alone", lambda *given: (seen.append(_state()[0]), checked(*given))
    )
    entered.encode(["a red circle"], negative_prompts="")
    assert seen == ["ieee"]
    assert torch.get_float32_matmul_precision() == "high"
