"""The engine and `ulam.sample`: who shares a batch changes no bit, and every promise about the network holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, WHOLE, Silent, draw, net
from ulam.models import load_digits
from ulam.samplers import DDIM, DDPM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")


@pytest.mark.parametrize("slots", [1, 3, 64, 100])
def test_bits_do_not_depend_on_slots(slots):
    assert torch.equal(draw(slots=slots), WHOLE)


def test_bits_do_not_depend_on_company_or_order():
    assert torch.equal(draw(chains=[7])[0], WHOLE[7])
    assert torch.equal(draw(chains=range(63, -1, -1)), WHOLE.flip(0))
    assert torch.equal(draw(chains=torch.tensor([40, 2, 9])), WHOLE[[40, 2, 9]])


@pytest.mark.parametrize("slots", [2, 5, 64])
def test_bits_do_not_depend_on_other_jobs(slots):
    other = DDIM(steps=7, eta=0.3)
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=slots)
    first = engine.submit(DDPM(steps=11), 64, seed=5)
    second = engine.submit(other, range(3, 12), seed=5)
    results = engine.run()
    assert torch.equal(results[first], WHOLE)
    assert torch.equal(results[second], draw(other, range(3, 12)))
    assert engine.report.chains == 73 and engine.report.evaluations == 64 * 11 + 9 * 7


def test_reference_backend_gives_the_same_bits():
    assert torch.equal(draw(chains=9, backend="reference"), WHOLE[:9])


def test_network_is_called_once_a_row_in_order_with_training_indices():
    told = []

    def spy(x, t):
        assert x.shape == (4, *SHAPE) and t.shape == (4,) and t.dtype == torch.float32
        assert torch.is_inference_mode_enabled()
        told.append(t.clone())
        return torch.zeros_like(x)

    draw(DDIM(steps=10), 4, network=spy)
    assert [t.unique().tolist() for t in told] == [[t] for t in range(900, -1, -100)]


def test_index_time_is_int64():
    def spy(x, t):
        assert t.dtype == torch.int64
        return torch.zeros_like(x)

    draw(DDIM(steps=10), 4, denoiser=ulam.Denoiser(spy, SCHEDULE, time="index"))


def test_stream_yields_each_chain_once_and_short_jobs_overtake():
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=8)
    slow, fast = engine.submit(DDPM(steps=40), 4, seed=5), engine.submit(DDPM(steps=11), 12, seed=5)
    results = list(engine.stream())
    assert sorted((r.job is slow, r.chain) for r in results) == [(False, i) for i in range(12)] + [
        (True, i) for i in range(4)
    ]
    assert all(r.job is fast for r in results[:8]), "eleven-row chains end before forty-row chains"
    assert all(torch.equal(r.x, WHOLE[r.chain]) for r in results if r.job is fast)


def test_guidance_equals_the_combination_by_hand():
    """The guided run feeds m_u + w (m_c - m_u) to the same rows."""
    weights = torch.tensor([2.0, 1.0, 0.0, -0.5])
    labels, nulls = torch.tensor([1, 2, 3, 4]), torch.full((4,), 10)

    def guided(x, t):
        conditional, unconditional = net(x, t, labels), net(x, t, nulls)
        w = weights.view(-1, 1, 1, 1)
        mixed = (w.double() * (conditional - unconditional).double() + unconditional.double()).float()
        return torch.where(w == 1, conditional, torch.where(w == 0, unconditional, mixed))

    expected = draw(DDIM(steps=9), 4, network=guided)
    got = draw(DDIM(steps=9), 4, cond={"y": labels}, uncond={"y": nulls}, guidance=weights)
    assert torch.allclose(got, expected, rtol=0, atol=2e-6)
    assert torch.equal(got[1], draw(DDIM(steps=9), 4, cond={"y": labels})[1])


def test_guided_and_plain_jobs_share_an_engine():
    labels, nulls = torch.arange(6), torch.full((6,), 10)
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=4)
    guided = engine.submit(DDIM(steps=9), 6, 5, cond={"y": labels}, uncond={"y": nulls}, guidance=2.0)
    plain = engine.submit(DDIM(steps=5), 6, 5, cond={"y": labels})
    results = engine.run()
    alone = draw(DDIM(steps=9), 6, cond={"y": labels}, uncond={"y": nulls}, guidance=2.0, slots=4)
    assert torch.equal(results[guided], alone)
    assert torch.equal(results[plain], draw(DDIM(steps=5), 6, cond={"y": labels}))


def test_guided_company_changes_no_bit_of_a_convolutional_network():
    """The network sees the same batch shape whether or not others in the batch are guided."""
    network, shapes = load_digits(), set()

    def spy(x, t, y):
        shapes.add((x.shape, t.shape))
        return network(x, t, y)

    results = []
    for guided in (False, True):
        engine = ulam.Engine(ulam.Denoiser(spy, SCHEDULE), (1, 28, 28), slots=2)
        plain = engine.submit(DDIM(steps=4), 1, 5, cond={"y": torch.tensor([3])})
        if guided:
            y = {"y": torch.tensor([5])}
            engine.submit(DDIM(steps=4), [9], 5, cond=y, uncond={"y": torch.tensor([10])}, guidance=2.0)
        results.append(engine.run()[plain])
    assert torch.equal(*results) and shapes == {((2, 1, 28, 28), (2,))}


def test_shared_conditional_and_unconditional_inputs_may_differ():
    """One prompt and one empty prompt for all chains, as in text to image."""
    prompt, empty = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.5, 0.5])

    def network(x, t, w):
        return x * w

    got = draw(
        DDIM(steps=3),
        5,
        network=network,
        shape=(3,),
        cond={"w": ulam.shared(prompt)},
        uncond={"w": ulam.shared(empty)},
        guidance=2.0,
        slots=2,
    )
    per_chain = draw(
        DDIM(steps=3),
        5,
        network=network,
        shape=(3,),
        cond={"w": prompt.expand(5, 3)},
        uncond={"w": empty.expand(5, 3)},
        guidance=2.0,
        slots=2,
    )
    assert torch.equal(got, per_chain)


def test_shared_conditioning_is_passed_as_it_is():
    table = torch.randn(7, generator=torch.Generator().manual_seed(0))
    got = draw(DDIM(steps=3), 5, network=lambda x, t, w: x * w, cond={"w": ulam.shared(table)}, slots=2)
    assert torch.equal(got, draw(DDIM(steps=3), 5, network=lambda x, t: x * table))


def test_explicit_noise_and_first_state():
    """noise= and x_init= with noise-v1's own numbers change nothing."""
    rows = []

    def noise(row, chains):
        rows.append(row)
        return ulam.noise.normal(SHAPE, seed=5, chains=chains, row=row)

    x_init = ulam.noise.normal(SHAPE, seed=5, chains=range(64), tag=1)
    assert torch.equal(draw(noise=noise, x_init=x_init), WHOLE)
    assert rows == list(range(10)), "asked for every row that adds noise, in order"
    assert not torch.equal(draw(noise=lambda row, chains: torch.zeros(len(chains), *SHAPE)), WHOLE)


