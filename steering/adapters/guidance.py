"""How a pipeline joins the outputs of its network passes into one prediction.

Named forms are tried with the pipeline's own numbers; a linear one without a name is found by least
squares. Outputs are listed in the order of the calls and of the blocks in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.adapters.checks import Refusal, relative, tolerance

#: Weights of (first, second) output, from the guidance scale g; c conditional, u unconditional.
_LINEAR: dict[str, Callable[[float], tuple[float, float]]] = {
    "u + g (c - u), outputs (u, c)": lambda g: (1 - g, g),
    "u + g (c - u), outputs (c, u)": lambda g: (g, 1 - g),
    "c + g (c - u), outputs (c, u)": lambda g: (1 + g, -g),
    "-(c + g (c - u)), outputs (c, u)": lambda g: (-1 - g, g),
    "-(u + g (c - u)), outputs (u, c)": lambda g: (g - 1, -g),
}
_FIT_STEPS = 4  # steps whose random outputs determine the least-squares weights


@dataclass(frozen=True)
class Guidance:
    """The learned form.

    Attributes:
        name: the form, for messages.
        weights: weight of each output.
        finish: what follows the weighted sum, given it and the outputs; None for nothing.
    """

    name: str
    weights: tuple[float, ...]
    finish: Callable[[Tensor, Sequence[Tensor]], Tensor] | None = None

    def __call__(self, outputs: Sequence[Tensor]) -> Tensor:
        """Prediction ``(n, *shape)``, float32, from one output a pass."""
        total = outputs[0].float()
        if self.weights[0] != 1.0:
            total = total * self.weights[0]
        for weight, output in zip(self.weights[1:], outputs[1:], strict=True):
            total = torch.add(total, output.float(), alpha=weight)
        return total if self.finish is None else self.finish(total, outputs)


def fit_guidance(
    outputs: Sequence[Sequence[Tensor]], targets: Sequence[Tensor], numbers: Iterable[float]
) -> Guidance:
    """Find the form that explains every recorded step.

    Args:
        outputs: outputs of each step, the first step real, the others random.
        targets: what the pipeline handed to its scheduler at each step.
        numbers: values of the pipeline's guidance arguments.

    Raises:
        Refusal: no known form explains all steps.
    """
    scales = sorted({float(n) for n in numbers})
    weights = _least_squares(outputs[1 : 1 + _FIT_STEPS], targets[1 : 1 + _FIT_STEPS])
    dtype = targets[0].dtype
    bound = tolerance(dtype) * (0.1 if dtype == torch.float32 else 1.0)
    for form in [*_named(len(outputs[0]), scales), Guidance("least squares", weights)]:
        if all(relative(form(o), y) <= bound for o, y in zip(outputs, targets, strict=True)):
            return form
    raise Refusal(
        "the network's outputs are joined in an unknown way, or in one that changes from step to "
        f"step (best linear weights {[round(w, 4) for w in weights]}); switch off guidance options "
        "that depend on the step, such as guidance rescaling, skipped layers or intervals"
    )


def _least_squares(
    outputs: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]
) -> tuple[float, ...]:
    columns = [torch.cat([o[i].flatten() for o in outputs]) for i in range(len(outputs[0]))]
    matrix = torch.stack(columns, 1).cpu().double()
    wanted = torch.cat([y.flatten() for y in targets]).cpu().double()
    solution = torch.linalg.solve(matrix.T @ matrix, matrix.T @ wanted)
    return tuple(solution.tolist())


def _named(count: int, scales: Sequence[float]) -> Iterable[Guidance]:
    if count == 1:
        yield Guidance("the output itself", (1.0,))
        yield Guidance("the negative output", (-1.0,))
    if count != 2:
        return
    for name, weigh in _LINEAR.items():
        for g in scales:
            yield Guidance(f"{name}, g = {g:g}", weigh(g))
    for g in scales:
        for conditional, weights in ((1, (1 - g, g)), (0, (g, 1 - g))):
            yield Guidance(f"norm of c, g = {g:g}", weights, _match_norm(conditional))
            for share in (s for s in scales if 0 < s <= 1):
                finish = _match_std(conditional, share)
                yield Guidance(f"rescaled by {share:g}, g = {g:g}", weights, finish)
        for most in (s for s in scales if s > 0):
            yield Guidance(f"norm of c at most, g = {g:g}", (1 + g, -g), _limit_norm(most))


def _match_std(conditional: int, share: float) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """Guidance rescaling: a share of the sum is brought to the conditional output's spread."""

    def finish(total: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        dims = list(range(1, total.ndim))
        wanted = outputs[conditional].float().std(dims, keepdim=True)
        return total * (share * wanted / total.std(dims, keepdim=True) + 1 - share)

    return finish


def _match_norm(conditional: int) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """Each token keeps the norm of the conditional output (QwenImage)."""

    def finish(total: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        wanted = outputs[conditional].float().norm(dim=-1, keepdim=True)
        return total * (wanted / total.norm(dim=-1, keepdim=True))

    return finish


def _limit_norm(most: float) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """Rows keep at most so many times the norm of the conditional output, negated (Z-Image)."""

    def finish(total: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        dims = list(range(1, total.ndim))
        limit = most * torch.linalg.vector_norm(outputs[0].float(), dim=dims, keepdim=True)
        norm = torch.linalg.vector_norm(total, dim=dims, keepdim=True)
        return -total * (limit / norm).clamp(max=1.0)

    return finish
