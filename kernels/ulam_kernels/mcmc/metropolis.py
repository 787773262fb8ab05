"""The Metropolis test of a Langevin proposal and of given log ratios, and the sum that kinetic energies are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ulam_kernels.arguments import described
from ulam_kernels.autograd import check_no_gradient, written
from ulam_kernels.mcmc.checks import check_like, check_per_chain, check_scale, operations_of, present
from ulam_kernels.operator import BACKEND, IDS, Values, operator, per_chain
from ulam_kernels.tracing import through_operator
from ulam_kernels.validation import apart, check, check_chains, check_memory_of_its_own, check_noise_ids, check_tensor

MOST_PAIRS = 4


def _with_pairs(values: Values) -> None:
    values["pairs"] = list(zip(values.pop("kept"), values.pop("proposed"), strict=True))


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
    """Do the Metropolis test of a proposal of :func:`langevin` (without bounds), in place on x, score and energy.

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
        scale: ``[*shape]``, as in :func:`langevin`.
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
    check_chains(x, "x")
    check_like(x, proposal=proposal, score=score, proposal_score=proposal_score)
    for name, value in (("energy", energy), ("proposal_energy", proposal_energy)):
        check(value, name, torch.float64, x.device, x.shape[:1])
    check_per_chain(x, step=step, **present(inverse_temperature=inverse_temperature))
    check_scale(x, scale)
    check_noise_ids(x, seed, chain, draw)
    check_memory_of_its_own(x=x, score=score, energy=energy)
    accepted = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    log_ratio = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if x.numel():
        reads = proposal, proposal_score, proposal_energy, step, inverse_temperature, scale, seed, chain, draw
        proposal, proposal_score, proposal_energy, step, inverse_temperature, scale, seed, chain, draw = apart(
            apart(reads, 0, x, score), 0, energy
        )
        operations_of(backend, x).mala_accept(
            x, proposal, score, proposal_score, energy, proposal_energy, step, inverse_temperature, scale,
            seed, chain, draw, accepted, log_ratio,
        )  # fmt: skip
        written((x, score))
        written((energy,))
    return accepted, log_ratio


@operator(f"squared_norm(Tensor x, {BACKEND}) -> Tensor", per_chain(torch.float64))
def squared_norm(x: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """``sum_i x_i^2`` of every chain: squares are exact, sums in the order of :mod:`ulam_kernels.mcmc.checks`.

    Args:
        x: ``[B, *shape]``.

    Returns:
        ``[B]`` float64.

    Raises:
        TypeError, ValueError, OverflowError: as :func:`langevin`.
    """
    check_no_gradient("squared_norm", x=x)
    if through_operator("squared_norm", x, pure=True):
        return torch.ops.ulam.squared_norm(x, backend)  # type: ignore[no-any-return]
    check_chains(x, "x")
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if x.numel():
        operations_of(backend, x).squared_norm(x, out)
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
    """Do the Metropolis test of given log ratios: where it accepts, ``kept[b] = proposed[b]`` for each pair.

    Metropolis et al. 1953; Hastings 1970. The test is that of :mod:`.mcmc.checks`; NaN rejects.

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
    check_noise_ids(log_ratio, seed, chain, draw)
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
        operations_of(backend, log_ratio, torch.float32).accept(log_ratio, pairs, seed, chain, draw, accepted)
        for kept, _ in pairs:
            written((kept,))
    return accepted


def _are_pairs(pairs: object) -> bool:
    return isinstance(pairs, Sequence) and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs)
