"""Chains must start where their energies and scores are finite."""

from __future__ import annotations

import torch

from ..samplers.mcmc.chain_state import ChainState


def check_start(state: ChainState, replicas: int, resumed: bool) -> None:
    """Raise ValueError unless energies and scores are finite where chains start, each with so many replicas."""
    finite = torch.isfinite(state.score.flatten(1)).all(1)
    if state.energy is not None:
        finite &= torch.isfinite(state.energy)
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()[:, 0]
    what = "score" if state.energy is None or bool(torch.isfinite(state.energy[bad[0]])) else "energy"
    chain, more = int(state.chain[bad[0]]) // replicas, len({int(chain) // replicas for chain in state.chain[bad]}) - 1
    others = f" (and of {more} others)" if more else ""
    if resumed:
        raise ValueError(
            f"resume: got a run whose {what} is not finite at chain {chain}{others}, expected one that did not "
            "diverge: begin anew with a smaller step, or with x_init= in place of resume="
        )
    raise ValueError(
        f"target: got no finite {what} at the start of chain {chain}{others}, expected one: check it, or give "
        "x_init where it is finite"
    )
