"""Losses of denoisers where something is 0, half precise, of another shape, or out of range: right, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ulam import Denoiser, noise, objectives, schedules

ZERO_SNR = schedules.from_betas([0.1, 0.2, 1.0])
CLEAN = schedules.from_alphas_cumprod([1.0, 0.6, 0.2])
VP, FLOW, EDM = schedules.vp_linear(10), schedules.flow(), schedules.edm()
X = torch.rand(3, 2, generator=torch.Generator().manual_seed(0)) - 0.5
Z = noise.for_examples(X, seed=0, step=1, chains=None)


def zero(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def squares(x: torch.Tensor) -> torch.Tensor:
    return x.double().pow(2).mean(1)


LIMITS = {
    # the weight of the prediction's own error where snr is 0 or infinite
    "eps, snr at alpha = 0": (ZERO_SNR, "eps", "snr", 2, squares(Z)),
    "eps, min-snr at alpha = 0": (ZERO_SNR, "eps", "min-snr", 2, squares(Z)),
    "eps, a function at alpha = 0": (ZERO_SNR, "eps", lambda snr: 3 * snr, 2, 3 * squares(Z)),
    "x0, snr at alpha = 0": (ZERO_SNR, "x0", "snr", 2, 0 * squares(Z)),
    "v, snr at t = 0": (CLEAN, "v", "snr", 0, squares(Z)),
    "flow, snr at t = 0": (FLOW, "flow", "snr", 0.0, squares(Z - X)),
    "flow, x0 at t = 1": (FLOW, "flow", "x0", 1.0, squares(Z - X)),
    "x0, min-snr at t = 0": (FLOW, "x0", "min-snr", 0.0, 5 * squares(X)),
    "eps, x0 at t = 0": (FLOW, "eps", "x0", 0.0, 0 * squares(X)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_weights_have_their_limits(name: str) -> None:
    schedule, predicts, weighting, t, expected = LIMITS[name]
    loss = objectives.denoising(Denoiser(zero, schedule, predicts), X, t, weighting=weighting, step=1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-12)


def test_edm_at_sigma_0_is_the_limit_of_small_sigma() -> None:
    """-z: (x_0 - c_skip x_t) / c_out [Karras 2022, table 1]."""
    denoiser = Denoiser(zero, EDM, "raw")
    torch.testing.assert_close(objectives.edm(denoiser, X, 0.0, step=1).double(), squares(Z), rtol=1e-6, atol=0)
    close = objectives.edm(denoiser, X, 1e-9, step=1)
    torch.testing.assert_close(close.double(), squares(Z), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_targets_of_half_precise_data_are_not_rounded(dtype: torch.dtype) -> None:
    """For a network that gives 0 the loss is the target's own square, in single precision."""
    x = X.to(dtype)
    cases = [(objectives.edm, EDM, "raw", 0.01), (objectives.denoising, FLOW, "v", 0.01)]
    cases += [(objectives.denoising, VP, predicts, 1) for predicts in ("eps", "x0", "v", "score", "flow")]
    for loss, schedule, predicts, t in cases:
        denoiser = Denoiser(zero, schedule, predicts)
        torch.testing.assert_close(
            loss(denoiser, x, t, step=1), loss(denoiser, x.float(), t, step=1), rtol=1e-6, atol=0
        )


def test_given_noise_takes_the_place_of_noise_v1() -> None:
    denoiser = Denoiser(lambda x, t: 0.3 * x, FLOW, "flow")
    given = objectives.denoising(denoiser, X, 0.3, noise=Z)
    assert torch.equal(given, objectives.denoising(denoiser, X, 0.3, step=1))
    swapped = objectives.denoising(denoiser, X, 0.3, noise=Z.flip(0))
    expected = squares(0.3 * (0.7 * X + 0.3 * Z.flip(0)) - (Z.flip(0) - X))  # the pair (x_0, z) of a coupling
    torch.testing.assert_close(swapped.double(), expected, rtol=1e-5, atol=0)
    z = Z.clone().requires_grad_()
    (found,) = torch.autograd.grad(objectives.denoising(denoiser, X, 0.3, noise=z).sum(), z)
    residual = 0.3 * (0.7 * X + 0.3 * Z) - (Z - X)
    torch.testing.assert_close(found, residual * (0.3 * 0.3 - 1))


def test_the_hybrid_loss_is_the_sum_of_its_terms() -> None:
    net = torch.nn.Linear(2, 4)
    denoiser, given = Denoiser(lambda x, t: net(x), VP), {"seed": 5, "step": 8}
    t = torch.tensor([0, 4, 9])
    together = objectives.hybrid(denoiser, X, t, weight=0.2, **given)
    apart = objectives.denoising(denoiser, X, t, **given) + 0.2 * 10 * objectives.vlb_term(denoiser, X, t, **given)
    torch.testing.assert_close(together, apart)
    for ours, theirs in zip(*(torch.autograd.grad(loss.sum(), list(net.parameters())) for loss in (together, apart)),
                            strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs)


