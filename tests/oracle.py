"""Integrated Gradients as the paper writes it: one step at a time, one loop, nothing shared with igfast."""

import numpy as np
import torch


def rule(method: str, n: int):
    """Nodes and weights in float64, from their definitions."""
    if method == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return [0.5 + 0.5 * node for node in nodes], [0.5 * weight for weight in weights]
    if method == "riemann_left":
        return [k / n for k in range(n)], [1 / n] * n
    if method == "riemann_right":
        return [(k + 1) / n for k in range(n)], [1 / n] * n
    if method == "riemann_middle":
        return [(k + 0.5) / n for k in range(n)], [1 / n] * n
    # Captum's: n nodes from 0 to 1, but spaced weights of 1 / n
    spacing = {"riemann_trapezoid": 1 / n, "trapezoid": 1 / (n - 1)}[method]
    nodes = [k / (n - 1) for k in range(n)]
    return nodes, [spacing / 2, *[spacing] * (n - 2), spacing / 2]


def naive_integrated_gradients(forward, inputs, baselines, n_steps, method="gausslegendre", multiply_by_inputs=True):
    """Attributions of `forward(*inputs)`, which returns one number per example, (batch,).

    inputs and baselines are tuples of tensors of one shape each.
    """
    total = [torch.zeros_like(x) for x in inputs]
    for alpha, weight in zip(*rule(method, n_steps), strict=True):
        points = [(b + alpha * (x - b)).detach().requires_grad_() for x, b in zip(inputs, baselines, strict=True)]
        grads = torch.autograd.grad(forward(*points).sum(), points)
        total = [t + weight * g for t, g in zip(total, grads, strict=True)]
    if multiply_by_inputs:
        total = [t * (x - b) for t, x, b in zip(total, inputs, baselines, strict=True)]
    return tuple(t.detach() for t in total)


def relative_difference(got, wanted) -> float:
    """The norm of the difference over the norm of what is wanted; tuples count as one long vector."""
    got = got if isinstance(got, tuple) else (got,)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert [g.shape for g in got] == [w.shape for w in wanted]
    wide = torch.complex128 if any(w.is_complex() for w in wanted) else torch.float64
    flat_got = torch.cat([g.reshape(-1).to(wide) for g in got])
    flat_wanted = torch.cat([w.reshape(-1).to(wide) for w in wanted])
    norm = flat_wanted.norm()
    return float((flat_got - flat_wanted).norm() / norm) if norm > 0 else float(flat_got.norm())
