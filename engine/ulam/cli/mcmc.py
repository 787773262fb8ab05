"""`ulam mcmc`: Markov chains of a built-in density, or of an energy of your own, from the command line."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulam_kernels.arguments import described, one_of, positive
from ulam_kernels.validation import MAX_ELEMENTS

from ..files import json_text, whole, writable_folder, written
from ..jobs.models import call_factory
from ..mcmc.chains import Chains
from ..mcmc.densities import BuiltIn, DoubleWell, Funnel, Ring, Rosenbrock
from ..mcmc.gaussians import Gaussian, GaussianMixture
from ..mcmc.run import run as run_chains
from ..mcmc.targets import Energy, Target
from ..mcmc.verdicts.verdict import Verdict
from ..samplers import BAOAB, GHMC, HMC, MALA, MALT, MAMS, MCLMC, NUTS, SGLD, ULA, ParallelTempering
from ..samplers.mcmc.chain_sampler import ChainSampler
from . import info, mcmc_verdict
from . import mcmc_plots as plots
from .streams import FAILED

STEP = 0.1  # where a warm-up does not find it
WARM_UPS = ("pooled", "chain")
FILES = ("draws.npz", "report.json")  # beside the pictures

TARGETS: dict[str, tuple[Callable[[int], Target], int]] = {
    "gaussian": (lambda d: Gaussian(torch.zeros(d)), 2),
    "mixture": (lambda d: GaussianMixture(torch.stack([-2 * torch.ones(d), 2 * torch.ones(d)]), 0.7), 2),
    "double-well": (DoubleWell, 2),
    "rosenbrock": (Rosenbrock, 2),
    "funnel": (Funnel, 10),
    "ring": (Ring, 2),
}
SAMPLERS: dict[str, type[ChainSampler]] = {
    sampler.__name__.lower(): sampler for sampler in (ULA, MALA, BAOAB, HMC, NUTS, GHMC, MALT, MCLMC, MAMS, SGLD)
}
OPTIONS = ("temperature", "friction", "leapfrog", "jitter", "decay", "delay", "length", "max_depth")


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam mcmc`."""
    p.set_defaults(run=run)
    p.add_argument("--target", required=True, help=f"{', '.join(TARGETS)}, or module:factory for an energy of your own")
    p.add_argument("--dimension", type=int, metavar="D", help="of a built-in target (default 2; funnel 10)")
    p.add_argument("--shape", type=_sizes, metavar="C,H,W", help="of one state of your own energy, such as 1,8,8")
    p.add_argument("--sampler", default="mala", help=f"one of {', '.join(SAMPLERS)} (default mala)")
    p.add_argument(
        "--step", type=float, help=f"ULA's eta, a leapfrog or BAOAB's time step ({STEP}; pooled, chain: found)"
    )
    p.add_argument("--temperature", type=float, help="default 1")
    p.add_argument("--friction", type=float, help="baoab, ghmc, malt: default 1")
    p.add_argument("--leapfrog", type=int, help="hmc, malt, mams: leapfrog steps a transition (default 10; ghmc 1)")
    p.add_argument(
        "--jitter", type=float, metavar="J", help="hmc, mams: its path varies by this share (default 0.5; 0: not)"
    )
    p.add_argument("--max-depth", type=int, metavar="N", help="nuts: at most 2^N - 1 leapfrog steps (default 10)")
    p.add_argument("--length", type=float, help="mclmc: over which its direction is forgotten (default sqrt(d T))")
    p.add_argument("--decay", type=float, help="sgld: power of the decreasing steps (default 0.55)")
    p.add_argument("--delay", type=float, help="sgld: steps until they fall (default 1)")
    p.add_argument("--chains", type=int, default=64, metavar="N", help="default 64")
    p.add_argument("--steps", type=int, default=1000, metavar="N", help="after warm-up (default 1000)")
    p.add_argument("--warmup", type=int, default=500, metavar="N", help="steps that are not kept (default 500)")
    p.add_argument("--thin", type=int, default=1, metavar="N", help="keep every N-th state (default 1)")
    rates = ", ".join(f"{name} {make.rate:g}" for name, make in SAMPLERS.items() if make.rate)
    p.add_argument(
        "--adapt", type=_asked, metavar="RATE",
        help=f"tune steps to this acceptance in warm-up, each chain alone (default {rates}; others off), or off; "
        "chain: find the first step too; pooled: step, masses and paths of hmc and mams, from all chains together",
    )  # fmt: skip
    p.add_argument(
        "--temperatures",
        type=_numbers,
        metavar="T,T,...",
        help="parallel tempering, for separate modes: such as 1,2,4,8",
    )
    p.add_argument("--slots", type=int, help="chains in one batch (default: all)")
    p.add_argument("--seed", type=int, default=0, help="default 0; the same seed gives the same chains")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    p.add_argument("--backend", help="cpu, triton, cuda or reference (default: the fastest usable)")
    p.add_argument(
        "--no-verdict", action="store_true", help="do not say whether chains mixed (ArviZ is not needed then)"
    )
    p.add_argument("--no-plots", action="store_true", help="write no pictures (matplotlib is not needed then)")
    p.add_argument(
        "--plots", type=lambda text: tuple(text.split(",")), metavar="FILE,FILE,...",
        help=f"pictures to write, among {', '.join(plots.PLOTS)}, as .png or .pdf (default: all as .png)",
    )  # fmt: skip
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder for {', '.join(FILES)} and pictures")