SHAPES = ([8, 1], [1, 2], [8, 3], [8, 6], [8], [2, 8], [8, 2, 1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", ["denoising", "edm", "hybrid", "vlb_term", "continuous_bound"])
def test_outputs_of_another_shape_are_refused(loss: str, shape: list[int]) -> None:
    schedule, predicts = {"edm": (EDM, "raw"), "continuous_bound": (FLOW, "eps")}.get(loss, (VP, "eps"))
    denoiser = Denoiser(lambda x, t: torch.zeros(shape), schedule, predicts)
    with pytest.raises(ValueError, match=r"^net: got shape \[.*\], expected \[8, [24]\]"):
        getattr(objectives, loss)(denoiser, torch.zeros(8, 2), 1, step=0)


def call(
    loss: str = "denoising", schedule: Any = VP, predicts: str = "eps", t: Any = 1, x: Any = X, **given: Any
) -> Any:
    time = given.pop("time", "auto")
    denoiser = Denoiser(lambda x, t: torch.cat([x, x], 1), schedule, predicts, time=time)
    return getattr(objectives, loss)(denoiser, x, t, **{"step": 0, **given})


REFUSED = {
    r"step: got 1152921504606846976, expected 0 to 2\^60 - 1": lambda: call(step=2**60),
    r"step: got -1, expected 0 to 2\^60 - 1": lambda: call(step=-1),
    r"step: got None, expected the number of the training step": lambda: call(step=None),
    r"t under time='index': got 2\.4, expected whole training steps": lambda: call(t=2.4, time="index"),
    r"t: got 2\.4, expected whole training steps": lambda: call("hybrid", t=2.4),
    r"x_0: got 3 in size, expected numbers in \[-1, 1\]": lambda: call("hybrid", x=torch.full((2, 2), 3.0)),
    r"x_0: got nan in size, expected numbers in": lambda: call("vlb_term", x=torch.full((2, 2), torch.nan)),
    r"t: got one with sigma 0, expected another: weighting 'snr'": lambda: call(
        schedule=FLOW, predicts="x0", t=0.0, weighting="snr"
    ),
    r"t: got one with alpha 0, expected another: weighting 'x0'": lambda: call(schedule=ZERO_SNR, t=2, weighting="x0"),
    r"weighting: got a tensor .*, expected weights \[3\]": lambda: call(weighting=lambda snr: snr[:1]),
    r"weighting: got true or false, expected real numbers": lambda: call(weighting=lambda snr: snr > 1),
    r"weighting: got complex numbers, expected real": lambda: call(weighting=lambda snr: snr + 0j),
    r"weighting: got \[nan, nan, nan\], expected finite weights": lambda: call(weighting=lambda snr: snr * torch.nan),
    r"weighting: got \[-.*\], expected finite weights from 0 on": lambda: call(weighting=lambda snr: -snr),
    r"t: got one at which log snr is infinite": lambda: call("continuous_bound", FLOW, t=torch.tensor([0.5, 0.0, 0.5])),
    r"gamma: got 0, expected positive": lambda: call(weighting="min-snr", gamma=0),
    r"noise: got shape \[3, 1\], expected \[3, 2\] like x_0": lambda: call(noise=Z[:, :1]),
    r"noise: got torch\.float64 on cpu, expected torch\.float32 on cpu": lambda: call(noise=Z.double()),
    r"t: got 10\.0, expected numbers in \[0, 9\]": lambda: call(t=torch.tensor([1, 10, 2])),
    r"t: got -1\.0, expected numbers in \[0, 9\]": lambda: call(t=torch.tensor([1, -1, 2])),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        REFUSED[message]()


def test_what_the_host_does_not_read_gives_nan_where_it_would_be_refused() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda loss, t, x, **given: call(loss, t=t, x=x, **given), fullgraph=True, backend="eager")
    t = torch.tensor([1.0, 2.4, 30.0])
    assert compiled("denoising", t, X, time="index").isnan().tolist() == [False, True, True]
    outside = X.clone()
    outside[1] = 3.0
    assert compiled("hybrid", torch.ones(3), outside).isnan().tolist() == [False, True, False]


def test_index_networks_are_told_the_time_that_the_data_were_noised_at() -> None:
    told: list[torch.Tensor] = []
    net = lambda x, t: told.append(t) or x  # noqa: E731
    for t in (torch.tensor([0, 4, 9]), torch.tensor([0.0, 4.0, 9.0]), 4):
        objectives.denoising(Denoiser(net, VP, time="index"), X, t, step=0)
    assert [t.tolist() for t in told] == [[0, 4, 9], [0, 4, 9], [4, 4, 4]] and told[0].dtype == torch.int64
