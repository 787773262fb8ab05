"""Samplers of training times against their laws, and the importance weights against the mean that they must keep."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import ulam
from ulam import noise, schedules
from ulam.objectives import timesteps, weightings

VP, VE, EDM = schedules.vp_linear(10), schedules.ve(0.01, 50.0), schedules.edm()
FLOW, SUBVP = schedules.flow(), schedules.sub_vp()
N = 20_000

LAWS: dict[str, tuple[timesteps.Timesteps, Any]] = {
    "uniform flow": (timesteps.Uniform(FLOW), scipy.stats.uniform()),
    "uniform subvp": (timesteps.Uniform(SUBVP), scipy.stats.uniform(SUBVP.t_min, 1 - SUBVP.t_min)),
    "uniform ve": (timesteps.Uniform(VE), scipy.stats.loguniform(0.01, 50.0)),
    "uniform edm": (timesteps.Uniform(EDM), scipy.stats.loguniform(0.002, 80.0)),
    "log-normal": (timesteps.LogNormal(EDM), scipy.stats.lognorm(1.2, scale=np.exp(-1.2))),
    "log-normal ve": (timesteps.LogNormal(VE, mean=0.3, std=0.5), scipy.stats.lognorm(0.5, scale=np.exp(0.3))),
}


@pytest.mark.parametrize("name", LAWS)
def test_continuous_times_have_their_law(name: str) -> None:
    times, law = LAWS[name]
    t, weight = times(N, seed=3, step=5)
    assert t.dtype == weight.dtype == torch.float32 and bool((weight == 1).all())
    assert scipy.stats.kstest(t.double().numpy(), law.cdf).pvalue > 1e-3


def test_logit_normal_times_are_shifted_as_the_paper_writes_it() -> None:
    """From the formula itself: t -> shift t / (1 + (shift - 1) t) of a logistic function of a normal."""
    plain, _ = timesteps.LogitNormal(FLOW, mean=-0.5, std=0.8)(N, seed=1, step=0)
    shifted, _ = timesteps.LogitNormal(FLOW, mean=-0.5, std=0.8, shift=3.0)(N, seed=1, step=0)
    z = (plain.double() / (1 - plain.double())).log().add(0.5) / 0.8
    assert scipy.stats.kstest(z.numpy(), scipy.stats.norm.cdf).pvalue > 1e-3
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))


@pytest.mark.parametrize("kind", [timesteps.Uniform, timesteps.Antithetic, timesteps.LossAware])
def test_every_training_step_is_as_often(kind: Any) -> None:
    t = torch.cat([kind(VP)(100, step=step)[0] for step in range(200)])
    assert t.dtype == torch.int64
    independent = t[::2] if kind is timesteps.Antithetic else t
    assert scipy.stats.chisquare(torch.bincount(independent, minlength=10)).pvalue > 1e-3


@pytest.mark.parametrize("kind", [timesteps.Stratified, timesteps.Antithetic])
@pytest.mark.parametrize(("schedule", "name"), [(FLOW, "flow"), (VE, "ve"), (SUBVP, "subvp")])
def test_each_example_of_a_coupled_batch_is_uniform(kind: Any, schedule: schedules.Schedule, name: str) -> None:
    t = torch.stack([kind(schedule)(3, seed=2, step=step)[0] for step in range(2000)])
    for of_one in t.T:
        assert scipy.stats.kstest(of_one.double().numpy(), LAWS[f"uniform {name}"][1].cdf).pvalue > 1e-3


# ------------------------------------------------------------------------------------------------------ coupled times


def test_antithetic_times_are_mirrored_exactly() -> None:
    t, _ = timesteps.Antithetic(schedules.vp_linear(1000))(N, step=7)
    assert bool((t[::2] + t[1::2] == 999).all())
    t, _ = timesteps.Antithetic(FLOW)(N, step=7)
    torch.testing.assert_close(t[::2].double() + t[1::2].double(), torch.ones(N // 2, dtype=torch.float64))
    t, _ = timesteps.Antithetic(VE)(N, step=7)
    torch.testing.assert_close(t[::2].double() * t[1::2].double(), torch.full((N // 2,), 0.5).double())


def gaps(t: torch.Tensor) -> torch.Tensor:
    """The distances between neighbours on the circle, times their number: all 1 where times are even."""
    t = t.double().sort().values
    return torch.cat([t.diff(), t[:1] + 1 - t[-1:]]) * len(t)


@pytest.mark.parametrize(("world", "micro_batches", "count"), [(1, 1, 7), (2, 1, 6), (3, 1, 5), (1, 4, 3), (3, 2, 4)])
def test_a_stratified_joint_batch_is_even(world: int, micro_batches: int, count: int) -> None:
    ids = [noise.examples(count, rank=r, micro_batch=m) for r in range(world) for m in range(micro_batches)]
    times = timesteps.Stratified(FLOW)
    t, _ = times(len(torch.cat(ids)), seed=4, step=9, chains=torch.cat(ids))
    torch.testing.assert_close(gaps(t), torch.ones(len(t), dtype=torch.float64), rtol=1e-5, atol=1e-5)
    for part in t.split(count):  # so is the batch of each rank
        torch.testing.assert_close(gaps(part), torch.ones(count, dtype=torch.float64), rtol=1e-5, atol=1e-5)


SAMPLERS = {
    "uniform": timesteps.Uniform(FLOW),
    "stratified": timesteps.Stratified(FLOW),
    "antithetic": timesteps.Antithetic(FLOW),
    "log-normal": timesteps.LogNormal(EDM),
    "logit-normal": timesteps.LogitNormal(FLOW),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_rank_draws_its_part_of_the_joint_batch(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Batches may differ in size; two ranks share no time."""
    times, sizes, parts = SAMPLERS[name], (5, 3), []
    ids = torch.cat([noise.examples(size, rank=rank) for rank, size in enumerate(sizes)])
    for rank, size in enumerate(sizes):
        for function, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", 2)):
            monkeypatch.setattr(torch.distributed, function, lambda value=value: value)
        parts.append(times(size, seed=1, step=2)[0])
    monkeypatch.undo()
    assert torch.equal(torch.cat(parts), times(8, seed=1, step=2, chains=ids)[0])
    assert len({*torch.cat(parts).tolist()}) == 8


