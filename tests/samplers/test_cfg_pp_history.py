"""CFG++ with a history against ComfyUI's loop restated: every coefficient of the last state."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad

import k_loops as loops
from ulam import schedules
from ulam.samplers.cfg_pp_history import CFGPPHistory

SCHEDULES = {"ve": schedules.ve(0.01, 50), "linear": schedules.vp_linear(), "flow": schedules.flow(3.0)}
CASES = [("ve", "x0"), ("linear", "eps"), ("linear", "v"), ("flow", "flow")]
LEVELS = (14.0, 9.0, 5.5, 4.0, 2.1, 1.0, 0.6, 0.25, 0.1)


def loop(
    y: loops.Array, levels: loops.Array, model: loops.Model, noise: loops.Noise, *, a: float, b: float, line: bool
) -> loops.Array:
    """The weights of Adams-Bashforth by quadrature of the line through both derivatives."""
    derivatives: list[loops.Array] = []
    data: list[loops.Array] = []
    unguided: list[loops.Array] = []
    for i, (u, u_next) in enumerate(itertools.pairwise(levels)):
        alpha, alpha_next = (1 - u, 1 - u_next) if model.flow else (1.0, 1.0)
        D, D_u = model.both(y, u)
        h = u_next - u
        eps = (y - alpha * D_u) / u
        unguided.append(eps)
        if i:
            eps = eps + b * h / (u - levels[i - 1]) * (eps - unguided[-2])
        E = alpha_next * D + u_next * eps
        derivatives.append((E - y) / h)
        after = E
        if i:
            before = levels[i - 1]
            w_0 = quad(lambda v, u=u, before=before: (v - before) / (u - before), u, u_next)[0]
            w_1 = quad(lambda v, u=u, before=before: (v - u) / (before - u), u, u_next)[0]
            after = (1 - a) * E + a * (y + w_0 * derivatives[-1] + w_1 * derivatives[-2])
        if u_next == 0 and i and line:
            after = D - u * (D - data[-1]) / (u - levels[i - 1])
        y = after
        data.append(D)
    return y


@pytest.mark.parametrize(("name", "predicts"), CASES)
@pytest.mark.parametrize(
    ("a", "b", "line"), [(0.25, 0.1, True), (0.5, 0.0, False), (1.0, 0.3, False), (0.0, 0.2, True)]
)
def test_it_is_the_loop(a: float, b: float, line: bool, name: str, predicts: str) -> None:
    levels = tuple(u / (1 + u) for u in LEVELS) if name == "flow" else LEVELS
    for grid in (
        {"sigmas": (*levels, 0.0)}, {"sigmas": levels[:-1], "final": levels[-1]}, {"sigmas": (*levels[:2], 0.0)},
        {"sigmas": (*levels[:3], 0.0)}, {"sigmas": (levels[0], 0.0)}, {"sigmas": levels[:2], "final": levels[2]},
        *([{"sigmas": (1.0, *levels, 0.0)}] if name == "flow" else []),
    ):  # fmt: skip
        sampler = CFGPPHistory(history=a, unguided_history=b, extrapolated=line, **grid)
        mine, theirs, *_ = loops.responses(sampler, SCHEDULES[name], predicts, loop, a=a, b=b, line=line)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10 * abs(theirs).max())


def test_its_parts_are_checked() -> None:
    for name, value in (("history", -1), ("unguided_history", np.nan), ("extrapolated", 1)):
        with pytest.raises(ValueError, match=rf"^{name}: got "):
            CFGPPHistory(4, **{name: value})
