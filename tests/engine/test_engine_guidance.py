"""Guidance and previews against the formulas by hand, and in company."""

from __future__ import annotations

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, WHOLE, draw, net
from ulam import NetworkOptions
from ulam.samplers import DDIM, DDPM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SLOW = DDPM(steps=11)


def new_engine(network=net, slots=4, **options):
    return ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, slots, **options)


LABELS, NULLS = torch.arange(6.0), torch.full((6,), 10.0)


def by_hand(combine, sampler=DDIM(steps=9)):  # noqa: B008
    """A network that does the guidance itself: combine(m, m_uncond, t)."""
    return draw(sampler, 6, network=lambda x, t: combine(net(x, t, LABELS), net(x, t, NULLS), t))


def guided(sampler=DDIM(steps=9), slots=6, company=(), **options):  # noqa: B008
    """Six guided chains, perhaps with company."""
    y, null = {"y": LABELS}, {"y": NULLS}
    engine = new_engine(slots=slots, options=options.pop("network_options", None))
    job = engine.submit(sampler, 6, 5, cond=y, uncond=null, **options)
    for other in company:
        engine.submit(DDPM(steps=7), 6, 5, cond=y, **other)
    return engine.run()[job]


def weighted(m, other, w):
    return (w * (m - other).double() + other.double()).float()


def test_guidance_interval():
    lo, hi = 300.0, 600.0
    expected = by_hand(lambda m, other, t: weighted(m, other, 3.0) if lo <= float(t[0]) <= hi else m)
    got = guided(guidance=3.0, guidance_interval=(lo, hi))
    assert torch.allclose(got, expected, rtol=0, atol=2e-6)
    calls = []

    def spy(x, t, y):
        calls.append((float(t[0]), float(y[0])))
        return net(x, t, y)

    engine = new_engine(spy, slots=1)
    engine.submit(DDIM(steps=10), [0], cond={"y": LABELS[:1]}, uncond={"y": NULLS[:1]}, guidance=2.0,
                  guidance_interval=(300.0, 500.0))  # fmt: skip
    engine.run()
    assert [t for t, y in calls if y == 10] == [500.0, 400.0, 300.0], "the second evaluation is saved outside"


def test_an_interval_between_two_float32_numbers_is_rounded_once():
    """t = fp32(0.3) is told; the interval ends at the float64 number 0.3, which is below it."""
    flow = ulam.Denoiser(lambda x, t, y: x * 0 + y.view(-1, 1), ulam.schedules.flow(), predicts="flow")
    sampler = ulam.samplers.Euler(timesteps=(1.0, 0.6, 0.3))
    told = sampler.program(flow.schedule, "flow").time
    results = []
    for company in (False, True):
        engine = ulam.Engine(flow, (2,), 4)
        y, null = {"y": torch.ones(1)}, {"y": torch.zeros(1)}
        job = engine.submit(sampler, 1, 0, y, 2.0, null, guidance_interval=(0.1, float(told[-1])))
        if company:
            engine.submit(sampler, [1], 0, y, 2.0, null)
        results.append(engine.run()[job])
    assert torch.equal(*results)


@pytest.mark.parametrize("w, phi", [(3.0, 1.0), (2.0, 0.7), (0.5, 0.3)])
def test_guidance_rescale(w, phi):
    """Lin et al. 2024, algorithm 2, in float64."""

    def combine(m, other, t):
        m, other = m.double(), other.double()
        mixed = other + w * (m - other)
        factor = m.flatten(1).std(1) / mixed.flatten(1).std(1)
        return (phi * mixed * factor.view(-1, 1, 1, 1) + (1 - phi) * mixed).float()

    sampler = DDIM(timesteps=(400, 300, 200, 100))
    got = guided(sampler, guidance=w, guidance_rescale=phi)
    assert torch.allclose(got, by_hand(combine, sampler), rtol=0, atol=5e-6)


def test_company_with_other_guidance_changes_no_bit():
    """Plain, guided, rescaled and interval chains in one batch, each as alone."""
    sorts = [
        {"guidance": 2.5, "uncond": {"y": NULLS}},
        {"guidance": 2.5, "uncond": {"y": NULLS}, "guidance_rescale": 0.7},
        {"guidance": 2.5, "uncond": {"y": NULLS}, "guidance_interval": (200.0, 700.0)},
        {"guidance": 2.5, "uncond": {"y": NULLS}, "guidance_interval": (200.0, 700.0), "guidance_rescale": 0.4},
        {},
    ]
    y = {"y": LABELS}
    engine = new_engine(slots=30)
    together = [engine.submit(DDPM(steps=7), 6, 5, cond=y, **sort) for sort in sorts]
    results = engine.run()
    for job, sort in zip(together, sorts, strict=True):
        alone = new_engine(slots=30)
        single = alone.submit(DDPM(steps=7), 6, 5, cond=y, **sort)
        assert torch.equal(results[job], alone.run()[single]), sort


