"""What a run leaves behind: pictures with metadata and JSON traces, written atomically, resumable."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from steering import __version__
from steering.command.options import UsageError
from steering.comparison.sheets import sheet
from steering.files import write_atomically
from steering.live import JobResult
from steering.report import returned_scores
from steering.reward import Item


@dataclass(frozen=True)
class OutputFolder:
    """A folder of results of one set of settings.

    Attributes:
        path: the folder.
        settings: everything that decides the pictures; part of every record.
        looks: where thumbnails of what was scored on the way go; apart from the pictures.
    """

    path: Path
    settings: Mapping[str, Any]
    looks: Path | None = None

    def prepare(self, *, overwrite: bool = False) -> None:
        """Create the folder, and refuse one that cannot be written or holds other settings.

        Raises:
            UsageError: names the folder and the fix.
        """
        check_writable(self.path)
        run = self.path / "run.json"
        if run.is_file() and not overwrite:
            before = json.loads(run.read_text())["settings"]
            different = [k for k in self.settings if before.get(k) != _plain(self.settings[k])]
            if different:
                raise UsageError(
                    f"{str(self.path)!r} holds results of other settings ({', '.join(different)} "
                    "differ); choose another --output, or pass --overwrite true to replace them"
                )
        if run.is_file() and overwrite:
            self._clear()
        write_atomically(
            run, json.dumps({"version": __version__, "settings": _plain(self.settings)}, indent=1)
        )

    def _clear(self) -> None:
        """Remove what earlier runs wrote, and nothing else."""
        for path in self.path.glob("*.json"):
            record = json.loads(path.read_text())
            if isinstance(record, dict) and {"prompt", "files", "trace"} <= set(record):
                looks = record.get("looks")
                for file in [*record["files"], *([looks["file"]] if looks else [])]:
                    (self.path / file).unlink(missing_ok=True)
                path.unlink()
        shutil.rmtree(self.path / "calibration", ignore_errors=True)

    def note(self, **fields: Any) -> None:
        """Add what is only known later to the run's record."""
        run = self.path / "run.json"
        known = json.loads(run.read_text())
        write_atomically(
            run, json.dumps(known | {k: _plain(v) for k, v in fields.items()}, indent=1)
        )

    def name(self, prompt: str, key: str) -> str:
        """File name of a search: readable, and unique by its key."""
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-")
        return f"{words or 'prompt'}-{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"

    def is_done(self, item: Item, key: str) -> bool:
        """Whether this search was finished earlier.

        Raises:
            UsageError: it was, with other metadata of the prompt.
        """
        path = self.path / f"{self.name(item.prompt, key)}.json"
        if not path.is_file():
            return False
        if item.metadata:
            before = json.loads(path.read_text(encoding="utf-8")).get("metadata")
            if before != _plain(dict(item.metadata)):
                raise UsageError(
                    f"{str(path)!r} was made with other metadata of {item.prompt!r}, {before}; choose "
                    "another --output, or pass --overwrite true"
                )
        return True

    def write(self, result: JobResult, extra: Mapping[str, Any]) -> Path:
        """Write pictures, then the record that marks them done; returns the record's path.

        Args:
            result: a finished search.
            extra: further fields of the record.
        """
        job = result.job
        name = self.name(job.item.prompt, job.key)
        scores = returned_scores(result)
        files = []
        for place, (media, score) in enumerate(zip(result.media, scores, strict=True)):
            if not isinstance(media, Image):
                raise UsageError(
                    f"the pipeline made {type(media).__name__}, not a PIL picture; steer generate "
                    "writes pictures only: use SteeredPipeline in Python for other media"
                )
            file = f"{name}.png" if place == 0 else f"{name}-{place}.png"
            info = PngInfo()
            for tag, text in (
                ("prompt", job.item.prompt),
                ("seed", str(job.seed)),
                ("sampler", repr(job.search)),
                ("scores", json.dumps(score)),
                ("version", __version__),
                ("metadata", json.dumps(dict(job.item.metadata)) if job.item.metadata else ""),
            ):
                if text:
                    info.add_itxt(tag, text)
            write_atomically(self.path / file, partial(media.save, format="PNG", pnginfo=info))
            files.append(file)
        outcome = result.outcome
        if self.looks is not None and result.trace.snapshots:
            extra = {**extra, "looks": self._write_looks(name, result)}
        record = {
            "prompt": job.item.prompt,
            "metadata": dict(job.item.metadata),
            "key": job.key,
            "seed": job.seed,
            "files": files,
            "scores": scores,
            "complete": outcome is not None and outcome.complete,
            "log_z": outcome.log_z if outcome is not None else None,
            "log_weights": outcome.log_w.tolist() if outcome is not None else [],
            "usage": result.usage.to_dict(),
            "trace": result.trace.records,
            "version": __version__,
            **extra,
        }
        path = self.path / f"{name}.json"
        write_atomically(path, json.dumps(record, indent=1))
        return path

    def _write_looks(self, name: str, result: JobResult) -> dict[str, Any]:
        """Write the sheet of thumbnails; returns what the record says of it."""
        assert self.looks is not None
        picture, looks, columns = sheet(result.trace.snapshots)
        path = self.looks / f"{name}.webp"
        write_atomically(path, partial(picture.save, format="WEBP", quality=88))
        file = os.path.relpath(path, self.path)
        return {"file": file, "columns": columns, "requests": [asdict(look) for look in looks]}


def check_writable(folder: Path) -> None:
    """Create a folder and refuse one that cannot be written.

    Raises:
        UsageError: names the folder and the fix.
    """
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to the output folder {str(folder)!r}: {error.strerror}; choose another "
            "with --output"
        ) from error


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))