def test_rows_without_an_evaluation():
    """Against the same rows in float64, with noise-v1 numbered by row."""
    calls = []

    def spy(x, t):
        calls.append(t[0].item())
        return net(x, t)

    got = draw(Silent(), 6, network=spy, slots=4)
    assert calls == [500.0, 100.0] * 2
    z = [ulam.noise.normal(SHAPE, seed=5, chains=6, row=row).double() for row in range(6)]
    x = ulam.noise.normal(SHAPE, seed=5, chains=6, tag=1).double()
    x = x + 0.1 * z[0]
    x, r = 0.9 * x + 0.1 * net(x, torch.full((6,), 500.0)) + 0.2 * z[1], x
    x = 0.5 * x + 0.25 * r + 0.3 * z[2]
    r = x + 0.3 * z[3]
    x = 0.9 * x + 0.5 * r + 0.1 * net(x, torch.full((6,), 100.0))
    x = x + 0.4 * z[5]
    assert (got.double() - x).abs().max() < 2e-6
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots=5)
    jobs = engine.submit(Silent(), 6, seed=5), engine.submit(DDPM(steps=11), 9, seed=5)
    results = engine.run()
    assert torch.equal(results[jobs[0]], got) and torch.equal(results[jobs[1]], WHOLE[:9])


