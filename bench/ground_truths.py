"""NUTS, MAMS and HMC on posteriors whose moments are known: `python -m bench.ground_truths`.

Prints, for every posterior and sampler, the worst error of a mean and of a standard deviation in standard errors (those
of the run, by ArviZ' effective sample sizes, and of the truth together), and exits 1 where one is above 4. Needs
`pip install 'ulam[mcmc]' scikit-learn`. `--truth` runs HMC in float64 on the logistic regression instead, for
long, and writes what it finds into posteriors.npz.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bench import posterior_numbers, timing
from bench.posteriors import POSTERIORS, Logistic, Posterior, Truth

from ulam import mcmc
from ulam.mcmc.arviz_data import arviz

MOST_ERRORS = 4.0
SAMPLERS = {"nuts": mcmc.NUTS, "mams": mcmc.MAMS, "hmc": mcmc.HMC}
Array = npt.NDArray[np.float64]


def sample(name: str, posterior: Posterior, **options: Any) -> mcmc.Chains:
    """The default call of a sampler, on 64 chains: a warm-up of them all finds its step, masses and path lengths."""
    given: dict[str, Any] = {"chains": 64, "progress": False} | options
    return mcmc.run(posterior.target(), SAMPLERS[name](), shape=(posterior.dimension,), **given)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every parameter ``[p]``, with their standard errors, and what ArviZ says of them.

    ``ess``: the lower of the effective sample sizes for both.
    """

    mean: Array
    mean_error: Array
    sd: Array
    sd_error: Array
    ess: Array
    rhat: Array

    def errors(self, truth: Truth) -> Array:
        """How far means and standard deviations ``[2, p]`` are from the truth's, in standard errors of both."""
        found = np.stack([self.mean, self.sd]) - np.stack([truth.mean, truth.sd])
        ours, theirs = np.stack([self.mean_error, self.sd_error]), np.stack([truth.mean_error, truth.sd_error])
        return np.asarray(found / np.hypot(ours, theirs))


def moments(posterior: Posterior, draws: torch.Tensor) -> Moments:
    """Of the parameters of draws of x ``[chains, draws, dimension]``."""
    values = posterior.parameters(draws.double()).numpy()
    az = arviz()
    data = az.convert_to_dataset({"x": values})
    ess = np.stack([az.ess(data, method=method)["x"].values for method in ("mean", "sd")])
    mean, sd = values.mean((0, 1)), values.std((0, 1), ddof=1)
    mean_error, sd_error = (az.mcse(data, method=method)["x"].values for method in ("mean", "sd"))
    return Moments(mean, mean_error, sd, sd_error, ess.min(0), az.rhat(data)["x"].values)


def check(name: str, posterior: Posterior, options: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Run a sampler on a posterior, print how far it is from every truth; whether that is near enough, and figures."""
    begin = time.perf_counter()
    chains = sample(name, posterior, **options)
    seconds = time.perf_counter() - begin
    assert chains.draws is not None and chains.tuning is not None
    found, fine = moments(posterior, chains.draws), True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below
        verdict = chains.verdict().headline
    figures: dict[str, Any] = {
        "ess": float(found.ess.min()), "rhat": float(found.rhat.max()), "seconds": seconds, "verdict": verdict,
        "divergences": int(chains.divergences.sum()), "step": float(torch.as_tensor(chains.tuning.step)),
        "leapfrog": getattr(chains.tuning.sampler, "leapfrog", None), "seed": options.get("seed", 0),
    }  # fmt: skip
    for source, truth in posterior.truths.items():
        errors = np.abs(found.errors(truth))
        fine &= bool((errors < MOST_ERRORS).all())
        figures[source] = {
            of: {"errors": float(row.max()), "where": posterior.labels[int(row.argmax())]}
            for of, row in zip(("mean", "sd"), errors, strict=True)
        }
        worst = [f"{row.max():5.2f} {posterior.labels[int(row.argmax())]:<10}" for row in errors]
        numbers = f"{figures['ess']:9.0f} {figures['rhat']:7.4f} {seconds:8.1f} {figures['divergences']:8}"
        print(f"{posterior.name:<25}{name:<6}{source:<19}{worst[0]}{worst[1]}{numbers}  {verdict}", flush=True)
    return fine, figures


def write_truth() -> None:
    """Keep the moments of a long float64 run on the logistic regression, with their standard errors.

    In coordinates in which its Gaussian approximation at the mode is N(0, I), from which it does not differ by much.
    """
    posterior = Logistic()
    mode = torch.zeros(posterior.dimension, dtype=torch.float64)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return posterior.energy(x[None])[0]

    for _ in range(20):
        curvature = torch.func.hessian(energy)(mode)
        mode = mode - torch.linalg.solve(curvature, torch.func.grad(energy)(mode))
    half = torch.linalg.cholesky(torch.linalg.inv(curvature))
    target = mcmc.Energy(lambda y: posterior.energy(mode + y @ half.T))
    options = {"chains": 512, "warmup": 20, "steps": 400, "seed": 1, "dtype": torch.float64, "progress": False}
    chains = mcmc.run(target, mcmc.HMC(0.35, leapfrog=5), shape=(posterior.dimension,), **options)
    assert chains.draws is not None and chains.acceptance is not None
    found = moments(posterior, mode + chains.draws @ half.T)
    truth = Truth(found.mean, found.mean_error, found.sd, found.sd_error)
    posterior_numbers.write(posterior_numbers.as_arrays("logistic", truth))
    told = f"least ESS {found.ess.min():.0f}, worst R-hat {found.rhat.max():.5f}"
    print(f"{posterior.name}: {told}, acceptance {float(chains.acceptance.mean()):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ground_truths", description=__doc__)
    parser.add_argument("--posterior", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    parser.add_argument("--sampler", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--truth", action="store_true", help="write that of the logistic regression")
    parser.add_argument("--write", action="store_true", help="keep the figures under bench/results")
    options = parser.parse_args()
    if options.truth:
        write_truth()
        return
    titles = f"{'mean, errors':<16}{'sd, errors':<16}{'least ESS':>9} {'R-hat':>7}  seconds diverged  verdict"
    print(f"{'':<31}{'truth':<19}{titles}")
    found = {
        f"{of}, {name}": check(name, POSTERIORS[of](), {"seed": options.seed})
        for of in options.posterior
        for name in options.sampler
    }
    if options.write:
        print(timing.write("ground-truths", {}, truths={run: figures for run, (_, figures) in found.items()}))
    sys.exit(0 if all(fine for fine, _ in found.values()) else 1)


if __name__ == "__main__":
    main()
