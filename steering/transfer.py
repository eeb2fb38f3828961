"""From the host to the device, without waiting for it where that can be."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on ``device``; one of the host is sent there while the host goes on.

    A plain copy would wait until the device has done all that it was told before. For CUDA it goes by
    page-locked memory, which torch reuses only when the copy is done; on Apple's devices such a copy
    is not safe, so there it waits.
    """
    device = torch.device(device)
    if x.device.type != "cpu" or device.type in ("cpu", "mps"):
        return x.to(device)
    if device.type == "cuda" and x.numel():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def buffer_for(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Float32 memory of the host from which :func:`to_device` needs no further copy."""
    return torch.empty(shape, dtype=torch.float32, pin_memory=device.type == "cuda")