def test_network_dtype_and_state_dtype():
    """A bf16 network reads bf16 inputs written by the step; a bf16 state stays bf16."""
    seen = set()

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x, t):
            seen.add(x.dtype)
            return x * self.scale

    got = draw(chains=5, network=Half())
    assert seen == {torch.bfloat16} and got.dtype == torch.float32
    assert torch.equal(got, draw(chains=5, network=lambda x, t: x.to(torch.bfloat16)))
    assert draw(chains=5, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_float64_state_on_the_reference_follows_the_fp32_run():
    exact = draw(chains=3, dtype=torch.float64)
    assert exact.dtype == torch.float64
    assert (exact - WHOLE[:3].double()).abs().max() < 1e-4


def test_edm_preconditioning_scales_the_network_input():
    schedule = ulam.schedules.edm(0.01, 10.0, sigma_data=1.0)
    told = []

    def raw(x, t):
        told.append((x.clone(), t.clone()))
        return torch.zeros_like(x)

    draw(DDIM(steps=4), 2, denoiser=ulam.Denoiser(raw, schedule, predicts="raw"))
    start = ulam.noise.normal(SHAPE, seed=5, chains=2, tag=1) * 10.0
    assert torch.allclose(told[0][0], start / (10.0**2 + 1) ** 0.5, rtol=1e-6)
    assert told[0][1].tolist() == [10.0, 10.0]
    # F = 0: D = c_skip x, so DDIM's map is known.
    x, sigmas = start.double(), [t[1][0].double().item() for t in told]
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        estimate = x / (sigma**2 + 1)
        x = estimate + after / sigma * (x - estimate)
        if after:
            index = sigmas.index(after)
            assert torch.allclose(told[index][0].double(), x / (after**2 + 1) ** 0.5, rtol=1e-5, atol=1e-6)


def test_results_take_part_in_autograd():
    weight = torch.ones((), requires_grad=True)
    (draw(chains=2) * weight).sum().backward()
    assert weight.grad is not None and torch.allclose(weight.grad, WHOLE[:2].sum())


def test_float64_network_reads_float64_inputs():
    """EDM preconditioning in float64: what the network reads is c_in x to float64 accuracy."""
    told = []

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x, t):
            told.append(x.clone())
            return torch.zeros_like(x) * self.scale

    schedule = ulam.schedules.edm(0.01, 10.0, sigma_data=1.0)
    start = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    draw(
        DDIM(steps=4),
        2,
        denoiser=ulam.Denoiser(Wide(), schedule, predicts="raw"),
        shape=(3,),
        dtype=torch.float64,
        x_init=start,
    )
    assert told[0].dtype == torch.float64
    assert (told[0] - start / (10.0**2 + 1) ** 0.5).abs().max() < 1e-16


def test_gaussian_data_ddpm_follows_the_exact_recursion():
    """Data N(mu, s^2): the ideal eps is affine in x, so every x_t is Gaussian with known mean and variance [MATH 2]."""
    mu, s, chains = 0.7, 0.4, 100_000
    alphas_cumprod = SCHEDULE.alphas_cumprod

    def ideal(x, t):
        abar = torch.as_tensor(alphas_cumprod[t[0].long().item()], dtype=torch.float64)
        power = abar * s * s + 1 - abar
        return ((1 - abar).sqrt() / power * (x - abar.sqrt() * mu)).to(x.dtype)

    steps = 25
    got = draw(DDPM(steps=steps), chains, network=ideal, shape=(1,)).double()
    grid = np.arange(0, steps)[::-1] * (1000 // steps)
    mean, variance = 0.0, 1.0
    for t, before in zip(grid, [*grid[1:], None], strict=True):
        abar, prev = alphas_cumprod[t], 1.0 if before is None else alphas_cumprod[before]
        a, beta = abar / prev, 1 - abar / prev
        power = abar * s * s + 1 - abar
        slope = (1 - beta / np.sqrt(1 - abar) * np.sqrt(1 - abar) / power) / np.sqrt(a)
        shift = beta / np.sqrt(1 - abar) * np.sqrt(1 - abar) / power * np.sqrt(abar) * mu / np.sqrt(a)
        noise = 0.0 if before is None else beta * (1 - prev) / (1 - abar)
        mean, variance = slope * mean + shift, slope**2 * variance + noise
    assert abs(got.mean().item() - mean) < 4 * (variance / chains) ** 0.5
    assert abs(got.var().item() - variance) < 4 * variance * (2 / chains) ** 0.5


def test_gaussian_data_ddim_is_the_exact_linear_map():
    """eta = 0 on N(0, s^2): x_s = x_t (alpha_s alpha_t s^2 + sigma_s sigma_t) / (alpha_t^2 s^2 + sigma_t^2)."""
    s, steps = 0.4, 20

    def ideal(x, t):
        abar = torch.as_tensor(SCHEDULE.alphas_cumprod[t[0].long().item()])
        return ((1 - abar).sqrt() / (abar * s * s + 1 - abar) * x.double()).to(x.dtype)

    start = ulam.noise.normal((9,), seed=5, chains=10, tag=1)
    got = draw(DDIM(steps=steps), 10, network=ideal, shape=(9,))
    grid, factor = np.arange(0, steps)[::-1] * 50, 1.0
    for t, before in zip(grid, [*grid[1:], None], strict=True):
        abar, prev = SCHEDULE.alphas_cumprod[t], 1.0 if before is None else SCHEDULE.alphas_cumprod[before]
        power = abar * s * s + 1 - abar
        factor *= (np.sqrt(prev * abar) * s * s + np.sqrt((1 - prev) * (1 - abar))) / power
    assert (got.double() - factor * start.double()).abs().max() < 1e-5 * start.abs().max()
