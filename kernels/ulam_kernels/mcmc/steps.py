"""One step of a chain: a Langevin update, and the kicks and drifts of BAOAB and the leapfrog."""

from __future__ import annotations

import math
from typing import Any

import torch

from ulam_kernels.arguments import bounds
from ulam_kernels.autograd import check_no_gradient, written
from ulam_kernels.mcmc.checks import check_like, check_noise, check_per_chain, check_scale, operations_of, present
from ulam_kernels.operator import BACKEND, NOISE, like_first, operator
from ulam_kernels.tracing import through_operator
from ulam_kernels.validation import apart, check_chains, check_ids, check_memory_of_its_own

UPDATE = "Tensor score, Tensor step, Tensor noise_scale, Tensor? scale, float lo, float hi"


@operator(f"langevin_out(Tensor x, {UPDATE}, Tensor(a!) out, {NOISE}, {BACKEND}) -> ()")
@operator(f"langevin(Tensor x, {UPDATE}, {NOISE}, {BACKEND}) -> Tensor", like_first)
def langevin(
    x: torch.Tensor,
    score: torch.Tensor,
    step: torch.Tensor,
    noise_scale: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    lo: float = -math.inf,
    hi: float = math.inf,
    seed: torch.Tensor | None = None,
    chain: torch.Tensor | None = None,
    draw: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """One Langevin update: ``out = clip(x + step P s + noise_scale sqrt(P) z, lo, hi)``.

    In fp32, with a = step[b], c = noise_scale[b], L the element of ``scale``::

        t = fma(mul(a, L), mul(L, s), x);  t = fma(mul(c, L), z, t)
        out = t < lo ? lo : (t > hi ? hi : t)                                  NaN passes

    For the density exp(-E / T) and the step eta: step = eta, noise_scale = sqrt(2 eta T). Roberts and Tweedie 1996.

    Args:
        x, score: ``[B, *shape]``.
        step, noise_scale: ``[B]``.
        scale: ``[*shape]``, the square root of a diagonal preconditioner; None is 1.
        lo, hi: bounds of ``out``; infinite ones are none.
        seed, chain, draw: ``[B]`` int64, read as unsigned; None where ``noise`` is given.
        noise: ``[B, *shape]``, used in place of the generated z.
        out: ``[B, *shape]``, by default a new tensor; may be ``x``.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, OverflowError: an argument of the wrong type, dtype, shape, device or layout, out of
            range, or a missing one.
    """
    operands = {"x": x, "score": score, "step": step, "noise_scale": noise_scale, "scale": scale, "noise": noise}
    check_no_gradient("langevin", **operands, out=out)
    if through_operator("langevin", *operands.values(), seed, chain, draw, out, pure=out is None):
        operator, rest = torch.ops.ulam, (seed, chain, draw, noise, backend)
        if out is None:
            return operator.langevin(x, score, step, noise_scale, scale, lo, hi, *rest)  # type: ignore[no-any-return]
        if out is x:
            operator.langevin_in_place(x, score, step, noise_scale, scale, lo, hi, *rest)
        else:
            operator.langevin_out(x, score, step, noise_scale, scale, lo, hi, out, *rest)
        return out
    check_chains(x, "x")
    out = torch.empty_like(x) if out is None else out
    check_like(x, score=score, out=out, **present(noise=noise))
    check_per_chain(x, step=step, noise_scale=noise_scale)
    check_scale(x, scale)
    check_noise(x, seed, chain, draw, noise)
    lo, hi = bounds(lo, hi)
    if x.numel():
        x, score, noise, step, noise_scale, scale, seed, chain, draw = apart(
            (x, score, noise, step, noise_scale, scale, seed, chain, draw), 1, out
        )
        operations_of(backend, x).langevin(x, score, step, noise_scale, scale, lo, hi, seed, chain, draw, noise, out)
        written((out,))
    return out


@operator(f"langevin_in_place(Tensor(a!) x, {UPDATE}, {NOISE}, {BACKEND}) -> ()")
def _langevin_in_place(x: torch.Tensor, **values: Any) -> None:
    langevin(x, out=x, **values)


@operator(
    "kick_drift(Tensor(a!) x, Tensor(b!) v, Tensor score, Tensor kick, Tensor? drift, Tensor? keep, "
    f"Tensor? noise_scale, Tensor? scale, {NOISE}, {BACKEND}) -> ()"
)
def kick_drift(
    x: torch.Tensor,
    v: torch.Tensor,
    score: torch.Tensor,
    kick: torch.Tensor,
    drift: torch.Tensor | None,
    *,
    keep: torch.Tensor | None = None,
    noise_scale: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    chain: torch.Tensor | None = None,
    draw: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """A kick and a drift, in place on x and v; with ``keep`` a thermostat and the drift again.

    In fp32, with L the element of ``scale``::

        v = fma(mul(kick, L), s, v);  x = fma(mul(drift, L), v, x)
        v = fma(noise_scale, z, mul(keep, v));  x = fma(mul(drift, L), v, x)       where keep is given

    BAOAB (Leimkuhler and Matthews 2013) with the time step h, friction g and temperature T is kick = drift = h / 2,
    keep = exp(-g h), noise_scale = sqrt(T (1 - keep^2)), then the score at the new x, then the kick h / 2 alone. The
    leapfrog of HMC is a kick h / 2, drifts h with kicks h between them, and a kick h / 2 alone.

    Args:
        x, v, score: ``[B, *shape]``.
        kick: ``[B]``. drift: ``[B]``, or None for a kick alone: x is not touched.
        keep, noise_scale: ``[B]``; they come together, and with drift.
        scale, seed, chain, draw, noise: as :func:`langevin`; noise is read with ``keep`` alone.

    Raises:
        TypeError, ValueError, OverflowError: as :func:`langevin`.
    """
    coefficients = {"kick": kick, "drift": drift, "keep": keep, "noise_scale": noise_scale, "scale": scale}
    check_no_gradient("kick_drift", x=x, v=v, score=score, **coefficients, noise=noise)
    if through_operator("kick_drift", x, v, score, *coefficients.values(), noise, seed, chain, draw):
        torch.ops.ulam.kick_drift(
            x, v, score, kick, drift, keep, noise_scale, scale, seed, chain, draw, noise, backend
        )  # fmt: skip
        return
    check_chains(x, "x")
    check_like(x, v=v, score=score, **present(noise=noise))
    check_per_chain(x, kick=kick, **present(drift=drift, keep=keep, noise_scale=noise_scale))
    check_scale(x, scale)
    if (keep is None) != (noise_scale is None) or (keep is not None and drift is None):
        given = ", ".join(present(drift=drift, keep=keep, noise_scale=noise_scale)) or "none"
        raise ValueError(f"drift, keep, noise_scale: got {given}, expected keep and noise_scale with drift, or neither")
    if keep is None:
        check_ids(seed, chain, draw, x.device, x.shape[:1])
    else:
        check_noise(x, seed, chain, draw, noise)
    if drift is not None:
        check_memory_of_its_own(x=x, v=v)
    if x.numel():
        score, noise, kick, drift, keep, noise_scale, scale, seed, chain, draw = apart(
            (score, noise, kick, drift, keep, noise_scale, scale, seed, chain, draw), 0, v, None if drift is None else x
        )
        operations_of(backend, x).kick_drift(
            x, v, score, kick, drift, keep, noise_scale, scale, seed, chain, draw, noise
        )
        written((v,) if drift is None else (v, x))