def run(options: argparse.Namespace) -> int:
    """Run the chains, write draws, report and plots, say whether they mixed; the exit code: 1 unless they did."""
    if not options.no_plots:
        plots.require_matplotlib()
    if not options.no_verdict:
        mcmc_verdict.require_arviz()
    target, sampler = _target(options), _tempered(options, _sampler(options))
    adapt, names = _adapt(options, sampler), [*FILES, *_pictures(options, target)]
    how = f"warm-up {adapt}" if isinstance(adapt, str) else f"adapted to {adapt:g}" if adapt else "not adapted"
    print(f"ulam: {options.chains} chains of {target!r}, {sampler}, {how}")
    with writable_folder(options.out, tuple(names)):
        chains = run_chains(
            target, sampler, chains=options.chains, steps=options.steps, shape=options.shape, seed=options.seed,
            warmup=options.warmup, thin=options.thin, adapt=adapt, slots=options.slots, device=options.device,
            backend=options.backend,
        )  # fmt: skip
        verdict = None if options.no_verdict else mcmc_verdict.of(chains)
        report = _report(options, chains, adapt, verdict)
        paths, lost = written(options.out, lambda folder: _write(folder, names, options, target, chains, report))
    rate = "" if chains.acceptance is None else f", acceptance {float(chains.acceptance.mean()):.3f}"
    print(f"ulam: {chains.report['seconds']:.2f} s{rate}; wrote {', '.join(paths)}")
    if verdict is not None:
        tuned = sampler if chains.tuning is None else chains.tuning.sampler
        for line in mcmc_verdict.told(verdict, options, _defaults(), chains, target, tuned):
            print(line)
    if lost is not None:
        raise lost
    return 0 if verdict is None or verdict.passed else FAILED


