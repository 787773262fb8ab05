"""Hashes of what ulam computes, so that a change can show that it moves no bit: `python -m bench.bits --out FILE`.

Every sampler on every kind of schedule and prediction, every MCMC sampler on built-in and torch densities, every fused
scheduler, every operation on every backend that is usable here, the estimators, losses and bounds, and the files that
the commands write. `--against FILE` compares with the hashes of an earlier commit on the same machine: it names what
differs and what is missing, and exits with 1 if anything does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import io
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ulam
import ulam_kernels
from ulam import bounds, ebm, mcmc, noise, objectives, ops, samplers, schedules, sure, tweedie, vae
from ulam_kernels import densities, likelihood
from ulam_kernels import mcmc as mcmc_kernels

SHAPE = (3, 4, 5)
SCHEDULES: dict[str, Any] = {
    "linear": schedules.vp_linear(1000, 1e-4, 0.02),
    "cosine": schedules.vp_cosine(1000),
    "terminal": schedules.zero_terminal_snr(schedules.vp_linear(1000, 1e-4, 0.02)),
    "ve": schedules.ve(0.01, 50.0),
    "sub-VP": schedules.sub_vp(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
}
Case = tuple[str, Callable[[], Any]]


def net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """Smooth in the state, the time and the condition; elementwise, so that no library's sums decide its bits."""
    m = torch.tanh(x) * 0.6 + (t.to(x.dtype) * 2.0**-11).view(-1, 1, 1, 1)
    return m if y is None else m + (y * 0.1).to(x.dtype).view(-1, 1, 1, 1)


def of_samplers() -> Iterator[Case]:
    denoisers = {
        (name, predicts): (schedule, predicts)
        for name, schedule in SCHEDULES.items()
        for predicts in ("eps", "x0", "v", "flow", "score", "raw")
    }
    for name, kind in vars(samplers).items():
        if not (inspect.isclass(kind) and issubclass(kind, samplers.GridSampler)) or kind is samplers.GridSampler:
            continue
        for (level, predicts), (schedule, _) in denoisers.items():
            for dtype in (torch.float32, torch.bfloat16):

                def draw(
                    kind: Any = kind, schedule: Any = schedule, predicts: str = predicts, dtype: Any = dtype
                ) -> Any:
                    options: dict[str, Any] = {}
                    if kind is samplers.RePaint:
                        options = {"known": torch.full(SHAPE, 0.25), "mask": torch.arange(60).view(SHAPE) % 2 > 0}
                    denoiser = ulam.Denoiser(net, schedule, predicts)
                    return ulam.sample(denoiser, kind(6), SHAPE, 5, 3, slots=2, dtype=dtype, **options)

                yield f"sampler {name}, {level}, {predicts}, {dtype}", draw
    for guidance in ({"guidance": 2.5}, {"guidance": 3.0, "guidance_rescale": 0.7, "guidance_interval": (0.2, 5.0)}):
        conditions = {"cond": {"y": torch.arange(5.0)}, "uncond": {"y": torch.full((5,), 10.0)}}
        denoiser = ulam.Denoiser(net, SCHEDULES["linear"])
        run = lambda g=guidance, c=conditions, d=denoiser: ulam.sample(  # noqa: E731
            d, samplers.DDIM(7, eta=0.3), SHAPE, 5, 4, **g, **c
        )
        yield f"guidance {sorted(guidance)}", run


