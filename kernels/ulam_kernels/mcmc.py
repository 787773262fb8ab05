"""Langevin and Metropolis operations on a batch of independent chains: one contract, several backends, the same bits.

Step by step, for any target whose energy E and score s = -grad E torch gives::

    langevin       x' = x + step P s + noise_scale sqrt(P) z                          ULA, SGLD, annealed, proposals
    mala_accept    the Metropolis test of a Langevin proposal, fused with what it selects
    kick_drift     v += kick s, x += drift v [, v = keep v + noise z, x += drift v]   BAOAB, leapfrog
    squared_norm   sum_i x_i^2                                                        kinetic energies
    accept         the Metropolis test of a given log ratio, and what it selects      HMC, tempering

and whole chains in one launch, for the densities of :mod:`ulam_kernels.densities`::

    evaluate       energy and score of a built-in density
    run            thousands of steps of ULA, MALA, BAOAB or HMC

**Same bits.** A launch of ``run`` gives the bits of the same steps made of ``evaluate`` and the operations above, for
every sampler and on every backend. In fp32 every operation rounds once, in the order given; ``fma`` rounds once.

**Noise.** z is noise-v1 of (seed, chain, draw), tag 0, element e of the chain; draw = 16 step + stage. The
Metropolis test takes the word w_0 of block 0 of (seed, chain, draw), tag 2. With u = uniform(w_0) of the standard and
r = radius(w_0), which is sqrt(-2 ln u), it accepts where u < exp(log_ratio), decided as ``r r > -2 log_ratio`` in
float64 (r r is exact). A NaN rejects.

**Sums** over a chain's elements are float64 in the order of :func:`ulam_kernels.reduce`: lane l of 1024 adds the
elements e with e mod 1024 = l in order of e, then lane l adds lane l + w for w = 512, 256, ... 1.

**Preconditioner.** ``scale`` is the square root L of a diagonal P = L^2, one number an element, shared by the chains.
L = 1 has the bits of None. Velocities are whitened: v ~ N(0, temperature I), x += drift L v.

No operation has a derivative: RuntimeError where an argument requires grad while gradients are recorded.

What an operation reads may share memory with what it writes: it is read before anything is written. Tensors that it
writes to must not share memory with each other.

Per-chain coefficients are float32 tensors ``[B]``. Tensors are contiguous; floats are float32, except that all of them
may be float64 on the reference backend, for checking formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ulam_kernels.arguments import bounds, choice, described, switch, whole
from ulam_kernels.autograd import check_no_gradient, written
from ulam_kernels.densities import Density
from ulam_kernels.dispatch import select
from ulam_kernels.operator import BACKEND, IDS, NOISE, Values, like_first, operator, per_chain
from ulam_kernels.tracing import constant_beside, through_operator
from ulam_kernels.validation import MAX_ELEMENTS, apart, check, check_ids, check_memory_of_its_own, check_tensor

SAMPLERS = ("ula", "mala", "baoab", "hmc")
DIVERGED = -1000.0  # log ratios below it: the integration failed [Carpenter 2017, Stan]; also in ulam/mcmc.h
PATH_STAGE = 2  # of a step's draws: what the length of an HMC path varies by; also in ulam/mcmc.h
COEFFICIENTS = 4
MOST_PAIRS = 4
MOST_STEPS = 1 << 40  # of a launch, thinned or not: at a nanosecond a step a quarter of an hour
MOST_LEAPS = 1 << 30

DENSITY = "str name, SymInt kind, SymInt dimension, SymInt components, Tensor params"


def _with_density(values: Values) -> None:
    fields = [values.pop(name) for name in ("name", "kind", "dimension", "components", "params")]
    values["density"] = Density(*fields)


def _with_pairs(values: Values) -> None:
    values["pairs"] = list(zip(values.pop("kept"), values.pop("proposed"), strict=True))


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
        scale: ``[*shape]``.
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
    _check_state(x, "x")
    out = torch.empty_like(x) if out is None else out
    _check_like(x, score=score, out=out, **_given(noise=noise))
    _check_per_chain(x, step=step, noise_scale=noise_scale)
    _check_scale(x, scale)
    _check_noise(x, seed, chain, draw, noise)
    lo, hi = bounds(lo, hi)
    if x.numel():
        x, score, noise, step, noise_scale, scale, seed, chain, draw = apart(
            (x, score, noise, step, noise_scale, scale, seed, chain, draw), 1, out
        )
        _backend(backend, x).langevin(x, score, step, noise_scale, scale, lo, hi, seed, chain, draw, noise, out)
        written(out)
    return out


@operator(f"langevin_in_place(Tensor(a!) x, {UPDATE}, {NOISE}, {BACKEND}) -> ()")
def _langevin_in_place(x: torch.Tensor, **values: Any) -> None:
    langevin(x, out=x, **values)


def _tested(x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[:1], dtype=torch.bool), x.new_empty(x.shape[:1], dtype=torch.float64)


@operator(
    "mala_accept(Tensor(a!) x, Tensor proposal, Tensor(b!) score, Tensor proposal_score, Tensor(c!) energy, "
    f"Tensor proposal_energy, Tensor step, Tensor? inverse_temperature, Tensor? scale, {IDS}, {BACKEND}) "
    "-> (Tensor, Tensor)",
    _tested,
)
def mala_accept(
    x: torch.Tensor,
    proposal: torch.Tensor,
    score: torch.Tensor,
    proposal_score: torch.Tensor,
    energy: torch.Tensor,
    proposal_energy: torch.Tensor,
    step: torch.Tensor,
    *,
    inverse_temperature: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Metropolis test of a proposal that :func:`langevin` made (without bounds), in place on x, score and energy.

    With delta = x' - x, the squared distances of the two transition densities cancel to one sum, in float64::

        log_ratio = ((E - E') - 1/2 sum_i (s_i + s'_i) (delta_i + (step / 2) P_i (s'_i - s_i))) / T

    Each sum, difference and product rounds once, P_i (step / 2) as ``(step / 2 L) L``; the last factor is
    ``inverse_temperature``. Where it accepts, x' replaces x, s' replaces s and E' replaces E. A chain whose log ratio
    is NaN rejects. Roberts and Tweedie 1996, section 1.4.2; the temperature divides the energy.

    Args:
        x, proposal, score, proposal_score: ``[B, *shape]``.
        energy, proposal_energy: ``[B]`` float64.
        step: ``[B]``, as in :func:`langevin`, whose noise_scale was sqrt(2 step T).
        inverse_temperature: ``[B]``, 1 / T; 1 by default.
        seed, chain, draw: ``[B]`` int64 (a tag of its own keeps the draw of the proposal's noise usable).

    Returns:
        accepted ``[B]`` bool, log_ratio ``[B]`` float64: min(1, exp(log_ratio)) is the acceptance probability.

    Raises:
        TypeError, ValueError, OverflowError: as :func:`langevin`.
    """
    states = {"x": x, "proposal": proposal, "score": score, "proposal_score": proposal_score}
    numbers = {"energy": energy, "proposal_energy": proposal_energy, "step": step, "scale": scale}
    check_no_gradient("mala_accept", **states, **numbers)
    if through_operator("mala_accept", *states.values(), *numbers.values(), inverse_temperature, seed, chain, draw):
        return torch.ops.ulam.mala_accept(  # type: ignore[no-any-return]
            x, proposal, score, proposal_score, energy, proposal_energy, step, inverse_temperature, scale,
            seed, chain, draw, backend,
        )  # fmt: skip
    _check_state(x, "x")
    _check_like(x, proposal=proposal, score=score, proposal_score=proposal_score)
    for name, value in (("energy", energy), ("proposal_energy", proposal_energy)):
        check(value, name, torch.float64, x.device, x.shape[:1])
    _check_per_chain(x, step=step, **_given(inverse_temperature=inverse_temperature))
    _check_scale(x, scale)
    _check_ids(x, seed, chain, draw)
    check_memory_of_its_own(x=x, score=score, energy=energy)
    accepted = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    log_ratio = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if x.numel():
        reads = proposal, proposal_score, proposal_energy, step, inverse_temperature, scale, seed, chain, draw
        proposal, proposal_score, proposal_energy, step, inverse_temperature, scale, seed, chain, draw = apart(
            apart(reads, 0, x, score), 0, energy
        )
        _backend(backend, x).mala_accept(
            x, proposal, score, proposal_score, energy, proposal_energy, step, inverse_temperature, scale,
            seed, chain, draw, accepted, log_ratio,
        )  # fmt: skip
        written(x, score)
        written(energy)
    return accepted, log_ratio


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
        seed, chain, draw, noise: as :func:`langevin`, read with ``keep``.

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
    _check_state(x, "x")
    _check_like(x, v=v, score=score, **_given(noise=noise))
    _check_per_chain(x, kick=kick, **_given(drift=drift, keep=keep, noise_scale=noise_scale))
    _check_scale(x, scale)
    if (keep is None) != (noise_scale is None) or (keep is not None and drift is None):
        given = ", ".join(_given(drift=drift, keep=keep, noise_scale=noise_scale)) or "none"
        raise ValueError(f"drift, keep, noise_scale: got {given}, expected keep and noise_scale with drift, or neither")
    if keep is not None:
        _check_noise(x, seed, chain, draw, noise)
    if drift is not None:
        check_memory_of_its_own(x=x, v=v)
    if x.numel():
        score, noise, kick, drift, keep, noise_scale, scale, seed, chain, draw = apart(
            (score, noise, kick, drift, keep, noise_scale, scale, seed, chain, draw), 0, v, None if drift is None else x
        )
        _backend(backend, x).kick_drift(x, v, score, kick, drift, keep, noise_scale, scale, seed, chain, draw, noise)
        written(v, None if drift is None else x)


