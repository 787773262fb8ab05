"""Robbins' formula: Tweedie's for counts, where neighbours take the place of derivatives [Robbins 1956].

    Poisson, x | lambda:      E[lambda | x]         = (x + 1) m(x + 1) / m(x)
    binomial, x | n and p:    E[p / (1 - p) | x]    = (x + 1) / (n - x) m(x + 1) / m(x)

for any law of lambda or p, where m(x) is the probability of x alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ulam_kernels.arguments import described, real
from ulam_kernels.tracing import outside_graphs
from ulam_kernels.validation import check_data, check_real

from ..arguments import whole_number
from ..evaluation import in_eval_mode, modules_in
from ..gradients import check_no_gradient, without_graph

LARGEST_COUNT = 2**53  # up to which float64 has every whole number

Marginal = Callable[[torch.Tensor], torch.Tensor] | torch.Tensor


@outside_graphs
def robbins(marginal: Marginal, x: torch.Tensor, *, trials: int | None = None, smoothing: float = 0.0) -> torch.Tensor:
    """E[lambda | x] of Poisson counts, or E[p / (1 - p) | x] of ``trials`` Bernoulli draws, like x in float64.
    [Robbins 1956.]

    From counts N of how often every value was seen, as ``torch.bincount(sample)`` has them, m(x + 1) / m(x) is
    (N[x + 1] + c) / (N[x] + c) with c = ``smoothing``: Robbins' own estimate at 0, add-one at 1. It is noisy where few
    were seen, 0 at the largest value without smoothing, and drawn to x + 1 (binomial: (x + 1) / (n - x)) with it.

    Args:
        marginal: log m, a density's or a network in eval mode, as a function of x (whole numbers in float64, or in the
            dtype of x if that is a float): to the shape of x where elements are independent and of one law, or for x
            ``[B, *shape]`` to ``[B]``, the joint law, which takes a call an element. Or counts N, ``[values]``.
        x: whole numbers from 0 on, of any shape; below ``trials``.
        trials: n of the binomial; None for Poisson.
        smoothing: c, for counts only.

    Raises:
        TypeError, ValueError: an invalid argument; an x that is not whole, is negative, or has m(x) = 0.
        RuntimeError: a tensor requires grad while gradients are recorded: the result has none.
    """
    x = _check_counts("x", x)
    if not x.dim():
        raise ValueError("x: got a tensor without dimensions, expected [B, *shape]")
    c = real(smoothing, "smoothing")
    if c < 0:
        raise ValueError(f"smoothing: got {c:g}, expected at least 0")
    n = None if trials is None else whole_number("trials", trials)
    if n is not None and not 1 <= n <= LARGEST_COUNT:
        raise ValueError(f"trials: got {n}, expected 1 to 2^53")
    wide = x.double()
    if n is not None and (wide >= n).any():
        raise ValueError(f"x: got {wide.max():g} of {n} trials, expected at most {n - 1}: it needs m(x + 1)")
    if isinstance(marginal, torch.Tensor):
        counts = _check_counts("marginal", marginal).double()
        if n is not None and counts.dim() == 1 and counts[n + 1 :].any():
            raise ValueError(f"marginal: got counts of values above {n}, expected none: there are {n} trials")
        ratio = _ratio_of_counts(counts, x.long(), c)
    elif not callable(marginal):
        raise TypeError(f"marginal: got {described(marginal)}, expected a function of x to log m(x), or counts")
    elif c:
        raise ValueError(f"smoothing: got {c:g} with a function, expected 0, or counts as marginal")
    else:
        at = x if x.is_floating_point() else wide
        if (same := (at + 1).double() - wide != 1).any():
            raise ValueError(f"x: got {wide[same][0]:g} in {at.dtype}, expected x + 1 to be a number of it too")
        ratio = _ratio_of_function(marginal, at)
    return (wide + 1) * ratio if n is None else (wide + 1) / (n - wide) * ratio


def _ratio_of_counts(counts: torch.Tensor, x: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(N[x + 1] + c) / (N[x] + c), N = 0 beyond the counts."""
    if counts.dim() != 1:
        raise ValueError(f"marginal: got counts of shape {list(counts.shape)}, expected [values]")
    padded = torch.cat([counts, counts.new_zeros(1)]) + smoothing
    last = len(counts)
    here, above = padded[x.clamp(max=last)], padded[(x + 1).clamp(max=last)]
    if not here.all():
        raise ValueError(f"marginal: got no count at x = {x[here == 0][0]}, expected one, or smoothing above 0")
    return above / here


def _ratio_of_function(log_marginal: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """m(x + 1) / m(x) of every element; of a joint law with 1 added to that element alone."""
    with in_eval_mode(modules_in(log_marginal)):
        here = without_graph(lambda at: _check_log(log_marginal(at), x.shape), x)
        if (wrong := ~here.isfinite()).any():
            where = x[wrong] if here.shape == x.shape else x[wrong][0]
            raise ValueError(
                f"marginal: got log m(x) = {here[wrong][0]:g} at x = {where.flatten()[:3].tolist()}, expected m(x) > 0"
            )
        if here.shape == x.shape:
            above = without_graph(lambda at: _check_log(log_marginal(at), x.shape), x + 1)
            return (above.double() - here.double()).exp()
        out = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        for i in range(x[0].numel()):
            raised = x.clone()
            raised.reshape(len(x), -1)[:, i] += 1
            above = without_graph(lambda at: _check_log(log_marginal(at), x.shape), raised)
            out.view(len(x), -1)[:, i] = (above.double() - here.double()).exp()
        return out


def _check_log(values: object, shape: torch.Size) -> torch.Tensor:
    """Raises TypeError or ValueError unless log m has one value an element, or one an example."""
    if not isinstance(values, torch.Tensor) or values.shape not in (shape, shape[:1]):
        got = f"shape {list(values.shape)}" if isinstance(values, torch.Tensor) else described(values)
        raise ValueError(f"marginal: got {got}, expected log m of shape {list(shape)} like x, or [{shape[0]}]")
    check_real(values, "marginal")
    if (wrong := values.isnan() | (values == math.inf)).any():
        raise ValueError(f"marginal: got {values[wrong][0]:g}, expected log m, which is finite, or -inf for m = 0")
    return values


def _check_counts(name: str, x: object) -> torch.Tensor:
    """Raises TypeError or ValueError unless x is a tensor of whole numbers from 0 on."""
    check_data(x, name)  # type: ignore[arg-type]
    assert isinstance(x, torch.Tensor)
    check_no_gradient("tweedie.robbins", None, **{name: x})
    check_real(x, name)
    x = x.detach().resolve_neg()
    if not x.numel():
        raise ValueError(f"{name}: got shape {list(x.shape)}, expected one that is not empty")
    wide = x.double()  # in which 2^53 is a number, unlike in narrow integers
    wrong = ~((wide >= 0) & (wide <= LARGEST_COUNT) & (wide % 1 == 0))
    if wrong.any():
        raise ValueError(f"{name}: got {x[wrong][0]:g}, expected whole numbers from 0 to 2^53")
    return x
