"""Log-probabilities computed again: equal to what was sampled, right under another network, with right gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ulam
import ulam_kernels
from rollout_cases import SAMPLERS, SHAPE, SIZE, VP, Net, denoiser, rounding, walked
from ulam import rollouts
from ulam.noise import ROW
from ulam.rollouts import Trajectory
from ulam.samplers import DDIM, DDPM, SEEDS, DPMSolverPP, DynamicThreshold

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

LABELS, NULLS = torch.arange(12.0), torch.zeros(12)
GUIDED = {"cond": {"y": LABELS}, "uncond": {"y": NULLS}, "guidance": torch.linspace(0, 3, 12)}


def rolled(sampler: Any, *, of: ulam.Denoiser | None = None, **options: Any) -> Trajectory:
    return rollouts.sample(of or denoiser(), sampler, SHAPE, 12, 3, slots=5, **options)


def stochastic(trajectory: Trajectory) -> list[int]:
    return [row for row, adds in zip(trajectory.rows, trajectory.stochastic.tolist(), strict=True) if adds]


def outputs_of(
    other: ulam.Denoiser, trajectory: Trajectory, guided: bool, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """A network's outputs on the recorded states, after guidance and of the unguided branch, ``[n, K, *shape]``."""
    outputs = torch.zeros(12, len(trajectory.rows), *SHAPE, dtype=dtype)
    unguided = outputs.clone()
    for k, row in enumerate(trajectory.rows):
        if trajectory.program.evaluates[row]:
            x = trajectory.states[:, k] * float(trajectory.program.c_in[row])
            t = torch.full((12,), float(trajectory.program.time[row]), dtype=dtype)
            with torch.no_grad():
                m = u = other.net(x, t, *([LABELS.to(dtype)] if guided else []))
                if guided:
                    u = other.net(x, t, NULLS.to(dtype))
                    m = u + GUIDED["guidance"].to(dtype)[:, None, None] * (m - u)
            outputs[:, k], unguided[:, k] = m, u
    return outputs, unguided


