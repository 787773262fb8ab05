"""Persistent chains, and the energy models that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ulam
from ulam import mcmc, noise
from ulam.ebm import PersistentChains
from ulam.mcmc import HMC, MALA, MALT, MAMS, SGLD, ULA
from ulam.models.energies import DIGITS_SHAPE, DIGITS_SIGMA, load_digits_energy
from ulam.objectives import contrastive_divergence

ROOT = Path(__file__).parents[2]


def bowl(x):
    return x.flatten(1).square().sum(1) / 2


@pytest.mark.parametrize("sampler", [ULA(0.1), SGLD(0.1), MALA(0.3), HMC(0.3, 3), MALT(0.3, 3), MAMS(0.4, 3)], ids=repr)
def test_a_chain_is_the_same_in_batches_of_any_size(sampler):
    """Round by round, every chain takes the same steps: their bits do not tell in which batch."""
    few, many = (PersistentChains(12, (3,), sampler, restart=0.2, seed=4) for _ in range(2))
    for _ in range(3):
        parts = torch.cat([few.sample(bowl, batch=4, steps=5) for _ in range(3)])
        whole = many.sample(bowl, batch=12, steps=5)
        assert torch.equal(parts, whole) and torch.equal(few.x, many.x)
    assert few.clock.tolist() == [15] * 12


def test_without_restarts_the_chains_are_those_of_a_run():
    chains = PersistentChains(6, (2,), ULA(0.2), restart=0.0, seed=9)
    for _ in range(4):
        last = chains.sample(bowl, batch=6, steps=5)
    run = mcmc.run(mcmc.Energy(bowl), ULA(0.2), chains=6, shape=(2,), steps=20, seed=9, progress=False)
    assert torch.equal(last, run.x)


def test_restarts_are_a_share_and_start_as_told():
    """A flat energy and a tiny step: who moved far was started anew, at the mean 50 of ``start``."""
    chains = PersistentChains(4000, (1,), ULA(1e-12), restart=0.1, start=lambda z: z)
    chains._start = lambda z: 50 + z
    x = chains.sample(lambda x: 0 * x[:, 0], batch=4000, steps=1)
    anew = x[:, 0] > 25
    assert abs(int(anew.sum()) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    fresh = noise.normal((1,), seed=0, chains=4000, tag=1)
    torch.testing.assert_close(x[anew], 50 + fresh[anew], rtol=1e-5, atol=1e-5)


def test_lost_chains_start_anew():
    chains = PersistentChains(8, (2,), ULA(0.1), restart=0.0)
    chains.x[3] = float("nan")
    assert torch.isfinite(chains.sample(bowl, batch=8, steps=3)).all()


def test_a_saved_buffer_goes_on_where_it_was():
    chains = PersistentChains(10, (2,), ULA(0.1), seed=1)
    chains.sample(bowl, batch=4, steps=3)
    saved = chains.state_dict()
    expected = chains.sample(bowl, batch=4, steps=3)
    other = PersistentChains(10, (2,), ULA(0.1), seed=1)
    other.load_state_dict(saved)
    assert torch.equal(other.sample(bowl, batch=4, steps=3), expected)


def test_an_energy_that_is_rounded_too_coarsely_is_told_once():
    chains = PersistentChains(10, (2,), MALA(0.1))
    with pytest.warns(RuntimeWarning, match="energies near 1e.07 are 1 apart in float32") as caught:
        for _ in range(3):
            chains.sample(lambda x: 1e7 + bowl(x), batch=10, steps=1)
    assert len(caught) == 1


def test_contrastive_divergence_finds_the_precision_that_matches_the_data():
    """E = a x^2 / 2 on data of variance v: ULA's variance 1 / (a (1 - h a / 2)) is v at the fixed point."""
    variance, h = 0.5, 0.2
    exact = (1 - (1 - 2 * h / variance) ** 0.5) / h
    log_a = torch.zeros((), requires_grad=True)
    chains = PersistentChains(2000, (1,), ULA(h), restart=0.0)
    data = mcmc.Gaussian([0.0], variance).sample(2000).float()
    data *= (variance / data.var(correction=0)).sqrt()

    def energy(x):
        return log_a.exp() * x[:, 0].square() / 2

    optimizer, found = torch.optim.SGD([log_a], lr=0.2), []
    for update in range(400):
        negatives = chains.sample(energy, batch=2000, steps=5)
        optimizer.zero_grad()
        contrastive_divergence(energy, data, negatives).backward()
        optimizer.step()
        if update >= 200:
            found.append(log_a.exp().item())
    assert sum(found) / len(found) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PersistentChains(0, (2,), ULA(0.1)), "count: got 0, expected 1 to"),
        (lambda: PersistentChains(4, (2,), mcmc.BAOAB(0.1)), "sampler: got BAOAB, expected ULA"),
        (lambda: PersistentChains(4, (2,), ULA(0.1), restart=2.0), "restart: got 2.0, expected a share"),
        (lambda: PersistentChains(4, (2,), ULA(0.1), restart=True), "restart: got True, expected a share"),
        (
            lambda: PersistentChains(4, (2,), ULA(0.1), start=lambda z: z * 1j),
            "start: got complex numbers, expected real numbers",
        ),
        (lambda: PersistentChains(4, (2,), ULA(0.1)).load_state_dict({}), "x: got NoneType, expected a tensor of"),
        (lambda: PersistentChains(4, (2,), ULA([0.1, 0.2])), "step: got 2 numbers"),
        (lambda: PersistentChains(4, (2,), ULA(0.1)).sample(bowl, batch=5, steps=1), "batch: got 5, expected 1 to"),
        (lambda: PersistentChains(4, (2,), ULA(0.1)).sample(bowl, batch=2, steps=0), "steps: got 0"),
        (
            lambda: PersistentChains(4, (2,), ULA(0.1), start=lambda z: z[:1]),
            r"start: got states of shape \[1, 2\], expected \[4, 2\] like the noise",
        ),
    ],
)
def test_bad_input_gets_one_clear_line(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_the_committed_energy_tells_digits_from_what_is_none():
    """Noisy digits have less energy than the same pixels in another order, than noise, and than half digits."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the 8x8 digits are scikit-learn's")
    energy = load_digits_energy()
    images = torch.from_numpy(datasets.load_digits().images).float()[:500, None] / 8 - 1
    z = DIGITS_SIGMA * noise.normal(DIGITS_SHAPE, seed=5, chains=500)
    other = torch.cat([images[:, :, :4], images.roll(1, 0)[:, :, 4:]], 2)
    of_data = energy(images + z)
    assert (of_data < energy(images.flip(3) + z)).float().mean() > 0.8  # mirrored
    assert (of_data < energy(other + z)).float().mean() > 0.7  # halves of two digits
    assert (of_data < energy(energy.start(noise.normal(DIGITS_SHAPE, seed=6, chains=500)))).float().mean() > 0.95


def test_the_committed_energy_samples_digits():
    """Clean samples from chains that start at noise: a classifier of real digits is sure of them, in all classes."""
    pytest.importorskip("sklearn", reason="the 8x8 digits are scikit-learn's")
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    from ulam.training.ebm import TASKS, draw

    samples = draw(TASKS["digits"], load_digits_energy(), 256, seed=2)
    assert samples.shape == (256, *DIGITS_SHAPE)
    real = load_digits()
    classifier = LogisticRegression(max_iter=2000).fit(real.data / 8 - 1, real.target)
    sure = classifier.predict_proba(samples.flatten(1).clamp(-1, 1).numpy())
    assert (sure.max(1) > 0.8).mean() > 0.6
    assert len(set(sure.argmax(1))) == 10


def test_the_training_report_says_how_to_repeat_it():
    report = json.loads((ROOT / "engine/ulam/models/digits_ebm.json").read_text())
    assert report["command"] == "python -m ulam.training.ebm --data digits --fits 5000 --updates 1500 --seed 0"
    assert report["minutes"] < 60
    assert (ROOT / "engine/ulam/models/digits_ebm.safetensors").stat().st_size < 1 << 20
    assert (ROOT / "docs/ebm.png").exists()


def test_training_lowers_the_energy_gap_on_two_moons():
    """A short run of the whole script's training: samples land near the two half circles, in both."""
    from ulam.training.ebm import TASKS, Training, draw, load_data

    task = TASKS["moons"]
    training = Training(task, load_data("moons"), seed=0)
    training.fit(1500)
    training.contrast(30)
    samples = draw(task, training.net.eval().requires_grad_(False), 300, seed=1)
    distance = torch.cdist(samples, training.data).min(1).values
    untrained = torch.cdist(training.net.start(torch.randn(300, 2)), training.data).min(1).values
    assert distance.mean() < 0.5 * untrained.mean()
    assert 0.3 < (samples[:, 0] > 0).float().mean() < 0.7
    assert ulam.objectives.contrastive_divergence is contrastive_divergence
