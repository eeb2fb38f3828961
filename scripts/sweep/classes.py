"""The test classes of a checkout of diffusers that know how to make a tiny pipeline."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

_MAKER = "get_dummy_components"


def found_in(checkout: Path) -> list[str]:
    """Names ``module:class`` of all classes below ``tests/pipelines`` that make components themselves.

    Sources are read, not run; a class that only inherits its components is not counted again.

    Raises:
        ValueError: the folder is no checkout of diffusers.
    """
    root = checkout / "tests" / "pipelines"
    if not root.is_dir():
        raise ValueError(f"{checkout} has no tests/pipelines; give a checkout of diffusers")
    names = []
    for path in sorted(root.rglob("test_*.py")):
        module = ".".join(path.relative_to(checkout).with_suffix("").parts)
        names += [f"{module}:{name}" for name in _makers(path)]
    return names


def load(checkout: Path, name: str) -> Any:
    """An instance of a test class; its modules are imported from the checkout."""
    sys.path.insert(0, str(checkout))
    module, kind = name.split(":")
    return getattr(importlib.import_module(module), kind)()


def _makers(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, ast.FunctionDef) and part.name == _MAKER for part in node.body)
        and _of_a_pipeline(node)
    ]


def _of_a_pipeline(node: ast.ClassDef) -> bool:
    """Whether it is a test of a pipeline, not a part of some or a pattern for them."""
    named = any(
        isinstance(target, ast.Name) and target.id == "pipeline_class"
        for part in node.body
        if isinstance(part, ast.Assign)
        for target in part.targets
    )
    maker = next(p for p in node.body if isinstance(p, ast.FunctionDef) and p.name == _MAKER)
    pattern = any(isinstance(part, ast.Raise) for part in maker.body)
    return (named or bool(node.bases)) and not pattern