@operator(f"squared_norm(Tensor x, {BACKEND}) -> Tensor", per_chain(torch.float64))
def squared_norm(x: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """``sum_i x_i^2`` of every chain, ``[B]`` float64: squares are exact, sums in the order of this module.

    Raises:
        TypeError, ValueError, OverflowError: as :func:`langevin`.
    """
    check_no_gradient("squared_norm", x=x)
    if through_operator("squared_norm", x, pure=True):
        return torch.ops.ulam.squared_norm(x, backend)  # type: ignore[no-any-return]
    _check_state(x, "x")
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if x.numel():
        _backend(backend, x).squared_norm(x, out)
    return out


@operator(
    f"accept(Tensor log_ratio, Tensor(a!)[] kept, Tensor[] proposed, {IDS}, {BACKEND}) -> Tensor",
    per_chain(torch.bool),
    _with_pairs,
)
def accept(
    log_ratio: torch.Tensor,
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """The Metropolis test of given log ratios: where it accepts, ``kept[b] = proposed[b]`` for each pair.

    Args:
        log_ratio: ``[B]`` float64.
        pairs: up to four (kept, proposed), both ``[B, ...]`` of one shape and dtype, float32 or float64.
        seed, chain, draw: ``[B]`` int64.

    Returns:
        accepted ``[B]`` bool.

    Raises:
        TypeError, ValueError, OverflowError: as :func:`langevin`.
    """
    given = [tensor for pair in pairs for tensor in pair] if _are_pairs(pairs) else []
    check_no_gradient("accept", log_ratio=log_ratio)
    for kept, proposed in zip(given[::2], given[1::2], strict=True):
        check_no_gradient("accept", kept=kept, proposed=proposed)
    if through_operator("accept", log_ratio, seed, chain, draw, *given):
        lists = given[::2], given[1::2]
        return torch.ops.ulam.accept(log_ratio, *lists, seed, chain, draw, backend)  # type: ignore[no-any-return]
    check_tensor(log_ratio, "log_ratio")
    if log_ratio.dim() != 1:
        raise ValueError(f"log_ratio: got shape {list(log_ratio.shape)}, expected [B]")
    check(log_ratio, "log_ratio", torch.float64, log_ratio.device, log_ratio.shape)
    _check_ids(log_ratio, seed, chain, draw)
    if not _are_pairs(pairs):
        raise TypeError(f"pairs: got {described(pairs)}, expected a sequence of (kept, proposed)")
    if len(pairs) > MOST_PAIRS:
        raise ValueError(f"pairs: got {len(pairs)}, expected at most {MOST_PAIRS}")
    for kept, proposed in pairs:
        check_tensor(kept, "pairs")
        if kept.dtype not in (torch.float32, torch.float64) or kept.shape[:1] != log_ratio.shape:
            raise ValueError(f"pairs: got {kept.dtype} {list(kept.shape)}, expected float32 or float64 [B, ...]")
        check(kept, "pairs", kept.dtype, log_ratio.device, kept.shape)
        check(proposed, "pairs", kept.dtype, log_ratio.device, kept.shape)
    check_memory_of_its_own(**{f"pairs[{number}]": kept for number, (kept, _) in enumerate(pairs)})
    accepted = torch.empty(len(log_ratio), dtype=torch.bool, device=log_ratio.device)
    if len(log_ratio):
        reads = (log_ratio, seed, chain, draw, *(proposed for _, proposed in pairs))
        for kept, _ in pairs:
            reads = apart(reads, 0, kept)
        log_ratio, seed, chain, draw, *proposals = reads
        pairs = [(kept, proposed) for (kept, _), proposed in zip(pairs, proposals, strict=True)]
        _backend(backend, log_ratio, torch.float32).accept(log_ratio, pairs, seed, chain, draw, accepted)
        for kept, _ in pairs:
            written(kept)
    return accepted


def _evaluated(x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[:1], dtype=torch.float64), torch.empty_like(x)


@operator(f"evaluate({DENSITY}, Tensor x, {BACKEND}) -> (Tensor, Tensor)", _evaluated, _with_density)
def evaluate(
    density: Density, x: torch.Tensor, *, energy: bool = True, backend: str | None = None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Energy ``[B]`` float64 (None unless asked for) and score ``[B, d]`` of a built-in density at x ``[B, d]``.

    The formulas are in fp32; the energy's terms, one an element, are summed in float64.

    Raises:
        TypeError, ValueError, OverflowError: as :func:`langevin`.
    """
    check_no_gradient("evaluate", x=x)
    if through_operator("evaluate", x, pure=True) and isinstance(density, Density):
        if switch(energy, "energy"):
            return torch.ops.ulam.evaluate(*_fields(density, x), x, backend)  # type: ignore[no-any-return]
        return None, torch.ops.ulam.evaluate_score(*_fields(density, x), x, backend)
    _check_density(density, x)
    switch(energy, "energy")
    score = torch.empty_like(x)
    energies = torch.empty(len(x), dtype=torch.float64, device=x.device) if energy else None
    if x.numel():
        _backend(backend, x).evaluate(density, density.to(x.device, x.dtype), x, energies, score)
    return energies, score


@operator(
    f"evaluate_score({DENSITY}, Tensor x, {BACKEND}) -> Tensor", lambda x, **_: torch.empty_like(x), _with_density
)
def _score(density: Density, x: torch.Tensor, backend: str | None = None) -> torch.Tensor:
    return evaluate(density, x, energy=False, backend=backend)[1]


@operator(
    f"run({DENSITY}, Tensor(a!) x, str sampler, Tensor coef, SymInt steps, {IDS}, Tensor(b!)? v, SymInt leapfrog, "
    "Tensor? scale, float lo, float hi, SymInt thin, Tensor(c!)? draws, Tensor(d!)? energies, Tensor(e!)? moments, "
    f"Tensor(f!)? accepted, Tensor(g!)? diverged, {BACKEND}) -> ()",
    pack=_with_density,
)
def run(
    density: Density,
    x: torch.Tensor,
    sampler: str,
    coef: torch.Tensor,
    steps: int,
    *,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    v: torch.Tensor | None = None,
    leapfrog: int = 1,
    scale: torch.Tensor | None = None,
    lo: float = -math.inf,
    hi: float = math.inf,
    thin: int = 1,
    draws: torch.Tensor | None = None,
    energies: torch.Tensor | None = None,
    moments: torch.Tensor | None = None,
    accepted: torch.Tensor | None = None,
    diverged: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """``steps`` steps of a whole chain in one launch, in place on x (and v): the bits of the operations above.

    Step i uses draw + 16 i. ``coef[b]`` holds the chain's coefficients::

        ula      step, noise_scale, -, -                       langevin with lo, hi
        mala     step, noise_scale, inverse_temperature, -     langevin, mala_accept
        baoab    kick, drift, keep, noise_scale                kick_drift, evaluate, kick_drift without drift
        hmc      h, jitter, inverse_temperature, sqrt(T)       v = mul(sqrt(T), z); `leapfrog` steps of kick h' / 2,
                                                               drift h', kick h' / 2 (neighbouring kicks are one of
                                                               h'); accept ((E - E') + 1/2 (|v|^2 - |v'|^2)) / T

    h' is ``h (1 + jitter u)``, u uniform on [-1, 1]: ``z_0 / sqrt((z_0 z_0 + z_1 z_1) + z_2 z_2)`` of the normals z of
    the step's draw + 2, in float64 and rounded once at the end; h where jitter is 0. The log ratio is
    ``((E - E') + 0.5 (|v|^2 - |v'|^2)) inverse_temperature`` in float64, one rounding an operation.

    Args:
        density: of d = 1 to 128 dimensions.
        x: ``[B, d]``. v: ``[B, d]`` whitened velocities, needed by baoab alone.
        coef: ``[B, 4]``.
        steps: how many, 0 to 2^40. thin: every thin-th state is kept: those after steps thin, 2 thin, ...
        seed, chain, draw: ``[B]`` int64; draw is the first step's.
        leapfrog: of HMC, 1 to 2^30.
        scale: ``[d]``. lo, hi: bounds of ULA; other samplers take none.
        draws: ``[B, steps // thin, d]`` receives the kept states.
        energies: ``[B, steps // thin]`` float64 receives their energies.
        moments: ``[B, 2, d]`` float64: sum and sum of squares of the kept states are added to it, in order.
        accepted: ``[B]`` int64: the number of accepted proposals is added to it (mala, hmc).
        diverged: ``[B]`` int64: the number of proposals with a log ratio below :data:`DIVERGED`, or NaN, is added to
            it (mala, hmc).

    Raises:
        TypeError, ValueError, OverflowError: as :func:`langevin`.
    """
    check_no_gradient("run", x=x, coef=coef, v=v, scale=scale)
    tensors = (x, coef, seed, chain, draw, v, scale, draws, energies, moments, accepted, diverged)
    if through_operator("run", *tensors) and isinstance(density, Density):
        torch.ops.ulam.run(
            *_fields(density, x), x, sampler, coef, steps, seed, chain, draw, v, leapfrog, scale, lo, hi, thin,
            draws, energies, moments, accepted, diverged, backend,
        )  # fmt: skip
        return
    _check_density(density, x)
    choice(sampler, "sampler", SAMPLERS)
    steps, thin = whole(steps, "steps", 0, MOST_STEPS), whole(thin, "thin", 1, MOST_STEPS)
    leapfrog, (lo, hi) = whole(leapfrog, "leapfrog", 1, MOST_LEAPS), bounds(lo, hi)
    device, chains, kept = x.device, len(x), steps // thin
    if (v is None) != (sampler != "baoab"):
        raise ValueError("v: is for baoab, and baoab needs it")
    if sampler != "ula" and (lo, hi) != (-math.inf, math.inf):
        raise ValueError(f"lo, hi: got {lo}, {hi} for {sampler}, expected bounds for ula alone")
    if (accepted is not None or diverged is not None) and sampler not in ("mala", "hmc"):
        raise ValueError(f"accepted, diverged: {sampler} has no Metropolis test")
    check(coef, "coef", x.dtype, device, (chains, COEFFICIENTS))
    _check_like(x, **_given(v=v))
    _check_scale(x, scale)
    _check_ids(x, seed, chain, draw)
    for label, tensor, dtype, shape in (
        ("draws", draws, x.dtype, (chains, kept, density.dimension)),
        ("energies", energies, torch.float64, (chains, kept)),
        ("moments", moments, torch.float64, (chains, 2, density.dimension)),
        ("accepted", accepted, torch.int64, (chains,)),
        ("diverged", diverged, torch.int64, (chains,)),
    ):
        if tensor is not None:
            check(tensor, label, dtype, device, shape)
    outputs = _given(x=x, v=v, draws=draws, energies=energies, moments=moments, accepted=accepted, diverged=diverged)
    check_memory_of_its_own(**outputs)
    if chains and steps:
        reads = density.to(device, x.dtype), coef, scale, seed, chain, draw
        for tensor in outputs.values():
            reads = apart(reads, 0, tensor)
        params, coef, scale, seed, chain, draw = reads
        _backend(backend, x).run(
            density, params, x, SAMPLERS.index(sampler), coef, steps, seed, chain, draw,
            v, leapfrog, scale, lo, hi, thin, draws, energies, moments, accepted, diverged,
        )  # fmt: skip
        for tensor in outputs.values():
            written(tensor)


def _backend(name: str | None, x: torch.Tensor, dtype: torch.dtype | None = None) -> Any:
    return select(name, x.device.type, dtype or x.dtype).mcmc


def _fields(density: Density, x: torch.Tensor) -> tuple[str, int, int, int, torch.Tensor]:
    """A density in the parts that an operator takes; its numbers as the tracer takes a constant."""
    params = density.params if torch.compiler.is_compiling() else constant_beside(density.params, x)
    return density.name, density.kind, density.dimension, density.components, params


def _are_pairs(pairs: object) -> bool:
    return isinstance(pairs, Sequence) and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs)


def _check_state(x: torch.Tensor, name: str) -> None:
    check_tensor(x, name)
    if x.dim() < 1 or x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: got {x.dtype} {list(x.shape)}, expected float32 [B, *shape]")
    check(x, name, x.dtype, x.device, x.shape)
    if x.numel() > len(x) * MAX_ELEMENTS:
        raise ValueError(f"{name}: got shape {list(x.shape)}, a chain may have at most 2^30 elements")


def _given(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Those that are not None."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _check_like(x: torch.Tensor, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        check(tensor, name, x.dtype, x.device, x.shape)


def _check_per_chain(x: torch.Tensor, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        check(tensor, name, x.dtype, x.device, x.shape[:1])


def _check_ids(x: torch.Tensor, seed: torch.Tensor, chain: torch.Tensor, draw: torch.Tensor) -> None:
    for name, tensor in (("seed", seed), ("chain", chain), ("draw", draw)):
        check(tensor, name, torch.int64, x.device, x.shape[:1])


def _check_scale(x: torch.Tensor, scale: torch.Tensor | None) -> None:
    if scale is not None:
        check(scale, "scale", x.dtype, x.device, x.shape[1:])


def _check_noise(
    x: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> None:
    if noise is None and (seed is None or chain is None or draw is None):
        raise ValueError("seed, chain, draw: got None, expected int64 tensors [B] (or noise)")
    check_ids(seed, chain, draw, x.device, x.shape[:1])


def _check_density(density: Density, x: torch.Tensor) -> None:
    if not isinstance(density, Density):
        raise TypeError(f"density: got {described(density)}, expected a Density")
    _check_state(x, "x")
    if x.dim() != 2 or x.shape[1] != density.dimension:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {density.dimension}] for {density}")