@pytest.mark.parametrize("options", [{}, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_another_network_has_the_densities_of_the_formula(name: str, options: dict[str, Any]) -> None:
    trajectory, other = rolled(SAMPLERS[name], **options), denoiser(1)
    rows = stochastic(trajectory)
    found = rollouts.log_prob(other, trajectory).detach().numpy()
    at = [row - trajectory.rows.start for row in rows]
    expected, means = walked(trajectory, *outputs_of(other, trajectory, bool(options)))
    assert (abs(found - expected[:, at]) <= 1e-5 * (SIZE + abs(found)) + rounding(trajectory)[:, at]).all()
    assert abs(found - trajectory.log_prob.numpy()[:, at]).max() > 0.1
    old = walked(trajectory, *outputs_of(denoiser(), trajectory, bool(options)))[1]
    a = trajectory.program.A[rows, 0, -1].astype(np.float32).astype(np.float64)
    kl = rollouts.kl(denoiser(), other, trajectory, rows).detach().numpy()
    apart = ((means - old)[:, at] ** 2).sum(2) / (2 * a**2)  # E log(p / q) at x' = mean + a z is that of the means
    np.testing.assert_allclose(kl, apart, rtol=1e-4, atol=1e-6)


def every_stochastic_sampler() -> list[Any]:
    """All that ``ulam.samplers`` has, in all their variants, of which a row adds noise of a known scale."""
    found, wide = [], denoiser(dtype=torch.float64)
    for name in ulam.samplers.__all__:
        cls = getattr(ulam.samplers, name)
        if not hasattr(cls, "program") or name.startswith("Parallel"):
            continue
        for variant in ({}, *getattr(cls, "variants", ())):
            try:
                sampler = cls(steps=6, **variant)
                program = wide.program(sampler)
            except (TypeError, ValueError, NotImplementedError):  # not of this schedule, or not of diffusion
                continue
            noisy = (program.A[:, 0, -1] != 0) & program.writes[:, 0]
            if noisy.any() and not (noisy & program.normalise).any():
                found.append(sampler)
    return found


@pytest.mark.parametrize("sampler", every_stochastic_sampler(), ids=repr)
def test_every_sampler_has_the_densities_of_the_formula_in_float64(sampler: Any) -> None:
    """Guided, under a network that did not sample: to the last digits, whatever its registers keep."""
    wide = {key: {"y": value["y"].double()} if isinstance(value, dict) else value for key, value in GUIDED.items()}
    trajectory = rolled(sampler, of=denoiser(dtype=torch.float64), dtype=torch.float64, **wide)
    other = denoiser(1, torch.float64)
    found = rollouts.log_prob(other, trajectory).detach().numpy()
    outputs = outputs_of(other, trajectory, True, torch.float64)
    expected = walked(trajectory, *outputs, exact=True)[0][:, trajectory.stochastic.numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * SIZE)
    assert abs(found - trajectory.log_prob.numpy()[:, trajectory.stochastic.numpy()]).max() > 1e-3


def test_the_samplers_of_that_test_are_many() -> None:
    found = {type(sampler).__name__ for sampler in every_stochastic_sampler()}
    assert found > {"DDPM", "DPMSolverPP", "SEEDS", "SASolver", "ERSDE", "Restart", "RESMultistep", "DPM2", "Heun"}


@pytest.mark.parametrize("options", [{}, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_that_sampled_has_the_recorded_densities(name: str, options: dict[str, Any]) -> None:
    """Within 1e-6 an element, registers made again included, as the network is called as the engine did."""
    trajectory = rolled(SAMPLERS[name], **options)
    assert trajectory.slots == 5
    found = rollouts.log_prob(denoiser(), trajectory).detach().numpy()
    expected = trajectory.log_prob[:, trajectory.stochastic].numpy()
    allowed = 1e-6 * SIZE
    if name == "ER-SDE":  # whose last steps divide by little: what positions in a batch change in the network counts
        allowed = allowed + rounding(trajectory)[:, trajectory.stochastic.numpy()]
    assert (abs(found - expected) <= allowed).all()
    kl = rollouts.kl(denoiser(), denoiser(), trajectory)
    assert float(kl.detach().abs().max()) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 31, 33])
def test_a_few_pairs_have_the_recorded_densities_too(count: int) -> None:
    """Within 1e-6 an element: the network is not called with so few that libraries would add up in other orders."""
    torch.manual_seed(7)
    net = torch.nn.Sequential(torch.nn.Linear(4, 256), torch.nn.SiLU(), torch.nn.Linear(256, 3))
    one = ulam.Denoiser(lambda x, t: net(torch.cat([x, t[:, None] / 1000], 1)), VP)
    found = rollouts.sample(one, DDIM(steps=20, eta=1.0, spacing="trailing"), (3,), 64, 0)
    for first in range(0, 62, 9):
        places = torch.arange(first, first + count) % 64
        rows = torch.full((count,), 18)
        again = rollouts.log_prob(one, found, pairs=(places, rows)).detach()
        assert float((again - found.log_prob[places, 18]).abs().max()) < 1e-6 * 3


def test_a_reference_is_a_denoiser() -> None:
    with pytest.raises(TypeError, match=r"^reference: got None, expected an ulam.Denoiser$"):
        rollouts.kl(denoiser(), None, rolled(DDPM(steps=9)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SAMPLERS)
def test_registers_made_again_are_those_that_were_recorded(name: str) -> None:
    """The fused step's own, bit for bit, where the outputs are the recorded ones: here of a constant network."""
    constant = ulam.Denoiser(lambda x, t: torch.full_like(x, 0.25), VP)
    trajectory = rolled(SAMPLERS[name], of=constant)
    found = rollouts.log_prob(constant, trajectory).detach()
    exact = torch.empty(12, len(stochastic(trajectory)), dtype=torch.float64)
    for k, row in enumerate(stochastic(trajectory)):
        z = ulam_kernels.fill_normal(
            torch.empty(12, SIZE),
            seed=torch.full((12,), 3),
            chain=torch.arange(12),
            draw=torch.full((12,), int(ROW.draws(np.array([row]))[0])),
        )
        exact[:, k] = -0.5 * z.double().square().sum(1) + SIZE * trajectory.log_scales()[row]
    assert torch.equal(found, exact)


@pytest.mark.parametrize("name", ["DDIM", "DPM-Solver++ SDE, order 3", "SEEDS"])
def test_pairs_are_rows_of_chains_in_any_order(name: str) -> None:
    trajectory = rolled(SAMPLERS[name], **GUIDED)
    rows = stochastic(trajectory)
    whole = rollouts.log_prob(denoiser(1), trajectory).detach()
    rng = np.random.default_rng(0)
    places, at = rng.integers(0, 12, 50), rng.integers(0, len(rows), 50)
    pairs = torch.stack([torch.from_numpy(places), torch.tensor(rows)[at]], 1).unbind(1)  # columns, not contiguous
    found = rollouts.log_prob(denoiser(1), trajectory, pairs=pairs)
    assert found.shape == (50,)
    np.testing.assert_allclose(found.detach().numpy(), whole[places, at].numpy(), rtol=0, atol=1e-6 * SIZE)
    part = rollouts.log_prob(denoiser(1), trajectory[[3, 7]])
    np.testing.assert_allclose(part.detach().numpy(), whole[[3, 7]].numpy(), rtol=0, atol=1e-6 * SIZE)


@pytest.mark.parametrize("options", [{}, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_are_those_of_finite_differences(name: str, options: dict[str, Any]) -> None:
    """In float64, of log_prob and of kl, along a random direction of all weights, away from the sampling network."""
    wide = {key: {"y": value["y"].double()} if isinstance(value, dict) else value for key, value in options.items()}
    trajectory = rolled(SAMPLERS[name], of=denoiser(dtype=torch.float64), dtype=torch.float64, **wide)
    rows, other = stochastic(trajectory), denoiser(1, torch.float64)
    weights = list(other.net.parameters())
    torch.manual_seed(5)
    along = [torch.randn_like(weight) for weight in weights]
    for value in (
        lambda: rollouts.log_prob(other, trajectory, rows).sum(),
        lambda: rollouts.kl(other, denoiser(dtype=torch.float64), trajectory, rows).sum(),
    ):
        gradients = torch.autograd.grad(value(), weights)
        slope = sum(float((g * v).sum()) for g, v in zip(gradients, along, strict=True))

        def moved(by: float, value: Any = value) -> float:
            with torch.no_grad():
                for weight, v in zip(weights, along, strict=True):
                    weight += by * v
                found = float(value().detach())
                for weight, v in zip(weights, along, strict=True):
                    weight -= by * v
            return found

        h = 1e-5
        assert slope == pytest.approx((moved(h) - moved(-h)) / (2 * h), rel=2e-5, abs=1e-6)


def test_autocast_and_training_mode_are_taken() -> None:
    trajectory = rolled(DDPM(steps=9))
    one = denoiser()
    one.net.train()
    found = rollouts.log_prob(one, trajectory)
    assert one.net.training
    with torch.autocast("cpu", torch.bfloat16):
        near = rollouts.log_prob(one, trajectory)
    assert 0 < float((near - found).detach().abs().max()) < 0.5
    near.sum().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in one.net.parameters())


def test_a_guide_is_the_unguided_branch() -> None:
    guided = ulam.Denoiser(Net(0), VP, guide=Net(2))
    trajectory = rolled(DDPM(steps=9), of=guided, guidance=2.0)
    found = rollouts.log_prob(guided, trajectory)
    np.testing.assert_allclose(
        found.detach().numpy(), trajectory.log_prob[:, trajectory.stochastic].numpy(), rtol=0, atol=1e-6 * SIZE
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": [8]}, "rows: got 8, which adds no noise to x and has no density, expected rows that do"),
        ({"rows": [11]}, "rows: got 11, expected 0 to 8"),
        ({"rows": []}, "rows: got none, expected rows of .* that add noise"),
        ({"rows": 3}, "rows: got 3, expected a slice, a sequence of rows, or None"),
        ({"rows": torch.tensor([True, False])}, r"rows: got shape \[2\], expected \[9\], one a row"),
        ({"pairs": torch.zeros(3, 2, dtype=torch.int64)}, "pairs: got .*, expected two int64 tensors"),
        ({"pairs": 3}, "pairs: got 3, expected two int64 tensors"),
        ({"pairs": (None, None)}, "pairs: got .*, expected two int64 tensors"),
        ({"pairs": "ab"}, "pairs: got 'ab', expected two int64 tensors"),
        ({"rows": [0.5]}, r"rows\[0\]: got 0.5, expected an integer"),
        ({"pairs": (torch.tensor([0]), torch.tensor([0.0]))}, r"pairs: got .*, expected two int64 tensors \[b\]"),
        ({"pairs": (torch.tensor([12]), torch.tensor([0]))}, "pairs: got a place outside 0 to 11"),
        ({"pairs": (torch.tensor([1]), torch.tensor([0])), "rows": [0]}, "rows: got some beside pairs"),
    ],
)
def test_hostile_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    trajectory = rolled(DDPM(steps=9))
    for call in (
        lambda: rollouts.log_prob(denoiser(), trajectory, **arguments),
        lambda: rollouts.kl(denoiser(), denoiser(), trajectory, **arguments),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
            call()
        assert "\n" not in str(error.value)


def test_what_cannot_be_computed_again_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^trajectory: got .*, expected a ulam.rollouts.Trajectory"):
        rollouts.log_prob(denoiser(), torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^trajectory: got one without states"):
        rollouts.log_prob(denoiser(), rolled(DDPM(steps=9), states=False))
    with pytest.raises(ValueError, match=r"^rows: got 0, which has a clip by a quantile, expected rows without$"):
        rollouts.log_prob(denoiser(), rolled(DDPM(steps=9, clip=DynamicThreshold(0.99))))
    with pytest.raises(ValueError, match=r"^sampler: got a program for"):
        rollouts.log_prob(ulam.Denoiser(Net(), ulam.schedules.vp_cosine(1000)), rolled(DDPM(steps=9)))
    solver = SAMPLERS["DPM-Solver++ SDE"]
    with pytest.raises(ValueError, match=r"^rows: got 2, which reads outputs from before row 2, the first that"):
        rollouts.log_prob(denoiser(), rolled(solver, rows=slice(2, 5)))
    whole = rolled(solver)
    branches = rollouts.sample(denoiser(), shape=SHAPE, **whole.fork(3, 1, seed=4))
    with pytest.raises(ValueError, match=r"^rows: got 0, which reads outputs from before row 0"):
        rollouts.log_prob(denoiser(), branches)
    assert torch.isfinite(rollouts.log_prob(denoiser(), branches, slice(1, 4))).all()
    engine = ulam.Engine(denoiser(), SHAPE, 5)
    job = engine.submit(DDPM(steps=9), 12, 3, **GUIDED, guidance_rescale=0.7, rollout=rollouts.Rollout())
    with pytest.raises(ValueError, match=r"^trajectory: got one with guidance_rescale, expected weights of guidance"):
        rollouts.log_prob(denoiser(), engine.run()[job])


def test_conditioning_that_is_used_again_is_not_the_trajectorys() -> None:
    labels, nulls = LABELS.clone(), NULLS.clone()
    trajectory = rolled(DDPM(steps=9), cond={"y": labels}, uncond={"y": nulls}, guidance=2.0)
    labels.zero_()
    nulls.fill_(500)
    found = rollouts.log_prob(denoiser(), trajectory).detach().numpy()
    expected = trajectory.log_prob[:, trajectory.stochastic].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * SIZE)


def test_a_mask_of_rows_is_taken_as_one() -> None:
    trajectory = rolled(DDIM(steps=8, eta=0.8), rows=slice(2, 7))
    found = rollouts.log_prob(denoiser(), trajectory, trajectory.stochastic)
    assert torch.equal(found, rollouts.log_prob(denoiser(), trajectory, [2, 3, 4, 5, 6]))


@pytest.mark.parametrize(
    ("sampler", "shift"),
    [(DDIM(steps=5, eta=1.0), 0.01), (DPMSolverPP(steps=5, sde=True), 0.03), (SEEDS(steps=3), 0.01)],
)
def test_ratios_carry_expectations_to_another_network(sampler: Any, shift: float) -> None:
    """E[w x] over chains of one network is E[x] of another, w the ratio of their densities along the way."""

    def of(shift: float) -> ulam.Denoiser:
        return ulam.Denoiser(lambda x, t: 0.9 * x + shift, VP)

    old, new = (rollouts.sample(of(shift), sampler, (1,), 40_000, 3, slots=40_000) for shift in (0.0, shift))
    last = int(torch.nonzero(old.stochastic).max())
    weight = (rollouts.log_prob(of(shift), old) - old.log_prob[:, old.stochastic]).sum(1).exp()
    assert abs(float(weight.mean()) - 1) < 4 * float(weight.std()) / 200
    carried = weight * old.states[:, last + 1, 0]
    error = float(carried.std() / 200 + new.states[:, last + 1, 0].std() / 200)
    assert abs(float(carried.mean() - new.states[:, last + 1, 0].mean())) < 4 * error
    assert abs(float(old.states[:, last + 1, 0].mean() - new.states[:, last + 1, 0].mean())) > 4 * error


def test_float64_intervals_end_on_the_same_times() -> None:
    one = denoiser(dtype=torch.float64)
    times = one.program(DDPM(steps=9)).time
    wide = {"cond": {"y": LABELS.double()}, "uncond": {"y": NULLS.double()}, "guidance": 2.5}
    trajectory = rolled(DDPM(steps=9), of=one, dtype=torch.float64, guidance_interval=(times[4], times[2]), **wide)
    found = rollouts.log_prob(one, trajectory).detach().numpy()
    expected = trajectory.log_prob[:, trajectory.stochastic].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * SIZE)