def _defaults() -> dict[str, Any]:
    """Of every option of the command."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    given = vars(parser.parse_args(["--target", "", "--out", ""]))
    return {name: value for name, value in given.items() if name != "run"}


def _asked(text: str) -> float | str:
    """What to adapt to, 0 for off."""
    try:
        return text if text in WARM_UPS else 0.0 if text == "off" else positive(float(text), "adapt")
    except ValueError:
        right = "a target acceptance in (0, 1), or off, pooled or chain"
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {right}") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 1,2,4,8") from None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers such as 1,8,8") from None


def _target(options: argparse.Namespace) -> Target:
    name = options.target
    if name in TARGETS:
        if options.shape is not None:
            raise ValueError(f"shape: got {options.shape}, expected none: {name} has its own, give --dimension")
        if options.dimension is not None and not 1 <= options.dimension <= MAX_ELEMENTS:
            raise ValueError(f"dimension: got {described(options.dimension)}, expected 1 to 2^30")
        make, default = TARGETS[name]
        return make(default if options.dimension is None else options.dimension)
    if ":" not in name:
        raise ValueError(f"target: got {name!r}, expected {one_of(name, TARGETS)}, or module:factory")
    if options.dimension is not None:
        raise ValueError(f"dimension: got {options.dimension}, expected none: it is for built-in targets, give --shape")
    if options.shape is None:
        raise ValueError("shape: got none, expected that of a state of your own energy, such as --shape 2")
    made: Any = call_factory("target", name)
    return made if hasattr(made, "bind") else Energy(made)


def _sampler(options: argparse.Namespace) -> ChainSampler:
    name = options.sampler.lower()
    if name not in SAMPLERS:
        raise ValueError(f"sampler: got {options.sampler!r}, expected {one_of(name, SAMPLERS)}")
    make = SAMPLERS[name]
    given = {option: getattr(options, option) for option in OPTIONS if getattr(options, option) is not None}
    taken = make.__dataclass_fields__
    if strange := [option for option in given if option not in taken]:
        came = f"{strange[0]}: got {given[strange[0]]}"
        raise ValueError(f"{came}, expected none: the sampler {name} does not take it")
    finds = options.step is None and options.adapt in WARM_UPS and make.rate is not None and not options.temperatures
    step = STEP if options.step is None and not finds else options.step
    made: ChainSampler = make(step, **given)  # type: ignore[call-arg]
    return made


def _tempered(options: argparse.Namespace, sampler: ChainSampler) -> ChainSampler | ParallelTempering:
    return sampler if options.temperatures is None else ParallelTempering(sampler, options.temperatures)


def _adapt(options: argparse.Namespace, sampler: ChainSampler | ParallelTempering) -> float | str | None:
    """The acceptance that steps are adapted to: by default the sampler's, where there is a warm-up."""
    if options.adapt is not None:
        return options.adapt or None
    inner = sampler.sampler if isinstance(sampler, ParallelTempering) else sampler
    return inner.rate if options.warmup > 0 else None


def _pictures(options: argparse.Namespace, target: Target) -> list[str]:
    """The names of the pictures to write."""
    if options.no_plots:
        if options.plots is not None:
            raise ValueError("plots: got some beside --no-plots, expected one of the two")
        return []
    shape = target.shape if isinstance(target, BuiltIn) else options.shape
    return plots.checked_names(options.plots, math.prod(shape))


def _write(
    folder: Path, names: list[str], options: argparse.Namespace, target: Target, chains: Chains, report: dict[str, Any]
) -> list[str]:
    """Write the files, all of them whole or none; their names."""
    temperature = (options.temperatures or [options.temperature])[0]
    exact = target if isinstance(target, BuiltIn) and temperature in (None, 1.0) else None
    assert chains.draws is not None
    arrays = {"draws": chains.draws.cpu().numpy(), "chains": chains.ids.numpy()}
    for name in ("energies", "acceptance", "divergences", "diverging", "step", "tree_depth", "leapfrogs"):
        if (values := getattr(chains, name)) is not None:
            arrays[name] = values.cpu().numpy()
    with whole(*(folder / name for name in names)) as paths:
        for name, path in zip(names, paths, strict=True):
            if name == "draws.npz":
                with path.open("wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
            elif name == "report.json":
                path.write_text(json_text({**report, "files": names}))
            else:
                plots.save(plots.PLOTS[name.partition(".")[0]](chains, exact), path, name)
    return names


def _report(
    options: argparse.Namespace, chains: Chains, adapt: float | str | None, verdict: Verdict | None
) -> dict[str, Any]:
    finite = [float(value) for value in chains.mean().flatten()[:16]]
    return {
        **chains.report,
        "seed": options.seed,
        "adapt": adapt,
        "acceptance": None if chains.acceptance is None else float(chains.acceptance.mean()),
        "step": {"least": float(chains.step.min()), "most": float(chains.step.max())},
        "divergent_chains": chains.ids[chains.divergences.cpu() > 0].tolist(),
        "mean": finite,
        "variance": [float(value) for value in chains.variance().flatten()[:16]],
        "swaps": None if chains.swaps is None else chains.swaps.mean(0).tolist(),
        "verdict": None if verdict is None else mcmc_verdict.reported(verdict),
        "summary": None if verdict is None else json.loads(verdict.table.head(64).to_json(orient="index")),
        "versions": info.versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
