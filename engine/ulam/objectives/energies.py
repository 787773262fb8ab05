"""The loss of an energy-based model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ulam_kernels.arguments import real

from ..evaluation import check_like
from .arguments import check_batch, check_callable


def contrastive_divergence(
    energy: Callable[[torch.Tensor], torch.Tensor], data: torch.Tensor, model: torch.Tensor, *, penalty: float = 0.0
) -> torch.Tensor:
    """mean E(data) - mean E(model) + penalty (mean E(data)^2 + mean E(model)^2), a number [Hinton 2002; Du 2019].

    ``model`` are samples of exp(-E), such as those of :class:`ulam.ebm.PersistentChains`; no gradient flows into them.
    Where they are exact, the gradient in the energy's parameters is that of the negative log-likelihood.
    """
    check_callable(energy, "energy")
    check_batch(data, "data")
    check_batch(model, "model")
    penalty = real(penalty, "penalty")
    of_data, of_model = energy(data), energy(model.detach())
    for name, values, batch in (("data", of_data, data), ("model", of_model, model)):
        check_like(values, (len(batch),), "energy", "energies", f", one an example of {name}")
    loss = of_data.mean() - of_model.mean()
    return loss + penalty * (of_data.pow(2).mean() + of_model.pow(2).mean()) if penalty else loss