def of_chains() -> Iterator[Case]:
    targets: dict[str, Any] = {
        "Gaussian": mcmc.Gaussian(torch.zeros(3), torch.tensor([1.0, 0.5, 2.0])),
        "double well": mcmc.DoubleWell(4),
        "Rosenbrock": mcmc.Rosenbrock(2),
        "funnel": mcmc.Funnel(3),
        "ring": mcmc.Ring(2),
        "energy": mcmc.Energy(lambda x: (x * x * x * x - x * x).sum(1)),
    }
    kinds = {"ULA": mcmc.ULA(0.05), "SGLD": mcmc.SGLD(0.05), "MALA": mcmc.MALA(0.1), "BAOAB": mcmc.BAOAB(0.1),
             "HMC": mcmc.HMC(0.1, 4), "HMC, fixed": mcmc.HMC(0.1, 4, jitter=0.0),
             "tempering": mcmc.ParallelTempering(mcmc.MALA(0.1), (1.0, 2.0, 4.0))}  # fmt: skip
    for (name, target), (label, sampler), adapt in itertools.product(targets.items(), kinds.items(), (False, True)):

        def run(target: Any = target, sampler: Any = sampler, adapt: bool = adapt) -> Any:
            rate = 0.7 if adapt else None
            shape = getattr(target, "shape", None) or (3,)
            made = mcmc.run(target, sampler, chains=6, steps=40, shape=shape, warmup=20, seed=5, adapt=rate, thin=3)
            return {key: value for key, value in vars(made).items() if isinstance(value, torch.Tensor)}

        yield f"mcmc {label}, {name}, adapt={adapt}", run


