"""What all rewards share: checks at the door, devices, chunks of a bounded batch."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from steering.reward import Item, scoring_call

#: What `RewardModel.score` may return: ``(B,)``, or named columns of that shape.
Scored = Tensor | Mapping[str, Tensor]

#: Where weights are between calls: on the device, or on the CPU, which leaves the device's memory free.
Residency = Literal["resident", "scoring"]

#: arguments that say where or how precisely a reward computes, not what
_PLACE = ("device", "dtype", "residency", "cache_dir", "batch_limit")


def _told(value: Any) -> str:
    """An argument in words that do not change from process to process."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_told(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    if isinstance(value, str | int | float | bool | RewardModel) or value is None:
        return repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return type(value).__name__


class RewardModel:
    """Base of the rewards; follows `steering.reward.Reward`.

    A subclass declares its abilities as class attributes, computes what depends on the prompt alone
    in `featurize` and the scores in `score`; `rewards.testing.check_reward` proves what it declares.
    Its weights are PyTorch modules held as attributes.

    Attributes:
        name: key of its column and of its saved calibration.
        differentiable: gradients of the scores reach the media.
        needs_text: an empty prompt is refused.
        range: least and greatest score that can come out, or None if unbounded or unknown.
        batch_limit: most rows that `score` takes at once; larger batches are split. None: any.
        calls_per_row: models that look at each row.
        of_videos: media are videos ``(B, F, 3, H, W)``.

    Args:
        device: where the weights live; media are moved there and the scores back. None follows the
            media: the weights move, once, to the device of the first pictures.
        residency: "resident" leaves the weights there; "scoring" moves them there for each call and
            back to the CPU after it (not after one that may be differentiated); texts are encoded
            on the CPU then.

    Raises:
        ValueError: another residency.
    """

    name: str = "reward"
    differentiable: bool = False
    needs_text: bool = False
    range: tuple[float, float] | None = None
    batch_limit: int | None = None
    calls_per_row: int = 1
    embeds: bool = False
    of_videos: bool = False
    _made: tuple[tuple[Any, ...], dict[str, Any]]

    residency: Residency = "resident"

    def __init__(
        self,
        *,
        device: str | torch.device | None = None,
        residency: Residency = "resident",
    ) -> None:
        if residency not in get_args(Residency):
            raise ValueError(f"residency is {' or '.join(get_args(Residency))}, got {residency!r}")
        self.residency = residency
        self._pinned = None if device is None else torch.device(device)

    def featurize(self, item: Item) -> Any:
        """Features of one prompt; the base class keeps none."""
        return None

    def score(self, media: Tensor, features: Sequence[Any]) -> Scored:
        """Scores ``(B,)`` of media ``(B, 3, H, W)`` in [0, 1], or named columns of that shape."""
        raise NotImplementedError(f"{type(self).__name__} does not define score(media, features)")

    def looks_at(self, count: int) -> Collection[int] | None:
        """Of a video's frames the indices of those that it looks at; None: all. Others may be black."""
        return None

    def prepare(self, item: Item) -> Any:
        """Features of one prompt, computed once and handed back with every row of it.

        Raises:
            TypeError: the prompt is not text.
            ValueError: the prompt is empty and the reward needs one.
        """
        if not isinstance(item.prompt, str):
            kind = type(item.prompt).__name__
            raise TypeError(
                f"reward {self.name!r}: a prompt must be text, got {kind}: {item.prompt!r}"
            )
        if self.needs_text and not item.prompt.strip():
            raise ValueError(
                f"reward {self.name!r} compares pictures with their prompt, got {item.prompt!r}; "
                "give a prompt, or choose a reward that needs none"
            )
        if self.residency == "resident":
            self._settle(None)
        # Not inference_mode: its tensors may not take part in a graph later.
        with torch.no_grad():
            return self.featurize(item)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember how the reward was made, which tells it from others of its name."""
        made = super().__new__(cls)
        made._made = (args, kwargs)
        return made

    def __repr__(self) -> str:
        args, kwargs = self._made
        told = [_told(a) for a in args]
        told += [f"{k}={_told(v)}" for k, v in sorted(kwargs.items()) if k not in _PLACE]
        return f"{type(self).__name__}({', '.join(told)})"

    @property
    def key(self) -> str:
        """Name, and a digest of the arguments if there are any: what calibrations are saved under."""
        told = repr(self)
        if told == f"{type(self).__name__}()":
            return self.name
        return f"{self.name}-{hashlib.blake2b(told.encode(), digest_size=4).hexdigest()}"

    def to(self, device: str | torch.device) -> Self:
        """Move the weights, and keep them there; returns itself."""
        self._pinned = torch.device(device)
        self._settle(None)
        return self

    def __call__(self, media: Tensor, features: Sequence[Any]) -> Scored:
        """Score each row; see `steering.reward.Reward`.

        Args:
            media: ``(B, 3, H, W)``, floating, in [0, 1].
            features: what `prepare` returned for the prompt of each row, ``B`` of them.

        Returns:
            ``(B,)`` on the media's device, or named columns of that shape with the total under `name`.

        Raises:
            TypeError, ValueError: media or features of another form, or a score that is not one
                number a row.
        """
        self._check_media(media, features)
        home, target = media.device, self._pinned or media.device
        self._settle(home, patient=True)
        limit = self.batch_limit or max(len(media), 1)
        graph = self.differentiable and torch.is_grad_enabled()
        with torch.set_grad_enabled(graph), scoring_call() as memo:
            if target != home:
                source = media
                media = memo.get(target, source, lambda: source.to(target))
            parts = [
                self._columns(self.score(rows, features[i * limit : (i + 1) * limit]), len(rows))
                for i, rows in enumerate(media.split(limit))
            ]
            columns = {
                name: torch.cat([part[name] for part in parts]).to(home) for name in parts[0]
            }
        open_graph = any(column.requires_grad for column in columns.values())
        if self.residency == "scoring" and not open_graph:  # a backward pass needs them in place
            self._move(torch.device("cpu"))
        return columns if len(columns) > 1 else columns[self.name]

    def features_of(self, media: Tensor) -> Tensor:
        """Features ``(B, d)`` of pictures ``(B, 3, H, W)``: what `embed` says of its own encoder."""
        raise NotImplementedError(f"{type(self).__name__} does not define features_of(media)")

    def embed(self, media: Tensor) -> Tensor:
        """Features ``(B, d)`` of pictures, on their device.

        Within the scoring call that scored the same media the encoder's forward is not run again.
        """
        limit = self.batch_limit or max(len(media), 1)
        with torch.no_grad(), scoring_call() as memo:
            source, target = media, self._pinned or media.device
            if target != source.device:
                media = memo.get(target, source, lambda: source.to(target))
            return torch.cat([self.features_of(rows) for rows in media.split(limit)]).to(
                source.device
            )

    def _settle(self, follow: torch.device | None, *, patient: bool = False) -> None:
        """Move the weights to the pinned device, else to the one to follow."""
        target = self._pinned or follow
        if target is not None:
            self._move(target, patient=patient)

    def _move(self, target: torch.device, *, patient: bool = False) -> None:
        """Move the weights; patient ones are left out, which go where their input is by themselves."""
        for module in vars(self).values():
            if isinstance(module, nn.Module) and not (
                patient and getattr(module, "patient", False)
            ):
                held = next(module.parameters(), None)
                if held is not None and held.device != target:
                    module.to(target)

    def _check_media(self, media: Tensor, features: Sequence[Any]) -> None:
        if not isinstance(media, Tensor) or not media.is_floating_point():
            got = media.dtype if isinstance(media, Tensor) else type(media).__name__
            raise TypeError(f"reward {self.name!r} expects a float tensor of pictures, got {got}")
        if media.ndim != 4 or media.shape[1] != 3:
            raise ValueError(
                f"reward {self.name!r} expects pictures (B, 3, H, W), got {tuple(media.shape)}"
            )
        if len(features) != len(media):
            raise ValueError(
                f"reward {self.name!r} got {len(media)} pictures and {len(features)} features; "
                "give what prepare(item) returned, once for every row"
            )

    def _columns(self, scores: Scored, rows: int) -> dict[str, Tensor]:
        """Scores as named, checked columns."""
        columns = dict(scores) if isinstance(scores, Mapping) else {self.name: scores}
        if self.name not in columns:
            raise ValueError(
                f"reward {self.name!r} returned the columns {', '.join(columns)}; "
                "one of them must be named like the reward: the total"
            )
        return {column: self._column(column, values, rows) for column, values in columns.items()}

    def _column(self, column: str, values: Any, rows: int) -> Tensor:
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"reward {self.name!r} returned {type(values).__name__} for {column!r}; expected a "
                f"tensor or numbers, one a row: {error}"
            ) from error
        if tuple(values.shape) != (rows,):
            raise ValueError(
                f"reward {self.name!r} returned shape {tuple(values.shape)} for {column!r} of {rows} "
                f"pictures; expected ({rows},): one number a row, higher is better"
            )
        wide = values.dtype in (torch.float32, torch.float64)
        return values if wide else values.float()
