"""Losses of denoisers as random cases, and their formulas written by hand."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import torch

from ulam import Denoiser, noise, objectives, schedules

VP = {
    "linear": schedules.vp_linear(40), "cosine": schedules.vp_cosine(25),
    "zero terminal SNR": schedules.zero_terminal_snr(schedules.vp_linear(30)),
}  # fmt: skip
CONTINUOUS = {"ve": schedules.ve(0.01, 50.0), "flow": schedules.flow(), "subvp": schedules.sub_vp()}
EDM = schedules.edm(sigma_data=0.7)
WEIGHTINGS = ("simple", "snr", "min-snr", "x0", "function")


class Net(torch.nn.Module):
    """A few elements mixed, with or without a second half, in double or single precision."""

    def __init__(self, channels: int, doubled: bool, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        out = 2 * channels if doubled else channels
        self.weight = torch.nn.Parameter(torch.randn(out, channels, generator=generator) / 2)
        self.bias = torch.nn.Parameter(torch.randn(out, generator=generator) / 3)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        one = [1] * (x.dim() - 2)
        return (
            torch.einsum("oc,bc...->bo...", weight, x).sin()
            + bias.view(-1, *one)
            + t.to(x.dtype).view(-1, 1, *one) / 50
        )


class Case(NamedTuple):
    loss: str
    schedule: schedules.Schedule
    predicts: str
    weighting: str
    dtype: torch.dtype
    x: torch.Tensor
    t: torch.Tensor
    z: torch.Tensor | None
    net: Net
    seed: int


def case(number: int, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16)) -> Case:
    choose, generator = random.Random(number), torch.Generator().manual_seed(number)
    loss = choose.choice(["denoising"] * 4 + ["edm", "hybrid", "vlb_term"])
    of_steps = loss in ("hybrid", "vlb_term")
    named = VP if of_steps else {**VP, **CONTINUOUS}
    name = choose.choice(list(named))
    schedule = EDM if loss == "edm" else named[name]
    predicts = choose.choice(["x0", "v", "flow", *(["eps", "score"] if name != "zero terminal SNR" else [])])
    dtype, shape = choose.choice(dtypes), choose.choice([(2,), (3, 2), (1, 2, 3)])
    batch = choose.choice([1, 3])
    x = torch.rand(batch, *shape, generator=generator, dtype=torch.float64).mul(1.8).sub(0.9).to(dtype)
    if schedule.steps:
        t = torch.randint(0, schedule.steps, (batch,), generator=generator)
        if not of_steps and choose.random() < 0.3:
            t = torch.rand(batch, generator=generator, dtype=torch.float64) * (schedule.steps - 2.01)
    else:
        t = torch.rand(batch, generator=generator, dtype=torch.float64) * (
            1 if schedule.kind in ("flow", "subvp") else 9
        )
        t = t.clamp(0.02, 0.98) if schedule.kind in ("flow", "subvp") else t + 0.01
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    z = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(wide) if choose.random() < 0.3 else None
    doubled = of_steps or choose.random() < 0.3
    return Case(loss, schedule, "raw" if loss == "edm" else predicts, choose.choice(WEIGHTINGS), dtype, x, t, z,
                Net(shape[0], doubled, number), choose.randrange(2**40))  # fmt: skip


def one(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def ours(c: Case, net: Any, x: torch.Tensor, step: int) -> torch.Tensor:
    given: dict[str, Any] = {"seed": c.seed, "step": step, "noise": c.z}
    denoiser = Denoiser(net, c.schedule, c.predicts)
    if c.loss == "edm":
        return objectives.edm(denoiser, x, c.t, **given)
    if c.loss == "hybrid":
        return objectives.hybrid(denoiser, x, c.t, weight=0.3, variance="learned_range", **given)
    if c.loss == "vlb_term":
        return objectives.vlb_term(denoiser, x, c.t, variance="learned_range", detach_mean=False, **given)
    weighting = (lambda snr: snr**0.5 + 0.1) if c.weighting == "function" else c.weighting
    return objectives.denoising(denoiser, x, c.t, weighting=weighting, gamma=3.0, **given)


def by_hand(c: Case, net: Any, x_0: torch.Tensor, step: int) -> torch.Tensor:
    """The loss in plain float64, of the network's own output on the state in the data's precision."""
    x = x_0.double()
    z = noise.for_examples(x_0, seed=c.seed, step=step, chains=None) if c.z is None else c.z
    z = z.double()
    alpha, sigma = (one(level, x) for level in c.schedule.levels(c.t))
    x_t = alpha * x + sigma * z
    if c.loss == "edm":
        data = c.schedule.sigma_data
        m = net((x_t / (sigma**2 + data**2).sqrt()).to(c.dtype), c.t.float()).double()[:, : x.shape[1]]
        D = (data**2 * x_t + sigma * data * (sigma**2 + data**2).sqrt() * m) / (sigma**2 + data**2)
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        return (weight * (D - x) ** 2).flatten(1).mean(1)
    out = net(x_t.to(c.dtype), c.t.float()).double()
    m, v = out[:, : x.shape[1]], out[:, x.shape[1] :]
    target = {"eps": z, "x0": x, "v": alpha * z - sigma * x, "score": -z / sigma, "flow": z - x}[c.predicts]
    simple = (m - target) ** 2
    if c.loss == "denoising":
        if c.weighting == "simple":
            return simple.flatten(1).mean(1)
        # D of the formulas of each prediction, and snr, which is 0 at zero terminal SNR
        gain = {"x0": 0 * sigma + 1, "eps": sigma / alpha, "v": sigma, "score": sigma**2 / alpha,
                "flow": sigma / (alpha + sigma)}[c.predicts]  # fmt: skip
        gain = gain / (alpha**2 + sigma**2) if c.predicts == "v" else gain
        snr = (alpha / sigma) ** 2
        weight = {"snr": snr, "min-snr": snr.clamp(max=3.0), "x0": snr * 0 + 1, "function": snr**0.5 + 0.1}
        return (weight[c.weighting] * gain**2 * simple).flatten(1).mean(1)
    D = {
        "eps": lambda: (x_t - sigma * m) / alpha, "x0": lambda: m, "score": lambda: (x_t + sigma**2 * m) / alpha,
        "v": lambda: (alpha * x_t - sigma * m) / (alpha**2 + sigma**2),
        "flow": lambda: (x_t - sigma * m) / (alpha + sigma),
    }[c.predicts]()  # fmt: skip
    term = of_guided_diffusion(c, x, x_t, D.detach() if c.loss == "hybrid" else D, v)
    assert c.schedule.steps is not None
    return simple.flatten(1).mean(1) + 0.3 * c.schedule.steps * term if c.loss == "hybrid" else term


def of_guided_diffusion(c: Case, x: torch.Tensor, x_t: torch.Tensor, D: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """_vb_terms_bpd of openai/guided-diffusion under LEARNED_RANGE, from its betas."""
    betas = torch.from_numpy(c.schedule.betas.copy())
    cumprod = torch.from_numpy(c.schedule.alphas_cumprod.copy())
    previous = torch.cat([torch.ones(1, dtype=torch.float64), cumprod[:-1]])
    rest = torch.from_numpy(c.schedule.variances.copy())
    before = torch.cat([torch.zeros(1, dtype=torch.float64), rest[:-1]])
    small = betas * before / rest
    small[0] = small[1]
    at = lambda table: one(table[c.t], x)  # noqa: E731
    log_variance = (v + 1) / 2 * at(betas.log()) + (1 - v) / 2 * at(small.log())
    apart = at(betas * previous.sqrt() / rest) * (x - D)
    d = at(small.log()) - log_variance
    kl = (d.exp() - 1 - d + apart**2 * (-log_variance).exp()) / 2
    cdf = lambda y: (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2  # noqa: E731
    above, below = (cdf((x - D + side / 255) * (-log_variance / 2).exp()) for side in (1, -1))
    nll = -(above - below).clamp(min=1e-12).log()  # no x is at the ends
    return torch.where(one(c.t, x) == 0, nll, kl).flatten(1).mean(1) / math.log(2)


def close(c: Case, found: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """To single precision, relative to the largest where many are summed."""
    assert found.isfinite().all(), c
    largest = float(expected.abs().max()) + 1e-30
    bound = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 5e-2}[c.dtype] * scale
    assert float((found.double() - expected).abs().max()) <= bound * max(largest, 1e-3), (c, found, expected)