def test_a_chain_without_guidance_does_not_fail_with_the_unconditional_branch():
    """What guidance does not read may be anything."""

    def network(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 10, float("nan"), net(x, t, y))

    engine = new_engine(network, slots=8)
    plain = engine.submit(SLOW, 4, 5, cond={"y": torch.zeros(4)})
    y, null = {"y": torch.tensor([0.0, 10.0])}, {"y": torch.tensor([10.0, 0.0])}
    weights = torch.tensor([1.0, 0.0])
    mixed = engine.submit(SLOW, 2, 5, cond=y, uncond=null, guidance=weights)
    doomed = engine.submit(SLOW, 1, 5, cond={"y": torch.zeros(1)}, uncond={"y": torch.full((1,), 10.0)}, guidance=2.0)
    results = {(r.job, r.chain): r for r in engine.stream()}
    assert results[doomed, 0].failed == 0
    expected = draw(SLOW, 4, cond={"y": torch.zeros(4)})
    assert all(torch.equal(results[plain, c].x, expected[c]) for c in range(4))
    assert all(results[mixed, c].failed is None and torch.equal(results[mixed, c].x, expected[c]) for c in range(2))


def test_doubled_guidance_is_one_call_of_twice_the_slots():
    shapes = []

    def spy(x, t, y):
        shapes.append((len(x), len(t), len(y)))
        return net(x, t, y)

    y, null = {"y": LABELS}, {"y": NULLS}
    engine = new_engine(spy, slots=6, options=NetworkOptions(doubled=True))
    job = engine.submit(DDIM(steps=9), 6, 5, cond=y, uncond=null, guidance=2.0)
    assert torch.equal(engine.run()[job], guided(guidance=2.0)) and shapes == [(12, 12, 12)] * 9


# ------------------------------------------------------------------------------------------------ previews


def test_previews_hold_the_x0_estimate_by_hand():
    """x0 = (x - sigma eps) / alpha of the state in front of the row; x behind it."""
    seen = []
    engine = new_engine(slots=6)
    y, null = {"y": LABELS}, {"y": NULLS}
    job = engine.submit(DDIM(steps=8), 6, 5, cond=y, uncond=null, guidance=2.0, callback=seen.append, every=2)
    other = engine.submit(DDPM(steps=5), 6, 5, cond=y)
    results = engine.run()
    assert [p.row for p in seen] == [1, 3, 5, 7] and all(p.job is job and p.chains == list(range(6)) for p in seen)
    states = {}
    draw(DDIM(steps=8), 6, network=lambda x, t: _spy(x, t, states))
    program, before = job.program, states
    for preview in seen:
        t = float(program.time[preview.row])
        x, eps = before[t]
        alpha = SCHEDULE.alphas_cumprod[int(t)] ** 0.5
        x0 = (x.double() - (1 - alpha**2) ** 0.5 * eps.double()) / alpha
        assert (preview.x0.double() - x0).abs().max() < 1e-5 * x0.abs().max()
        later = [float(s) for s in program.time if s < t]
        after = before[max(later)][0] if later else results[job]
        assert torch.allclose(preview.x, after, rtol=0, atol=1e-5)
    assert torch.equal(results[other], draw(DDPM(steps=5), 6, cond=y))


def _spy(x, t, states):
    eps = weighted(net(x, t, LABELS), net(x, t, NULLS), 2.0)
    states[float(t[0])] = x.clone(), eps
    return eps


def test_a_callback_may_submit_and_cancel():
    engine, extra = new_engine(slots=2), []

    def call(preview):
        if preview.row == 5:
            engine.cancel(preview.job)
            extra.append(engine.submit(SLOW, 3, seed=5))

    job = engine.submit(SLOW, 2, seed=5, callback=call)
    results = engine.run()
    assert results.keys() == {extra[0]} and torch.equal(results[extra[0]], WHOLE[:3])
    assert engine.report.cancelled == len(job.chains)
