"""ArviZ's statistics of chains, one row per element and one for the energy, and the worst of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..arviz_data import arviz

MOST_RHAT, LEAST_ESS, MOST_DIVERGED, LOW_BFMI = 1.01, 400, 1e-3, 0.3
MOST_ELEMENTS = 256  # that are looked at
LEAST_CHAINS, LEAST_DRAWS = 2, 4  # of split R-hat
COLUMNS = ("mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat")


class Worst(NamedTuple):
    """The worst value of a statistic, and where: ``x[3]``, ``energy`` or ``chain 5`` (a position, not an id)."""

    value: float
    where: str

    def __str__(self) -> str:
        digits = f"{self.value:.0f}" if 100 <= self.value < 1e6 else f"{self.value:.4g}"
        return f"{digits} ({self.where})"


def looked_at(elements: int) -> torch.Tensor:
    """Positions of the elements that are looked at, evenly spaced: all up to 256."""
    return torch.linspace(0, elements - 1, min(elements, MOST_ELEMENTS), dtype=torch.float64).round().long()


def labels_of(name: str, shape: Sequence[int]) -> list[str]:
    """The names of the elements of a variable of this shape, in order: ``x[0, 1]``, or ``x`` of one without a shape."""
    return [f"{name}[{', '.join(map(str, place))}]" if place else name for place in np.ndindex(*shape)]


def table(
    draws: torch.Tensor, energies: torch.Tensor | None, chains: torch.Tensor, labels: Sequence[str] | None = None
) -> Any:
    """A ``pandas.DataFrame`` of mean, sd, MCSE, bulk and tail ESS and R-hat [Vehtari 2021], of ArviZ's own names.

    ``draws`` ``[chain, draw, *shape]``, ``energies`` ``[chain, draw]`` or None; ``chains`` ``[chain]`` bool: those
    taken into account; ``labels``: of the elements, ``x[0]``, ... by default. NaN where there are fewer than two
    chains, or fewer than four draws. An energy that is the same everywhere is left out.
    """
    import pandas

    flat = draws.flatten(2) if draws.dim() > 2 else draws[..., None]
    chosen, named = looked_at(flat.shape[2]), labels_of("x", draws.shape[2:]) if labels is None else labels
    labels = [named[i] for i in chosen.tolist()]
    values = {"x": flat[chains.to(flat.device)][:, :, chosen.to(flat.device)].cpu().numpy()}
    if energies is not None and bool((energies != energies.flatten()[0]).any()):
        values["energy"], labels = energies[chains.to(energies.device)].cpu().numpy(), [*labels, "energy"]
    if values["x"].shape[0] < LEAST_CHAINS or values["x"].shape[1] < LEAST_DRAWS:
        return pandas.DataFrame(float("nan"), index=labels, columns=list(COLUMNS))
    az = arviz()
    data = az.convert_to_dataset(values)

    def column(statistic: Callable[[Any], Any]) -> npt.NDArray[np.float64]:
        made = statistic(data)
        return np.concatenate([np.atleast_1d(made[name].values) for name in values]).astype(np.float64)

    columns = (
        lambda data: data.mean(("chain", "draw")),
        lambda data: data.std(("chain", "draw"), ddof=1),
        az.mcse,
        az.ess,
        lambda data: az.ess(data, method="tail"),
        az.rhat,
    )
    with quiet():
        return pandas.DataFrame(dict(zip(COLUMNS, map(column, columns), strict=True)), index=labels)


def worst(values: npt.NDArray[np.float64], labels: list[str], largest: bool) -> Worst:
    """The largest or the least; a number that is not known (NaN) is the worst of all."""
    order = np.where(np.isnan(values), np.inf, values if largest else -values)
    return Worst(float(values[order.argmax()]), labels[int(order.argmax())])


def worst_bfmi(hamiltonian: torch.Tensor) -> Worst | None:
    """The lowest E-BFMI [Betancourt 2016] of H ``[chain, draw]``; None where it does not vary."""
    with quiet():
        values = np.atleast_1d(arviz().bfmi(hamiltonian.numpy()))
    lowest = worst(values, [f"chain {i}" for i in range(len(values))], largest=False)
    return None if math.isnan(lowest.value) else lowest


def rhat_of_places(values: torch.Tensor) -> float:
    """R-hat of the ranks of values ``[chain, draw]``, which sees chains at different places, not of other widths."""
    with quiet():
        return float(arviz().rhat(values.double().cpu().numpy(), method="z_scale"))


def own_ess(values: torch.Tensor) -> npt.NDArray[np.float64]:
    """Bulk effective sample sizes ``[chain]`` of each of these chains ``[chain, draw]`` on its own; 0 if not known.

    At most the number of different draws: a chain that stands still has none.
    """
    with quiet():
        chains = values.double().cpu().numpy()
        return np.nan_to_num([min(float(arviz().ess(one[None])), len(np.unique(one)) - 1) for one in chains])


def failures(rhat: Worst, ess_bulk: Worst, ess_tail: Worst) -> list[str]:
    """The checks of R-hat and effective sample sizes that fail; a number that is not known fails."""
    told = f"{rhat}" if float(f"{rhat.value:.4g}") > MOST_RHAT else f"{rhat.value:.9g} ({rhat.where})"  # not as it
    found = [] if rhat.value <= MOST_RHAT else [f"R-hat {told}, expected at most {MOST_RHAT}"]
    for name, ess in (("bulk", ess_bulk), ("tail", ess_tail)):
        if not ess.value >= LEAST_ESS:
            found.append(f"{name} ESS {ess}, expected at least {LEAST_ESS}")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without what ArviZ's arithmetic says of draws that do not vary."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
