"""Names spelled otherwise or mistyped are corrected, classes in place of what they make are told, in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ulam
from ulam import bulk, mcmc, samplers, schedules
from ulam.jobs.models import CONSTRUCTORS, parse_schedule
from ulam.jobs.tables import make_sampler, read_tables, samplers_by_name
from ulam.programs.predictions import PREDICTIONS
from ulam.samplers.arguments import SPACINGS
from ulam.samplers.sigmas import SIGMAS
from ulam_kernels import dispatch
from ulam_kernels.arguments import ELSEWHERE, choice, likely, one_of

SCHEDULE = schedules.vp_linear(100)


def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x


DENOISER = ulam.Denoiser(net, SCHEDULE)
JOB = bulk.Job(DENOISER, samplers.DDIM(3), (3,), 2)


@pytest.mark.parametrize(
    "name, choices, meant",
    [
        ("epsilon", PREDICTIONS, "eps"),
        ("v_prediction", PREDICTIONS, "v"),
        ("v-prediction", PREDICTIONS, "v"),
        ("EPS", PREDICTIONS, "eps"),
        ("sample", PREDICTIONS, "x0"),
        ("x_0", PREDICTIONS, "x0"),
        ("scor", PREDICTIONS, "score"),
        ("rectified_flow", PREDICTIONS, "flow"),
        ("dpm++", samplers_by_name(), "dpmsolverpp"),
        ("DPM++ 2M", samplers_by_name(), "dpmsolverpp"),
        ("euler_a", samplers_by_name(), "eulerancestral"),
        ("euler-ancestral", samplers_by_name(), "eulerancestral"),
        ("dimm", samplers_by_name(), "ddim"),
        ("uni_pc", samplers_by_name(), "unipc"),
        ("cosine", CONSTRUCTORS, "vp_cosine"),
        ("linear", CONSTRUCTORS, "vp_linear"),
        ("vp-linear", CONSTRUCTORS, "vp_linear"),
        ("trailling", SPACINGS, "trailing"),
        ("beta_time", SIGMAS, "beta-time"),
        ("Karras", SIGMAS, "karras"),
        ("", PREDICTIONS, None),
        ("quantum", PREDICTIONS, None),
        ("x" * 1000, PREDICTIONS, None),
        (None, PREDICTIONS, None),
        (3, PREDICTIONS, None),
        ("a", (), None),
    ],
    ids=range(26),
)
def test_the_name_that_is_meant_is_found(name: Any, choices: Any, meant: str | None) -> None:
    assert likely(name, choices) == meant
    assert one_of(name, choices).endswith(f" (did you mean {meant}?)") == (meant is not None)


def test_a_name_of_two_things_names_both() -> None:
    assert one_of("velocity", PREDICTIONS).endswith(" (did you mean v or flow?)")


def test_a_right_name_and_its_spellings_always_mean_itself() -> None:
    for choices in (PREDICTIONS, [*samplers_by_name()], CONSTRUCTORS, SPACINGS, SIGMAS):
        assert all(likely(name.upper().replace("_", "-"), choices) == name for name in choices)


def test_every_name_from_elsewhere_is_one_of_ours_somewhere() -> None:
    ours = [*PREDICTIONS, *samplers_by_name(), *CONSTRUCTORS, *SPACINGS, *SIGMAS, *dispatch.NAMES]
    ours += ["posterior", "beta", "index", "bf16", "fp16", "vp_sigmoid"]
    spelled = {name.lower().replace("_", "").replace("-", "") for name in ours}
    assert {name for names in ELSEWHERE.values() for name in names} <= spelled
    assert all(name == name.lower() and not re.search(r"[-_ .]", name) for name in ELSEWHERE)


# Wherever a name is chosen: the call, and what its one line must say.
CHOSEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "predicts": (lambda _: ulam.Denoiser(net, SCHEDULE, "epsilon"), "predicts: got 'epsilon', .* mean eps"),
    "time": (lambda _: ulam.Denoiser(net, SCHEDULE, time="long"), "time: got 'long', .* mean index"),
    "derivatives": (lambda _: ulam.Denoiser(net, SCHEDULE, derivatives="backward"), "derivatives: .*"),
    "spacing": (lambda _: samplers.DDIM(5, spacing="trail"), "spacing: got 'trail', .* mean trailing"),
    "sigmas": (lambda _: samplers.Euler(5, sigmas="karas"), "sigmas: got 'karas', .* mean karras"),
    "variance": (lambda _: samplers.DDPM(5, variance="fixed_small"), "variance: got 'fixed_small', .* mean posterior"),
    "policy": (lambda _: ulam.Engine(DENOISER, (3,), 2, policy="shortes"), "policy: got 'shortes', .* mean shortest"),
    "backend": (lambda _: ulam.Engine(DENOISER, (3,), 2, backend="tritn"), "backend: got 'tritn', .* mean triton"),
    "weighting": (
        lambda _: ulam.objectives.denoising(DENOISER, torch.ones(2, 3), 5, step=0, weighting="min_snr"),
        "weighting: got 'min_snr', .* mean min-snr",
    ),
    "sampler": (lambda _: make_sampler("dpm++", {}), "sampler: got 'dpm\\+\\+', .* such as dpmsolverpp, \\S.* or "),
    "sampler's argument": (lambda _: make_sampler("ddim", {"step": 5}), "step: got 5, .* mean steps"),
    "schedule": (lambda _: parse_schedule("cosine(1000)"), "schedule: .* mean vp_cosine.*"),
    "key": (lambda folder: read_tables(_jobs(folder), ("model", "slots")), "'modle', .* mean model"),
    "format": (lambda _: bulk.Plan(JOB, format="safetensor"), "format: .* mean safetensors"),
    "choice": (lambda _: choice("TRACE", "kind", ("trace", "full")), "kind: got 'TRACE', .* mean trace"),
}  # fmt: skip


def _jobs(folder: Path) -> Path:
    (folder / "jobs.toml").write_text('modle = "digits"\n[[job]]\n')
    return folder / "jobs.toml"


@pytest.mark.parametrize("place", CHOSEN)
def test_names_are_corrected_wherever_one_is_chosen(place: str, tmp_path: Path) -> None:
    call, said = CHOSEN[place]
    with pytest.raises(ValueError, match=said) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


X = torch.ones(2, 3)
ENERGY = ulam.Energy(lambda x: x.square().sum(1))
# A class, or a function that makes one, where its result is expected.
CLASSES: dict[str, Callable[[], Any]] = {
    "ulam.sample": lambda: ulam.sample(DENOISER, samplers.DDIM, (3,), 2),  # type: ignore[arg-type]
    "Engine.submit": lambda: ulam.Engine(DENOISER, (3,), 2).submit(samplers.DDPM, 2),  # type: ignore[arg-type]
    "Denoiser.program": lambda: DENOISER.program(samplers.DDIM),  # type: ignore[arg-type]
    "bulk.Job": lambda: bulk.Plan(bulk.Job(DENOISER, samplers.DDIM, (3,), 2)),  # type: ignore[arg-type]
    "mcmc.run": lambda: mcmc.run(ENERGY, mcmc.ULA, chains=2, steps=3, shape=(3,)),  # type: ignore[arg-type]
    "tempering": lambda: mcmc.ParallelTempering(mcmc.HMC, [1.0, 2.0]),  # type: ignore[arg-type]
    "target": lambda: mcmc.run(mcmc.DoubleWell, mcmc.ULA(0.1), chains=2, steps=3),  # type: ignore[arg-type]
    "energy": lambda: ulam.Energy(torch.nn.Linear),
    "schedule": lambda: ulam.Denoiser(net, schedules.VariancePreserving),  # type: ignore[arg-type]
    "schedule's function": lambda: ulam.Denoiser(net, schedules.vp_linear),  # type: ignore[arg-type]
    "schedule of a program": lambda: samplers.DDIM(5).program(schedules.vp_cosine),  # type: ignore[arg-type]
    "schedule of a conversion": lambda: ulam.ops.predict_x0(X, X, 5, schedules.vp_cosine),  # type: ignore[arg-type]
    "network": lambda: ulam.Denoiser(torch.nn.Identity, SCHEDULE),
    "denoiser": lambda: ulam.Engine(ulam.Denoiser, (3,), 2),  # type: ignore[arg-type]
    "clip": lambda: samplers.DDIM(5, clip=samplers.DynamicThreshold),  # type: ignore[arg-type]
    "options": lambda: ulam.Engine(DENOISER, (3,), 2, options=ulam.NetworkOptions),  # type: ignore[arg-type]
    "score": lambda: mcmc.DenoiserScore(ulam.Denoiser, 0.5),  # type: ignore[arg-type]
    "tweedie": lambda: ulam.tweedie.mean(ulam.Denoiser, X, 0.5),  # type: ignore[arg-type]
    "loss": lambda: ulam.objectives.denoising(ulam.Denoiser, X, 5, step=0),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("place", CLASSES)
def test_a_class_in_place_of_what_it_makes_is_told(place: str) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"^[a-z]+: got (the class )?(\w+) itself, .*\2\(\.\.\.\)"
    ) as caught:
        CLASSES[place]()
    assert "\n" not in str(caught.value) and ", expected" in str(caught.value)
