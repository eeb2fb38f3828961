"""Chains on Gaussian data: every transition is affine there, so laws are known without sampling."""

import math
from itertools import pairwise

import torch

from steering.mixtures import GaussianMixture, MixtureModel, flow_grid
from steering.moves import InnerSolve

DATA_MEAN, DATA_STD = 0.7, 0.5


def gaussian_model(grid=None, mean=DATA_MEAN, std=DATA_STD) -> MixtureModel:
    data = GaussianMixture([1.0], [[mean]], [[[std**2]]])
    return MixtureModel(data, grid or flow_grid(10))


def finish(step, model):
    """Run a generator of Denoise requests; its result and the number of rows denoised."""
    rows, answer = 0, None
    while True:
        try:
            request = step.send(answer)
        except StopIteration as stop:
            return stop.value, rows
        n = len(request.x_t)
        rows, answer = rows + n, model.denoise(request.x_t, [request.time] * n, [None] * n)


def affine(transition, t, s, model):
    """``(slope, offset, std)`` of ``x_s = slope x_t + offset + std z``, by probing."""
    x_t, z = torch.tensor([[[0.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]], dtype=torch.float64)
    posterior = model.denoise(x_t, [t] * 3, [None] * 3)
    if isinstance(transition, InnerSolve):
        x_s, _ = finish(transition.solve(model.at, x_t, posterior, t, s, lambda: z), model)
    else:
        x_s = transition(posterior, t, s).sample(z)
    none, state, noise = x_s.flatten().tolist()
    return state - none, none, noise - none


def final(transition, grid, model):
    """Mean and std at the end of a grid, from N(0, 1) at its start."""
    mean, var = 0.0, 1.0
    for t, s in pairwise(grid):
        slope, offset, std = affine(transition, t, s, model)
        mean, var = slope * mean + offset, slope**2 * var + std**2
    return mean, math.sqrt(var)