def test_times_are_new_in_every_step_and_for_every_seed_and_the_step_cannot_be_forgotten() -> None:
    times = timesteps.Uniform(FLOW)
    first = times(50, seed=1, step=0)[0]
    assert torch.equal(first, times(50, seed=1, step=0)[0]) and torch.equal(first[:20], times(20, seed=1, step=0)[0])
    for other in (times(50, seed=1, step=1), times(50, seed=2, step=0)):
        assert not set(first.tolist()) & set(other[0].tolist())
    with pytest.raises(TypeError, match="step"):
        times(50)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"step: got -1, expected 0 to 2\^60 - 1"):
        times(50, step=-1)


def test_stratified_and_antithetic_means_vary_less() -> None:
    """Of the time itself: N independent times have variance 1 / (12 N), pairs none, strata 1 / (12 N^2)."""
    spread = {}
    for kind in (timesteps.Uniform, timesteps.Stratified, timesteps.Antithetic):
        means = torch.stack([kind(FLOW)(16, step=step)[0].double().mean() for step in range(2000)])
        assert abs(float(means.mean()) - 0.5) <= 4 * float(means.std()) / 2000**0.5 + 1e-7
        spread[kind] = float(means.var())
    error = 5 * (2 / 2000) ** 0.5
    assert spread[timesteps.Uniform] == pytest.approx(1 / 12 / 16, rel=error)
    assert spread[timesteps.Stratified] == pytest.approx(1 / 12 / 16**2, rel=error)
    assert spread[timesteps.Antithetic] < 1e-14


# ------------------------------------------------------------------------------------------------- importance sampling


