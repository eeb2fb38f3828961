"""Distances between sets of features, with what their bootstrap needs: pure functions of tensors.

Pictures are resampled as counts ``(R, n)``: how often each is in each of ``R`` resamples. Where
torchmetrics has a metric its value is taken from there; here is what it lacks, and forms that are
fast enough to be computed for every resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]

_BLOCK = 4096  # rows of a kernel or distance matrix held at once
_SIGMA, _SCALE = 10.0, 1000.0  # CMMD's bandwidth and unit


def counts(n: int, resamples: int) -> Tensor:
    """How often each of ``n`` pictures is drawn, ``(R, n)`` float64; the same for equal arguments."""
    random = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(n, (n,), generator=random).bincount(minlength=n) for _ in range(resamples)
    ]
    return torch.stack(rows).double()


def mmd(x: Tensor, y: Tensor, kernel: Kernel, counts: Tensor | None = None) -> Tensor:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13).

    A picture that was drawn twice counts as two pictures, so resamples are biased upwards alike.

    Args:
        x: features ``(n, D)``, ``n`` at least 2.
        y: features ``(m, D)``, ``m`` at least 2.
        kernel: of ``(a, D)`` and ``(b, D)``, gives ``(a, b)``.
        counts: resamples of ``x``, ``(R, n)``; None takes each picture once.

    Returns:
        ``(R,)``, or ``(1,)`` without counts.
    """
    x, y = x.double(), y.double()
    weights = torch.ones(1, len(x)).double() if counts is None else counts
    size, m = weights.sum(1), len(y)
    own, cross, other = torch.zeros_like(size), torch.zeros_like(size), 0.0
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        matrix = kernel(x[rows], x)
        own += ((weights[:, rows] @ matrix) * weights).sum(1)
        own -= weights[:, rows] @ matrix.diagonal(start)
        cross += weights[:, rows] @ kernel(x[rows], y).sum(1)
    for start in range(0, m, _BLOCK):
        matrix = kernel(y[start : start + _BLOCK], y)
        other += float(matrix.sum() - matrix.diagonal(start).sum())
    return own / (size * (size - 1)) + other / (m * (m - 1)) - 2 * cross / (size * m)


def cmmd(x: Tensor, y: Tensor, counts: Tensor | None = None) -> Tensor:
    """CMMD of CLIP embeddings (Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603).

    A Gaussian kernel of bandwidth 10 on embeddings of length 1, times 1000. The unbiased estimator, as
    the paper writes it; its published code keeps the diagonal, which adds a term that falls with 1 / n.

    Args:
        x: embeddings ``(n, D)`` of generated pictures, of any length.
        y: embeddings ``(m, D)`` of the reference.
        counts: resamples of ``x``, ``(R, n)``.

    Returns:
        As `mmd`.
    """

    def gaussian(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp((a @ b.T - 1) / _SIGMA**2)  # |a - b|^2 = 2 - 2 a b

    unit = torch.nn.functional.normalize
    return _SCALE * mmd(unit(x.double(), dim=1), unit(y.double(), dim=1), gaussian, counts)


def covered(points: Tensor, centres: Tensor, *, neighbours: int = 3) -> Tensor:
    """Which points lie on the manifold of the centres.

    That is in a ball around a centre that reaches to its k-th nearest other centre. The mean is
    improved precision with generated points and real centres, and improved recall the other way round
    (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991).

    Args:
        points: features ``(n, D)``.
        centres: features ``(m, D)``, ``m`` greater than ``neighbours``.
        neighbours: k.

    Returns:
        ``(n,)`` bool.
    """
    points, centres = points.double(), centres.double()
    # The nearest centre is itself.
    radii = torch.cat(
        [torch.cdist(rows, centres).kthvalue(neighbours + 1).values for rows in _blocks(centres)]
    )
    return torch.cat([(torch.cdist(rows, centres) <= radii).any(1) for rows in _blocks(points)])


def frechet(x: Tensor, mean: Tensor, covariance: Tensor, counts: Tensor) -> Tensor:
    """Fréchet distance of resamples to a Gaussian; the value itself is torchmetrics'.

    The trace of the root of a product needs the eigenvalues of a symmetric matrix no larger than the
    number of pictures: 0.16 s of a core for 1000 pictures and 2048 features, torchmetrics' 35 s.

    Args:
        x: features ``(n, D)``.
        mean: ``(D,)`` of the reference.
        covariance: ``(D, D)`` of the reference.
        counts: resamples of ``x``, ``(R, n)``.

    Returns:
        ``(R,)``.
    """
    x = x.double()
    values, vectors = torch.linalg.eigh(covariance)
    turned = x @ (vectors * values.clamp(min=0).sqrt())
    found = []
    for row in counts:
        own = (row @ x) / row.sum()
        spread = (x - own) * (row / (row.sum() - 1)).sqrt()[:, None]
        half = (turned - (row @ turned) / row.sum()) * (row / (row.sum() - 1)).sqrt()[:, None]
        product = half @ half.T if len(x) < x.shape[1] else half.T @ half
        overlap = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
        found.append(
            (own - mean).square().sum() + spread.square().sum() + covariance.trace() - 2 * overlap
        )
    return torch.stack(found)


def inception_scores(logits: Tensor, counts: Tensor) -> Tensor:
    """Inception score of resamples, each in one split; the value itself is torchmetrics'.

    Args:
        logits: ``(n, C)``.
        counts: resamples, ``(R, n)``.

    Returns:
        ``(R,)``.
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    share = counts / counts.sum(1, keepdim=True)
    marginal = share @ p
    entropy = torch.special.entr(marginal).sum(1)
    return (share @ (p * log_p).sum(1) + entropy).exp()


def _blocks(rows: Tensor) -> Iterator[Tensor]:
    yield from rows.split(_BLOCK)
