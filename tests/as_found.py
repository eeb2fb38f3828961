"""What of a user's pipeline must be as it was, whatever was done with it."""

from __future__ import annotations

import copy
from typing import Any

import torch

#: What a pipeline whose parts are offloaded makes anew at the end of each call of its own.
MADE_ANEW = {"_all_hooks", "_offload_device"}


def state_of(pipe: Any) -> dict[str, Any]:
    """Everything of a pipeline that a careless adapter might change."""
    modules = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    inner = {f"{n}.{k}": part for n, m in modules.items() for k, part in m.named_modules()}
    return {
        "parts": {n: id(value) for n, value in pipe.__dict__.items() if n not in MADE_ANEW},
        "offloaded to": str(pipe.__dict__.get("_offload_device")),
        "config": copy.deepcopy(dict(pipe.config)),
        "scheduler": {k: str(v) for k, v in pipe.scheduler.__dict__.items()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in inner.items()},
        "offload": {  # kinds, since a pipeline's own call hooks itself anew at its end
            n: type(m.__dict__.get("_hf_hook")).__name__ for n, m in inner.items()
        },
        "forward": {n: "forward" in m.__dict__ for n, m in inner.items()},
        "processors": {n: id(getattr(m, "processor", None)) for n, m in inner.items()},
        "kind": {n: (p.dtype, p.device) for n, m in modules.items() for p in m.parameters()},
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "training": {n: m.training for n, m in inner.items()},
    }