def by_hand(schedule: schedules.Schedule, updates: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """p_t as the paper and its code have it: a queue of ten losses a step, one loss at a time."""
    queues = [deque(maxlen=10) for _ in range(schedule.steps)]
    for t, losses in updates:
        for each, loss in zip(t.tolist(), losses.tolist(), strict=True):
            queues[each].append(loss)
    if any(len(queue) < 10 for queue in queues):
        return np.full(len(queues), 1 / len(queues))
    p = np.array([np.sqrt(np.mean(np.square(queue))) for queue in queues])
    return 0.999 * p / p.sum() + 0.001 / len(p)


def random_updates(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in which some steps occur up to thirty times."""
    generator = torch.Generator().manual_seed(5)
    some = [torch.randint(0, 10, (30,), generator=generator) for _ in range(count)] + [torch.full((30,), 4)]
    return [(t, torch.rand(30, generator=generator) * (1.0 + t) ** 2) for t in some]


@pytest.mark.parametrize("count", [0, 3, 6, 40])
def test_probabilities_follow_the_last_ten_losses_of_each_step(count: int) -> None:
    times, updates = timesteps.LossAware(VP), random_updates(count)
    for t, losses in updates:
        times.update(t, losses.requires_grad_())
    np.testing.assert_allclose(times.probabilities.numpy(), by_hand(VP, updates), rtol=1e-12)


def trained() -> timesteps.LossAware:
    times = timesteps.LossAware(VP)
    for t, losses in random_updates(40):
        times.update(t, losses)
    return times


def test_times_have_these_probabilities_and_weights() -> None:
    times = trained()
    t, weight = times(N, seed=1, step=3)
    p = times.probabilities
    assert scipy.stats.chisquare(torch.bincount(t, minlength=10), (p * N).numpy()).pvalue > 1e-3
    torch.testing.assert_close(weight, (1 / (10 * p[t])).float())


def test_weighted_losses_have_the_mean_of_uniform_times_with_less_variance() -> None:
    """The losses of step t are (1 + t)^2 times a number in [0, 1]: the optimal p of the paper."""
    every, aware = torch.arange(10.0), trained()
    exact = float((0.5 * (1 + every) ** 2).mean())
    variance = {}
    for times in (timesteps.Uniform(VP), aware):
        t, weight = times(N, seed=2, step=1)
        losses = weight.double() * torch.rand(N, generator=torch.Generator().manual_seed(1)) * (1.0 + t) ** 2
        assert abs(float(losses.mean()) - exact) <= 4 * float(losses.std()) / N**0.5
        variance[type(times)] = float(losses.var())
    assert variance[timesteps.LossAware] < 0.5 * variance[timesteps.Uniform]


def test_a_state_continues_to_the_same_numbers() -> None:
    times, updates = timesteps.LossAware(VP), random_updates(20)
    for t, losses in updates[:9]:
        times.update(t, losses)
    saved, other = times.state_dict(), timesteps.LossAware(VP)
    other.load_state_dict(saved)
    for each in (times, other):
        for t, losses in updates[9:]:
            each.update(t, losses)
    assert torch.equal(times.probabilities, other.probabilities) and int(saved["counts"].sum()) == 9 * 30
    with pytest.raises(ValueError, match=r"history: got shape \[20, 10\], expected \[10, 10\]"):
        other.load_state_dict(timesteps.LossAware(schedules.vp_linear(20)).state_dict())
    with pytest.raises(ValueError, match=r"counts: got \[-9, .*, expected finite losses, counts from 0 on"):
        other.load_state_dict(saved | {"counts": saved["counts"] - int(saved["counts"][0]) - 9})


def test_losses_that_are_all_zero_leave_times_uniform() -> None:
    times = timesteps.LossAware(VP)
    times.update(torch.arange(10).repeat(10), torch.zeros(100))
    assert times.probabilities.tolist() == [0.1] * 10


def test_what_would_spoil_the_history_is_refused() -> None:
    times = timesteps.LossAware(VP)
    t, losses = torch.arange(3), torch.ones(3)
    for given, message in (
        ((t + 8, losses), r"t: got \[8, 9, 10\], expected training steps from 0 to 9"),
        ((t.float(), losses), "t: got a tensor of torch.float32 .*, expected int64"),
        ((t, losses[:2]), r"losses: got shape \[2\], expected \[B\]"),
        ((t, losses / 0), "losses: got inf, expected finite numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            times.update(*given)
    assert not times.counts.any()
    for kind, schedule in ((timesteps.LossAware, FLOW), (timesteps.LogNormal, VP), (timesteps.LogitNormal, VE)):
        with pytest.raises(ValueError, match=r"schedule: got .*, expected an? .* schedule"):
            kind(schedule)


# ---------------------------------------------------------------------------------------------------------- weightings


def test_weightings_are_the_papers() -> None:
    """In terms of sigma and the log-SNR, as the papers write them; the error of eps is snr times that of x_0."""
    sigma = torch.tensor([0.02, 0.3, 1.0, 7.0], dtype=torch.float64)
    snr, log_snr = sigma**-2, -2 * sigma.log()
    torch.testing.assert_close(weightings.edm(snr, 0.7), (sigma**2 + 0.49) / (sigma * 0.7) ** 2)
    torch.testing.assert_close(weightings.sigmoid(snr, 2.0) / snr, 1 / (1 + (log_snr - 2.0).exp()))
    torch.testing.assert_close(weightings.p2(snr, 0.5, 2.0) / snr, (2.0 + snr) ** -0.5)


def test_samplers_are_data_of_a_recipe() -> None:
    assert timesteps.LogNormal(EDM) == timesteps.LogNormal(EDM, -1.2, 1.2) != timesteps.LogNormal(EDM, 0.0)
    assert repr(timesteps.Stratified(ulam.schedules.flow())) == "Stratified(schedule=flow(shift=1.0))"
