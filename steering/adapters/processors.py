"""Attention processors of a pipeline's networks: some pipelines exchange them while they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

#: Processors of each network by place.
Processors = dict[str, dict[str, Any]]


def processors_of(networks: Mapping[str, nn.Module]) -> Processors:
    """The processors of each network that has any."""
    return {
        name: dict(found)
        for name, network in networks.items()
        if isinstance(found := getattr(network, "attn_processors", None), dict)
    }


def put_back(networks: Mapping[str, nn.Module], before: Processors) -> Processors:
    """Set these processors where others are; returns those others."""
    others: Processors = {}
    for name, own in processors_of(networks).items():
        wanted = before.get(name, {})
        if own.keys() == wanted.keys() and any(own[k] is not wanted[k] for k in wanted):
            others[name] = own
            network: Any = networks[name]
            network.set_attn_processor(dict(wanted))  # it empties the mapping that it is given
    return others
