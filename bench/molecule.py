"""A water molecule at 300 K by SevenNet-0, BAOAB and MALA against quadrature: `python -m bench.molecule baoab mala`.

Needs `pip install sevenn`. The glue is that of docs/molecules.md. Of the 9 coordinates 3 are inner, r_1, r_2 and the
angle, with the Jacobian r_1^2 r_2^2 sin(angle): the law does not depend on the other 6. One thread is the fastest where
others share the machine. Prints means with standard errors of independent chains, and how many those are off by.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulam import Energy, mcmc

PAGE = Path(__file__).parents[1] / "docs" / "molecules.md"
KT = 8.617333e-5 * 300  # eV
START = torch.tensor([[0.0, 0.0, 0.0], [0.97, 0.0, 0.0], [-0.2347, 0.9412, 0.0]])
SIZES = {"chains": 64, "seed": 1, "warmup": 100, "steps": 360, "progress": False}
RANGES = (0.82, 1.14), (0.82, 1.14), (1.3, 2.4)  # angstrom, angstrom, rad
NODES, BATCH = 24, 512


def glue() -> dict[str, Any]:
    """What the page's first block defines."""
    variables: dict[str, Any] = {}
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    exec(block, variables)
    return variables


def inner(x: torch.Tensor) -> torch.Tensor:
    """r_1, r_2 and the angle of molecules [B, 3, 3], [B, 3]."""
    bonds = x[:, 1:] - x[:, :1]
    lengths = bonds.norm(dim=2)
    cosine = (bonds[:, 0] * bonds[:, 1]).sum(1) / lengths.prod(1)
    return torch.cat([lengths, cosine.clamp(-1, 1).acos()[:, None]], 1)


def quadrature(energy: Any) -> tuple[float, dict[str, float]]:
    """The least energy on the grid, and the means of E / kT above it, of a bond's length and of the angle."""
    axes = []
    for lo, hi in RANGES:
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        axes.append((lo + (hi - lo) * (nodes + 1) / 2, weights * (hi - lo) / 2))
    r, s, angle = (grid.ravel() for grid in np.meshgrid(*(nodes for nodes, _ in axes), indexing="ij"))
    weights = np.einsum("i,j,k->ijk", *(w for _, w in axes)).ravel() * r**2 * s**2 * np.sin(angle)
    zero = np.zeros_like(r)
    second = np.stack([s * np.cos(angle), s * np.sin(angle), zero], 1)
    x = torch.from_numpy(np.stack([np.zeros_like(second), np.stack([r, zero, zero], 1), second], 1)).float()
    with torch.no_grad():
        found = torch.cat([energy(part) for part in x.split(BATCH)]).double().numpy()
    least = float(found.min())
    p = weights * np.exp(-(found - least) / KT)
    p /= p.sum()
    return least, {"V / kT": p @ (found - least) / KT, "O-H": p @ r, "angle": p @ angle}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    made = glue()
    energy, mass = made["energy"], made["MASS"]
    least, exact = quadrature(energy)
    print(", ".join(f"{name} {value:.5f}" for name, value in exact.items()), "by quadrature", flush=True)
    same = {"temperature": KT, "mass": mass, "center_of_mass": "fixed"}
    samplers = {"baoab": mcmc.BAOAB(0.05, friction=3.0, **same), "mala": mcmc.MALA(0.006, **same)}
    for name in names:
        begin = time.perf_counter()
        record = ["kinetic"] if name == "baoab" else None
        chains = mcmc.run(
            Energy(energy), samplers[name], x_init=START.repeat(SIZES["chains"], 1, 1), observables={"inner": inner},
            record=record, **SIZES,
        )  # fmt: skip
        assert chains.observables is not None and chains.energies is not None
        by_chain = chains.observables["inner"].double().mean(1)
        means = {
            "V / kT": (chains.energies - least).mean(1) / KT,
            "O-H": by_chain[:, :2].mean(1),
            "angle": by_chain[:, 2],
        }
        for what, values in means.items():
            mean, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
            print(f"{name}: {what} {mean:.5f} +- {error:.5f}, {(mean - exact[what]) / error:+.2f} standard errors off")
        if chains.kinetic is not None:
            print(f"{name}: kinetic energy {float(chains.kinetic.mean()) / KT:.4f} kT of 6 degrees of freedom")
        rate = "" if chains.acceptance is None else f", acceptance {float(chains.acceptance.mean()):.3f}"
        print(f"{name}: {time.perf_counter() - begin:.0f} s{rate}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["baoab", "mala"])
