"""NUTS of ulam, blackjax and numpyro on the same targets: `python -m bench.mcmc_peers --peers PYTHON`.

PYTHON: that of an environment with the others, which ulam's own need not have:

    python -m venv VENV && VENV/bin/pip install jax==0.10.2 blackjax==1.7.1 numpyro==0.22.0

Every package runs in a process of its own, from the same first states, with the same step, mass 1 and depths up to 10,
in float32 on the CPU, two cores; none adapts. Effective samples are the least bulk ESS of a parameter, by ArviZ on all
chains of the last run; a second is one of sampling, of the median run: compilation, and the run that the first states
come from, are reported apart. Gradients "spent" are those that a batch evaluates, also for chains that wait: ulam
counts them, and of the others it is the least that is possible, that of the longest path at each transition. Prints a
table, and with `--write` keeps the figures as bench/results/mcmc-peers-DATE.json. A package that is missing leaves its
rows out, and says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bench import posteriors, timing

from ulam import mcmc

PACKAGES = ("ulam", "blackjax", "numpyro")
MAX_DEPTH = 10
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """A target, the step that all packages take, and how many transitions a run has, by its number of chains.

    ``density``: its name in `bench.mcmc_peers_jax`; ``data``: what that needs; ``exact``: draws of a built-in density,
    where chains begin; ``parameters``: of x, as in `bench.posteriors`.
    """

    target: Any
    dimension: int
    step: float
    steps: dict[int, int]
    density: str
    data: Arrays = field(default_factory=dict)
    parameters: Callable[[torch.Tensor], torch.Tensor] = lambda x: x

    def first(self, chains: int) -> torch.Tensor:
        """First states ``[chains, d]``: of the law itself where it can be drawn, else of a run of 64 chains."""
        if hasattr(self.target, "sample"):
            return self.target.sample(chains, seed=1).float()
        options = {"chains": 64, "shape": (self.dimension,), "warmup": 60, "steps": 48, "thin": 3, "seed": 1}
        draws = mcmc.run(self.target, mcmc.NUTS(self.step), adapt=0.8, progress=False, **options).draws
        return draws.transpose(0, 1).flatten(0, 1)[-chains:]


def eight_schools() -> Case:
    model = posteriors.EightSchools()
    data = {"y": model.y.numpy(), "s": model.s.numpy()}
    return of_model(model, {64: 400, 1024: 100}, "eight_schools", data)


def item_response() -> Case:
    model = posteriors.ItemResponse()
    asked, counts = (tensor.numpy() for tensor in model.constants(torch.zeros(1)))
    data = {"asked": asked, "counts": counts, "students": np.array(model.students)}
    case = of_model(model, {64: 50, 1024: 10}, "item_response", data)
    return replace(case, step=0.02)  # the largest curvature is 5581: leapfrog steps of mass 1 are stable below 0.0268


def logistic() -> Case:
    model = posteriors.Logistic()
    features, sums = (tensor.numpy() for tensor in model.constants(torch.zeros(1)))
    return of_model(model, {64: 200, 1024: 50}, "logistic", {"features": features, "sums": sums})


def of_model(model: posteriors.Posterior, steps: dict[int, int], density: str, data: Arrays) -> Case:
    return Case(model.target(), model.dimension, model.step, steps, density, data, model.parameters)


def funnel() -> Case:
    return Case(mcmc.Funnel(10), 10, 0.1, {64: 200, 1024: 50}, "funnel")


def gaussian() -> Case:
    variances = torch.logspace(-1, 1, 100, dtype=torch.float64)
    target = mcmc.Gaussian(torch.zeros(100), variances)
    return Case(target, 100, 0.25, {64: 200, 1024: 50}, "gaussian", {"precision": (1 / variances).numpy()})


def rosenbrock() -> Case:
    target = mcmc.Rosenbrock(10)
    data = {"a": np.array(target.a), "b": np.array(target.b)}
    return Case(target, 10, 0.1, {64: 200, 1024: 50}, "rosenbrock", data)


CASES = {
    f.__name__.replace("_", "-"): f for f in (eight_schools, item_response, logistic, funnel, gaussian, rosenbrock)
}


def ulam_run(case: Case, x: torch.Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """What `bench.mcmc_peers_jax` gives for the others; nothing is compiled."""
    options = {"steps": settings["steps"], "chains": len(x), "x_init": x, "thin": 1, "progress": False}
    seconds = []
    for run in range(settings["runs"] + 1):  # the first run does not count
        begin = time.perf_counter()
        chains = mcmc.run(case.target, mcmc.NUTS(settings["step"], MAX_DEPTH), seed=run, **options)
        seconds.append(time.perf_counter() - begin)
    spent = np.array(chains.report["gradients"])
    found = {"draws": chains.draws, "leapfrogs": chains.leapfrogs, "seconds": seconds[1:]}
    return {**found, "compilation": 0.0, "gradients": spent}


def measure(name: str, chains: int, packages: list[str], peers: str | None, runs: int) -> dict[str, dict[str, float]]:
    """The figures of every package that there is, for one target and number of chains."""
    case, found = CASES[name](), {}
    begin = time.perf_counter()
    x = case.first(chains)
    print(f"{name}, {chains} chains: first states in {time.perf_counter() - begin:.1f} s", flush=True)
    settings = {"steps": case.steps[chains], "step": case.step, "max_depth": MAX_DEPTH, "runs": runs}
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "in.npz"), Path(folder, "out.npz")
            told = json.dumps({**settings, "package": package, "density": case.density})
            np.savez(given, x_init=x.numpy(), settings=np.array(told), **case.data)
            here = Path(__file__).parent
            if package == "ulam":
                command = [sys.executable, "-m", "bench.mcmc_peers", "--child", name, str(given), str(made)]
            else:
                command = [str(peers), str(here / "mcmc_peers_jax.py"), str(given), str(made)]
            process = subprocess.run(command, cwd=here.parent, stderr=subprocess.PIPE, text=True)
            if process.returncode:
                print(f"  {package}: left out ({process.stderr.strip().splitlines()[-1]})", flush=True)
                continue
            with np.load(made) as archive:
                found[package] = figures(case, dict(archive))
        print(row(package, found[package]), flush=True)
    return found


def figures(case: Case, made: Arrays) -> dict[str, float]:
    """Effective samples and gradients, in all and a second, of what a run left."""
    import arviz

    values = case.parameters(torch.from_numpy(made["draws"]).double()).numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains")
        ess = float(arviz.ess(arviz.convert_to_dataset({"x": values}))["x"].min())
    leaps, seconds = made["leapfrogs"].astype(np.int64), statistics.median(made["seconds"].tolist())
    in_step = len(leaps) * int(leaps.max(0).sum())
    spent = int(made.get("gradients", in_step))
    return {
        "ess": ess,
        "seconds": seconds,
        "ess_per_second": ess / seconds,
        "compilation": float(made["compilation"]),
        "gradients": int(leaps.sum()),
        "gradients_per_second": int(leaps.sum()) / seconds,
        "spent": spent,
        "spent_in_step": in_step,
        "spent_per_second": spent / seconds,
    }


HEADER = (
    f"  {'':<10}{'ESS':>9}{'seconds':>10}{'ESS / s':>10}{'compile s':>11}{'gradients':>12}{'spent':>12}"
    f"{'gradients / s':>15}"
)


def row(package: str, of: dict[str, float]) -> str:
    """A line of the table."""
    return (
        f"  {package:<10}{of['ess']:>9.0f}{of['seconds']:>10.3f}{of['ess_per_second']:>10.0f}{of['compilation']:>11.1f}"
        f"{of['gradients']:>12}{of['spent']:>12}{of['gradients_per_second']:>15.0f}"
    )


def child(name: str, given: str, made: str) -> None:
    """Ulam's run, in a process of its own."""
    with np.load(given) as archive:
        settings, x = json.loads(str(archive["settings"])), torch.from_numpy(archive["x_init"])
    np.savez(made, **{key: np.asarray(value) for key, value in ulam_run(CASES[name](), x, settings).items()})


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.mcmc_peers", description=__doc__)
    parser.add_argument("--peers", help="Python with jax, blackjax and numpyro; without it ulam runs alone")
    parser.add_argument("--target", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--package", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--chains", nargs="+", type=int, choices=(64, 1024), default=[1024])
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--write", action="store_true", help="keep the figures under bench/results")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    packages = [package for package in options.package if package == "ulam" or options.peers]
    if missing := [package for package in options.package if package not in packages]:
        print(f"peers: got none, expected the Python of an environment with {' and '.join(missing)}: left out")
    print(HEADER)
    found = {
        f"{name}, {chains} chains": measure(name, chains, packages, options.peers, options.runs)
        for name in options.target
        for chains in options.chains
    }
    if "funnel" in options.target:
        for title, of in found.items():
            if title.startswith("funnel") and "ulam" in of:
                share = of["ulam"]["spent"] / of["ulam"]["spent_in_step"]
                print(f"{title}: ulam spends {share:.3f} of the gradients of its own chains in step")
    if options.write:
        print(timing.write("mcmc-peers", {}, peers=found))


if __name__ == "__main__":
    main()