def of_schedulers() -> Iterator[Case]:
    try:
        import diffusers
    except ImportError:
        return
    from ulam.integrations.diffusers import fuse

    for name in sorted(name for name in dir(diffusers) if name.endswith("Scheduler")):

        def loop(name: str = name) -> Any:
            scheduler = fuse(getattr(diffusers, name)())
            scheduler.set_timesteps(7)
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(2, *SHAPE, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
            rest = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
            found = []
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                x = scheduler.step(torch.tanh(scaled) * 0.6, t, x, **rest).prev_sample
                found.append(x)
            return found

        yield f"fused {name}", loop


def of_operations() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    ids = {name: torch.randint(-(2**40), 2**40, (6,), generator=generator) for name in ("seed", "chain", "draw")}
    x, y, z, a, b = normal(6, 77), normal(6, 77), normal(6, 77), normal(6).abs(), normal(6).abs()
    well, energies = densities.double_well(77), (normal(6).double(), normal(6).double())
    given: dict[str, Callable[[str], Any]] = {
        "fill_normal": lambda k: [ulam_kernels.fill_normal(torch.empty(6, 77, dtype=d), **ids, backend=k)
                                  for d in (torch.float32, torch.bfloat16, torch.float16)],
        "affine": lambda k: [ulam_kernels.affine(x.to(d), y, a, b, backend=k) for d in (torch.float32, torch.bfloat16)],
        "moments": lambda k: ulam_kernels.moments(x, y, backend=k),
        "langevin": lambda k: mcmc_kernels.langevin(x, y, a, b, lo=-1, hi=2, **ids, backend=k),
        "squared_norm": lambda k: mcmc_kernels.squared_norm(x, backend=k),
        "accept": lambda k: mcmc_kernels.accept(energies[0] - energies[1], [(x.clone(), y)], **ids, backend=k),
        "evaluate": lambda k: mcmc_kernels.evaluate(well, x, backend=k),
        "gaussian_kl": lambda k: likelihood.gaussian_kl(x, z, y, z * 0.5, backend=k),
        "discretised_log_likelihood": lambda k: likelihood.discretised_log_likelihood(
            (x * 40).round().clamp(-127, 127) / 127.5, y * 0.3, z * 0.2, backend=k),
    }  # fmt: skip
    for name, function in given.items():
        for backend in ("reference", "cpu"):
            yield f"operation {name}, {backend}", lambda f=function, k=backend: f(k)


def of_theory() -> Iterator[Case]:
    x, line = torch.sin(torch.arange(240.0)).view(4, *SHAPE), torch.linspace(-1, 1, 12).view(4, 3)
    denoiser = ulam.Denoiser(net, SCHEDULES["linear"])
    plain = ulam.Denoiser(lambda x, t: torch.tanh(x) * 0.5, schedules.ve(0.01, 50.0), "x0")
    whole = torch.round((x + 1) * 127.5) / 127.5 - 1
    t = torch.tensor([3, 400, 700, 999])
    yield (
        "ops",
        lambda: [getattr(ops, name)(x, x * 0.3, t, SCHEDULES["linear"]) for name in ("predict_x0", "predict_v")],
    )
    yield "noise", lambda: noise.normal((6,), seed=3, chains=4)
    yield "tweedie", lambda: [tweedie.mean(plain, line, 0.5), tweedie.covariance_trace(plain, line, 0.5),
                              tweedie.covariance_diagonal(plain, line, 0.5)]  # fmt: skip
    yield "sure", lambda: sure.estimate(plain, line, 0.5)
    yield "bound", lambda: bounds.vlb(denoiser, whole)
    yield "likelihood", lambda: bounds.likelihood(plain, line, steps=9)
    raw, sigma = ulam.Denoiser(net, SCHEDULES["edm"], "raw"), torch.tensor([0.1, 0.5, 2.0, 20.0])
    yield "objectives", lambda: [objectives.denoising(denoiser, x, t, seed=1, step=2),
                                 objectives.edm(raw, x, sigma, seed=1, step=0)]  # fmt: skip
    yield (
        "persistent chains",
        lambda: ebm.PersistentChains(8, (3,), mcmc.ULA(0.1), seed=1).sample(lambda x: (x * x).sum(1), batch=4, steps=3),
    )
    yield (
        "vae",
        lambda: vae.GaussianVAE(
            lambda z: torch.cat([z, z[:, :1]], 1), (2,), lambda x: torch.cat([x[:, :2], x[:, 1:] * 0.1], 1)
        ).elbo(line, seed=1),
    )


COMMANDS = {
    "sample": ("sample", "--model", "digits", "--steps", "4", "--chains", "6", "--labels", "0-5", "--guidance", "2"),
    "sample of a sampler": ("sample", "--model", "digits", "--sampler", "dpmsolverpp", "--steps", "4", "--chains", "3"),
    "mcmc": ("mcmc", "--target", "double-well", "--chains", "8", "--steps", "50"),
}


def of_commands() -> Iterator[Case]:
    from ulam.cli import main as cli

    for name, words in COMMANDS.items():

        def run(words: tuple[str, ...] = words) -> Any:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                cli.main([*words, "--out", f"{folder}/out"])
                return {path.name: content(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()}

        yield f"command {name}", run


def content(path: Path) -> Any:
    """What a file holds that does not depend on the time or on where it lies."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}
    return path.read_bytes() if path.suffix in (".png", ".npy", ".safetensors") else None


def parts(value: Any) -> Iterator[bytes]:
    """Everything to hash: tensors and arrays with shape and dtype, numbers, names and what contains them."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        yield f"{value.dtype}{list(value.shape)}".encode()
        yield value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key).encode()
            yield from parts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from parts(inner)
    elif isinstance(value, int | float | str | bytes | bool | None):
        yield repr(value).encode()
    elif hasattr(value, "__dataclass_fields__"):
        yield from parts({name: getattr(value, name) for name in value.__dataclass_fields__})


def digest(case: Callable[[], Any]) -> str:
    """The hash of what a case returns, or of the kind of error that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = case()
        except Exception as error:
            return f"refused: {type(error).__name__}"
    found = hashlib.sha256()
    for part in parts(value):
        found.update(part)
    return found.hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the hashes here, as JSON")
    parser.add_argument("--against", type=Path, help="hashes to compare with")
    options = parser.parse_args(arguments)
    groups = (of_samplers, of_chains, of_schedulers, of_operations, of_theory, of_commands)
    found = {name: digest(case) for group in groups for name, case in group()}
    refused = sum(value.startswith("refused") for value in found.values())
    print(f"{len(found)} cases, {refused} of them refused")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if not options.against:
        return 0
    before = json.loads(options.against.read_text())
    differing = [name for name in before if found.get(name) != before[name]]
    for name in differing:
        print(f"{name}: was {before[name]}, is {found.get(name, 'missing')}")
    print(f"{len(differing)} of {len(before)} differ")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
