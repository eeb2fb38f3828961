"""Files that are either the old one or the whole new one, whenever the process dies."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | Callable[[Any], None]) -> None:
    """Write beside and rename, so that a reader never sees half a file.

    Args:
        path: the file; its folder is created.
        content: text (UTF-8), or a function that writes to a binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                content(file)
        scratch.chmod(0o666 & ~_umask())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def safe_name(text: str) -> str:
    """A text as a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def _umask() -> int:
    """The process's mask, which mkstemp's private files ignore."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
