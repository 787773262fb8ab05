"""The loss of an energy-based model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ulam_kernels.arguments import real
from ulam_kernels.tracing import transformed

from ..evaluation import check_like
from ..mcmc.targets import Energy
from .arguments import check_batch, check_callable


def contrastive_divergence(
    energy: Callable[[torch.Tensor], torch.Tensor],
    data: torch.Tensor,
    model: torch.Tensor,
    *,
    penalty: float = 0.0,
    kl: float = 0.0,
) -> torch.Tensor:
    """mean E(data) - mean E(model) + penalty (mean E(data)^2 + mean E(model)^2) + kl mean E*(model), a number.

    [Hinton 2002; Du & Mordatch 2019.] ``model`` are samples of exp(-E), such as those of
    :class:`ulam.ebm.PersistentChains`. No gradient flows into them but by the last term. Where they are exact, the
    gradient in the energy's parameters is that of the negative log-likelihood. Energies of half precision are averaged
    in float32. data, model: ``[B, *shape]``, their numbers of rows may differ; ``energy`` gives floats ``[B]``.
    penalty, kl: at least 0.

    kl: the weight of the energy that the sampler reaches, E* being E with its parameters held: the gradient goes
    through ``model``, which are of ``PersistentChains.sample(..., through_last=True)`` [Du 2021, L_KL]. It completes
    the gradient of contrastive divergence where few steps leave q, the law of ``model``, short of exp(-E); the other
    part of L_KL, the entropy of q, is left out.

    Raises TypeError or ValueError for an invalid argument, or for ``model`` without a gradient under ``kl``.
    """
    check_callable(energy, "energy")
    check_batch(data, "data")
    check_batch(model, "model")
    if data.shape[1:] != model.shape[1:]:
        raise ValueError(f"model: got shape {list(model.shape)}, expected [B, {_sizes(data)}] like data")
    penalty, kl = _weight(penalty, "penalty"), _weight(kl, "kl")
    of_data, of_model = energy(data), energy(model.detach())
    for name, values, batch in (("data", of_data, data), ("model", of_model, model)):
        check_like(values, (len(batch),), "energy", "energies", f", one an example of {name}")
        if not values.is_floating_point():
            raise TypeError(f"energy: got energies of {values.dtype}, expected floats")
    of_data, of_model = (values.to(torch.promote_types(values.dtype, torch.float32)) for values in (of_data, of_model))
    loss = of_data.mean() - of_model.mean()
    if penalty:
        loss = loss + penalty * (of_data.pow(2).mean() + of_model.pow(2).mean())
    return loss + kl * _held(energy, of_model, model).mean() if kl else loss


def _sizes(x: torch.Tensor) -> str:
    return ", ".join(map(str, x.shape[1:]))


def _weight(value: float, name: str) -> float:
    if (weight := real(value, name)) < 0:
        raise ValueError(f"{name}: got {weight:g}, expected at least 0")
    return weight


def _held(energy: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """E(x) ``[B]``, which are ``values``, with their gradient in x alone: E + grad E . (x - x*), x* being x without."""
    within = not torch.compiler.is_compiling() and transformed() is not None
    if torch.is_grad_enabled() and (within or not x.requires_grad):
        raise ValueError(
            "model: got samples without a gradient under kl, expected those of PersistentChains.sample(..., "
            "through_last=True), outside of torch.func"
        )
    at = x.detach()
    score = Energy(energy).score(at).detach()
    return values.detach() - (score * (x - at)).flatten(1).sum(1)
