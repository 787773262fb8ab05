"""What is public in ulam and calls kernels, under torch's tracers and fakes: right for other inputs, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import ulam
from ulam import mcmc, noise, objectives, ops, sure, tweedie
from ulam.estimation import measure as check
from ulam.estimation.forward import add_noise
from ulam.estimation.likelihood import likelihood
from ulam.samplers import DDIM

pytestmark = [pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
              pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")]  # fmt: skip
SCHEDULE = ulam.schedules.vp_linear(1000)
DENOISER = ulam.Denoiser(lambda x, t: x * 0.5, SCHEDULE)
GUIDED = ulam.Denoiser(lambda x, t, c: x * c, SCHEDULE)
X, TIMES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 7])
GAUSSIAN = mcmc.Gaussian(torch.zeros(3), torch.ones(3))


class Entry(NamedTuple):
    call: Callable[[torch.Tensor], torch.Tensor]
    given: torch.Tensor
    refused: str | None = None  # the name that tracers are refused by
    by_jit: str | None = None  # the name that torch.jit.trace is, where it differs


CONVERSIONS = ("predict_x0", "predict_eps", "predict_v", "score", "posterior_mean", "posterior_variance")


def conversion(name: str, at_t: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    convert = getattr(ops, name)
    return lambda given: convert(X, X, given, SCHEDULE) if at_t else convert(given, 0.5 * given, 3, SCHEDULE)


ENTRIES = {
    "normal": Entry(lambda x: noise.normal((3, 4, 4), seed=1, chains=2) + x, X),
    "normal of ids": Entry(lambda ids: noise.normal((3,), seed=1, chains=ids), TIMES),
    "add_noise": Entry(lambda x: add_noise(x, 3, SCHEDULE, seed=1, step=2).x_t, X),
    "add_noise at t": Entry(lambda t: add_noise(t[:, None] * torch.ones(3), t, SCHEDULE, step=2).x_t, TIMES),
    "denoising": Entry(lambda x: objectives.denoising(DENOISER, x, 3, step=2), X),
    "denoising_score_matching": Entry(
        lambda x: objectives.denoising_score_matching(lambda y, _: -y, x, torch.ones(2), step=0), X
    ),
    "second_order_score_matching": Entry(
        lambda x: objectives.second_order_score_matching(
            lambda y, _: (y, y.flatten(1)[:, :, None]), lambda y, _: -y, x, torch.ones(2), form="low-rank", step=0
        ),
        X,
    ),
    "sliced_score_matching": Entry(lambda x: objectives.sliced_score_matching(lambda y: -(y**3), x, step=0), X),
    "implicit_score_matching": Entry(
        lambda x: objectives.implicit_score_matching(lambda y: -(y**3), x), X[:, :1, :2, :2].contiguous()
    ),
    "sample": Entry(lambda x: ulam.sample(DENOISER, DDIM(steps=3), (3, 4, 4), 2, x_init=x), X, "sample"),
    "likelihood": Entry(lambda x: likelihood(DENOISER, x, steps=2).per_chain, X, "likelihood"),
    "mean": Entry(lambda y: tweedie.mean(DENOISER, y, 1.0), X, "y"),
    "mean at sigma": Entry(lambda sigma: tweedie.mean(DENOISER, X, sigma), TIMES.float(), "(y|sigma)"),
    "mean with cond": Entry(
        lambda c: tweedie.mean(GUIDED, X, 1.0, {"c": c}), X, r"(y|cond\['c'\])"
    ),
    "covariance_product": Entry(lambda y: tweedie.covariance_product(DENOISER, y, 1.0, y + 1), X, "y"),
    "covariance_product along v": Entry(lambda v: tweedie.covariance_product(DENOISER, X, 1.0, v), X, "(y|v)"),
    "covariance_diagonal": Entry(lambda y: tweedie.covariance_diagonal(DENOISER, y, 1.0, samples=1), X, "y"),
    "covariance_trace": Entry(lambda y: tweedie.covariance_trace(DENOISER, y, 1.0, samples=6).value, X, "y"),
    "eigenpairs": Entry(lambda y: tweedie.eigenpairs(DENOISER, y, 1.0, 2)[0], X, "y"),
    "covariance": Entry(lambda y: tweedie.covariance(DENOISER, y, 1.0), X, "y"),
    "cumulant": Entry(lambda y: tweedie.cumulant(DENOISER, y, 1.0, [y + 1] * 4, order=4), X, "y"),
    "cumulant along v": Entry(lambda v: tweedie.cumulant(DENOISER, X, 1.0, [X, v], order=2), X, r"(y|v\[1\])"),
    "natural": Entry(
        lambda y: tweedie.natural(lambda y: -y.flatten(1).sum(1), y, log_base=lambda y: y.flatten(1).sum(1)), X, "y"
    ),
    "robbins": Entry(lambda x: tweedie.robbins(torch.tensor([3, 2, 1]), x.long().clamp(0, 2)), X, "x"),
    "third_cumulant": Entry(lambda y: tweedie.third_cumulant(DENOISER, y, 1.0, y + 1), X, "y"),
    "sure": Entry(lambda y: sure.estimate(DENOISER, y, 1.0).per_chain, X, "y"),
    "measure": Entry(lambda x: next(check.measure(DENOISER, x.repeat(2, 1, 1, 1), [1.0])).sure, X, "measure"),
    "vlb": Entry(lambda x: ulam.bounds.vlb(DENOISER, x).per_chain, X.clamp(-1, 1), "vlb"),
    "mcmc": Entry(lambda x: mcmc.run(GAUSSIAN, mcmc.ULA(0.1), chains=2, seed=1, x_init=x, steps=3).draws, X, "run"),
    **{f"{name} of x": Entry(conversion(name, at_t=False), X) for name in CONVERSIONS},
    **{f"{name} at t": Entry(conversion(name, at_t=True), TIMES, "t") for name in CONVERSIONS},
}  # fmt: skip
TRACERS: dict[str, Callable[[Any, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    mode: lambda f, x, mode=mode: make_fx(f, tracing_mode=mode)(x) for mode in ("real", "fake", "symbolic")
} | {"torch.jit.trace": lambda f, x: torch.jit.trace(f, x, check_trace=False)}


@pytest.mark.parametrize("by", TRACERS)
@pytest.mark.parametrize("name", ENTRIES)
def test_a_recorded_entry_is_right_for_other_inputs_or_refused(name: str, by: str) -> None:
    entry = ENTRIES[name]
    refused = (entry.by_jit if by == "torch.jit.trace" else None) or entry.refused
    if refused is not None:
        with pytest.raises(RuntimeError, match=rf"^{refused}: got a (tensor|call) under [^\n]*, expected [^\n]*\Z"):
            TRACERS[by](entry.call, entry.given)
        return
    graph = TRACERS[by](entry.call, entry.given)
    other = (entry.given.flip(0) * 0.5).to(entry.given.dtype)
    assert torch.equal(graph(other), entry.call(other))


@pytest.mark.parametrize("name", ENTRIES)
def test_fake_inputs(name: str) -> None:
    entry, mode = ENTRIES[name], FakeTensorMode()
    with mode:
        if entry.refused is None:
            made = entry.call(mode.from_tensor(entry.given))
            assert isinstance(made, FakeTensor)
        else:
            with pytest.raises(
                RuntimeError, match=rf"^{entry.refused}: got a (tensor|call) under FakeTensorMode, expected"
            ):
                entry.call(mode.from_tensor(entry.given))


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.refused is not None])
@pytest.mark.parametrize("by", [None, *TRACERS])
def test_meta_inputs_are_refused(name: str, by: str | None) -> None:
    """They have no numbers, whatever records the call."""
    entry = ENTRIES[name]
    with pytest.raises((RuntimeError, ValueError), match=r"^[\w\[\]']+: got [^\n]*, expected [^\n]*\Z"):
        given = entry.given.to("meta")
        entry.call(given) if by is None else TRACERS[by](entry.call, given)
