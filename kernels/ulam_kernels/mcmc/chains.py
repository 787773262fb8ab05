"""Built-in densities, and whole chains of them in one launch.

In the table of samplers of :func:`run`, h' is ``h (1 + jitter u)``, u uniform on [-1, 1]:
``z_0 / sqrt((z_0 z_0 + z_1 z_1) + z_2 z_2)`` of the normals z of the step's draw + 2, in float64 and rounded once at
the end; h where jitter is 0. The log ratio is
``((E - E') + 0.5 (|v|^2 - |v'|^2)) inverse_temperature`` in float64, one rounding an operation.

v is refreshed as ``add(mul(keep, v), mul(mul(sqrt(T), root(mul(1 - keep, 1 + keep))), z))``; `lost` is the sum of
``0.5 (|v|^2 - |v'|^2)`` over the leapfrog steps, each from v to v'. The noise of MALT's path is that of draw + 12,
d elements a refreshment. Isokinetic steps, with the noise of MAMS' path at draw + 11, are those of
``ulam.samplers.mcmc.isokinetic``, in float64; mclmc's length is in units of sqrt(d) where its last number is not 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ulam_kernels.arguments import bounds, choice, described, switch, whole
from ulam_kernels.autograd import check_no_gradient, written
from ulam_kernels.densities import Density
from ulam_kernels.mcmc.checks import check_like, check_scale, operations_of, present
from ulam_kernels.operator import BACKEND, IDS, Values, operator
from ulam_kernels.tracing import constant_beside, through_operator
from ulam_kernels.validation import apart, check, check_chains, check_memory_of_its_own, check_noise_ids

SAMPLERS = ("ula", "mala", "baoab", "hmc", "ghmc", "malt", "mclmc", "mams")  # in the order of ulam/mcmc.h
EVERYWHERE = SAMPLERS[:4]  # those that every backend has; the others the CPU's alone
WITH_VELOCITIES, WITH_TEST = ("baoab", "ghmc", "mclmc"), ("mala", "hmc", "ghmc", "malt", "mams")
DIVERGED = -1000.0  # log ratios below it: the integration failed [Carpenter 2017, Stan]; also in ulam/mcmc.h
PATH_STAGE = 2  # of a step's draws: the one that varies the length of an HMC path; also in ulam/mcmc.h
COEFFICIENTS = 4
MOST_STEPS = 1 << 40  # of a launch, thinned or not: at a nanosecond a step a quarter of an hour
MOST_LEAPS = 1 << 30

DENSITY = "str name, SymInt kind, SymInt dimension, SymInt components, Tensor params"


def _with_density(values: Values) -> None:
    fields = [values.pop(name) for name in ("name", "kind", "dimension", "components", "params")]
    values["density"] = Density(*fields)


def _evaluated(x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[:1], dtype=torch.float64), torch.empty_like(x)


@operator(f"evaluate({DENSITY}, Tensor x, {BACKEND}) -> (Tensor, Tensor)", _evaluated, _with_density)
def evaluate(
    density: Density, x: torch.Tensor, *, energy: bool = True, backend: str | None = None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Energy and score of a built-in density, whose formulas and sources :mod:`ulam_kernels.densities` gives.

    The formulas are in fp32, one rounding an operation; the energy's terms, one an element, are summed in float64.

    Args:
        density: of d dimensions.
        x: ``[B, d]``.
        energy: whether the energy is wanted.

    Returns:
        E(x) ``[B]`` float64 (None where it is not wanted) and the score -grad E ``[B, d]``.

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
        operations_of(backend, x).evaluate(density, density.to(x.device, x.dtype), x, energies, score)
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
    density: Density, x: torch.Tensor, sampler: str, coef: torch.Tensor, steps: int, *,
    seed: torch.Tensor, chain: torch.Tensor, draw: torch.Tensor, v: torch.Tensor | None = None, leapfrog: int = 1,
    scale: torch.Tensor | None = None, lo: float = -math.inf, hi: float = math.inf, thin: int = 1,
    draws: torch.Tensor | None = None, energies: torch.Tensor | None = None, moments: torch.Tensor | None = None,
    accepted: torch.Tensor | None = None, diverged: torch.Tensor | None = None, backend: str | None = None,
) -> None:  # fmt: skip
    """``steps`` steps of whole chains in one launch, in place on x (and v): the bits of the single operations.

    ULA and MALA: Roberts and Tweedie 1996; BAOAB: Leimkuhler and Matthews 2013; HMC: Duane et al. 1987. Step i uses
    draw + 16 i. The last four are launched on the CPU alone. ``coef[b]`` (and see this module)::

        ula      step, noise_scale, -, -                       langevin with lo, hi
        mala     step, noise_scale, inverse_temperature, -     langevin, mala_accept
        baoab    kick, drift, keep, noise_scale                kick_drift, evaluate, kick_drift without drift
        hmc      h, jitter, inverse_temperature, sqrt(T)       v = mul(sqrt(T), z); `leapfrog` steps of kick h' / 2,
                                                               drift h', kick h' / 2 (neighbouring kicks are one of
                                                               h'); accept ((E - E') + 1/2 (|v|^2 - |v'|^2)) / T
        ghmc     h, keep, inverse_temperature, sqrt(T)         v refreshed; `leapfrog` steps of kick h / 2, drift h,
                                                               kick h / 2; accept ((E - E') + lost) / T; -v refused
        malt     h, keep, inverse_temperature, sqrt(T)         v = mul(sqrt(T), z); as ghmc, v refreshed in between
        mclmc    h, length, inverse_temperature, in roots      an isokinetic step, and the direction refreshed
        mams     h, jitter, inverse_temperature, -             `leapfrog` isokinetic steps; accept (E - E') / T + lost

    Args:
        density: of d = 1 to 128 dimensions.
        x: ``[B, d]``. v: ``[B, d]`` whitened velocities, needed by baoab, ghmc and mclmc alone.
        sampler: one of those above. coef: ``[B, 4]``.
        steps: how many, 0 to 2^40. thin: every thin-th state is kept: those after steps thin, 2 thin, ...
        seed, chain, draw: ``[B]`` int64; draw is the first step's.
        leapfrog: of hmc, ghmc, malt and mams, 1 to 2^30.
        scale: ``[d]``. lo, hi: bounds of ULA; other samplers take none.
        draws: ``[B, steps // thin, d]`` receives the kept states.
        energies: ``[B, steps // thin]`` float64 receives their energies.
        moments: ``[B, 2, d]`` float64: sum and sum of squares of the kept states are added to it, in order.
        accepted: ``[B]`` int64: the number of accepted proposals is added to it (samplers that accept).
        diverged: ``[B]`` int64: the number of proposals with a log ratio below :data:`DIVERGED`, or NaN, is added to
            it (likewise).

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
    operations = operations_of(backend, x)
    _check_launched(sampler, operations, density)
    steps, thin = whole(steps, "steps", 0, MOST_STEPS), whole(thin, "thin", 1, MOST_STEPS)
    leapfrog, (lo, hi) = whole(leapfrog, "leapfrog", 1, MOST_LEAPS), bounds(lo, hi)
    _check_sampler(sampler, v, lo, hi, counts=accepted is not None or diverged is not None)
    check(coef, "coef", x.dtype, x.device, (len(x), COEFFICIENTS))
    check_like(x, **present(v=v))
    check_scale(x, scale)
    check_noise_ids(x, seed, chain, draw)
    outputs = present(x=x, v=v, draws=draws, energies=energies, moments=moments, accepted=accepted, diverged=diverged)
    _check_outputs(x, steps // thin, outputs)
    if len(x) and steps:
        reads = density.to(x.device, x.dtype), coef, scale, seed, chain, draw
        for tensor in outputs.values():
            reads = apart(reads, 0, tensor)
        params, coef, scale, seed, chain, draw = reads
        operations.run(
            density, params, x, SAMPLERS.index(sampler), coef, steps, seed, chain, draw,
            v, leapfrog, scale, lo, hi, thin, draws, energies, moments, accepted, diverged,
        )  # fmt: skip
        for tensor in outputs.values():
            written((tensor,))


def launched_by(operations: Any) -> tuple[str, ...]:
    """The samplers of whose chains a backend, by its operations, has launches."""
    found: tuple[str, ...] = getattr(operations, "SAMPLERS", EVERYWHERE)
    return found


def launches(sampler: str, x: torch.Tensor, backend: str | None = None) -> bool:
    """Whether :func:`run` has a sampler of this name for chains like x on the backend that serves them."""
    return sampler in launched_by(operations_of(backend, x))


def _check_launched(sampler: str, operations: Any, density: Density) -> None:
    """Raise unless a backend launches chains of this sampler and density."""
    choice(sampler, "sampler", SAMPLERS)
    if sampler not in (there := launched_by(operations)):
        right = f"one of {', '.join(there)}, which this backend launches"
        raise ValueError(f"sampler: got {described(sampler)}, expected {right}")
    if sampler in ("mclmc", "mams") and density.dimension < 2:
        raise ValueError(f"density: got one of 1 dimension, expected at least 2 for {sampler}")


def _check_sampler(sampler: str, v: torch.Tensor | None, lo: float, hi: float, counts: bool) -> None:
    """Raise unless a sampler has the arguments it needs, and none that others need."""
    if (v is None) == (sampler in WITH_VELOCITIES):
        right = "velocities [B, d]" if sampler in WITH_VELOCITIES else "None"
        raise ValueError(f"v: got {described(v)}, expected {right} for {sampler}")
    if sampler != "ula" and (lo, hi) != (-math.inf, math.inf):
        raise ValueError(f"lo, hi: got {lo}, {hi}, expected none for {sampler}: bounds are for ula alone")
    if counts and sampler not in WITH_TEST:
        raise ValueError(f"accepted, diverged: got a tensor, expected None: {sampler} has no Metropolis test")


def _check_outputs(x: torch.Tensor, kept: int, outputs: dict[str, torch.Tensor]) -> None:
    """Raise unless what ``kept`` states of every chain, and their sums and counts, are written to fits."""
    chains, d = x.shape
    expected = {
        "draws": (x.dtype, (chains, kept, d)), "energies": (torch.float64, (chains, kept)),
        "moments": (torch.float64, (chains, 2, d)), "accepted": (torch.int64, (chains,)),
        "diverged": (torch.int64, (chains,)),
    }  # fmt: skip
    for name, (dtype, shape) in expected.items():
        if name in outputs:
            check(outputs[name], name, dtype, x.device, shape)
    check_memory_of_its_own(**outputs)


def _fields(density: Density, x: torch.Tensor) -> tuple[str, int, int, int, torch.Tensor]:
    """A density in the parts that an operator takes; its numbers as the tracer takes a constant."""
    params = density.params if torch.compiler.is_compiling() else constant_beside(density.params, x)
    return density.name, density.kind, density.dimension, density.components, params


def _check_density(density: Density, x: torch.Tensor) -> None:
    if not isinstance(density, Density):
        raise TypeError(f"density: got {described(density)}, expected a Density")
    check_chains(x, "x")
    if x.dim() != 2 or x.shape[1] != density.dimension:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {density.dimension}] for {density}")
