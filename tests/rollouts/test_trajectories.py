"""Trajectories: what is recorded is what happened, and recording changes no bit of it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from rollout_cases import SAMPLERS, SHAPE, SIZE, Net, denoiser, densities, rounding
from ulam import rollouts
from ulam.rollouts import Rollout, Trajectory
from ulam.samplers import DDIM, DDPM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

LABELS = torch.arange(12.0)
NULLS = torch.zeros(12)


def rolled(sampler: Any, chains: Any = 12, slots: int = 5, **options: Any) -> Trajectory:
    guided = {"cond": {"y": LABELS}, "uncond": {"y": NULLS}, "guidance": 2.5} if options.pop("guided", False) else {}
    return rollouts.sample(denoiser(), sampler, SHAPE, chains, 3, slots=slots, **guided, **options)


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_log_probabilities_are_the_densities_of_the_states(name: str, guided: bool) -> None:
    """Within 1e-5 an element, against the formula in float64; and the samples are those of an unrecorded run."""
    sampler = SAMPLERS[name]
    trajectory = rolled(sampler, guided=guided, outputs=True)
    assert trajectory.outputs is not None and trajectory.states is not None
    unguided = trajectory.history[:, 1:, 0] if name.endswith("CFG++") else None  # the register that takes it
    expected = densities(trajectory, trajectory.outputs, unguided)
    found = trajectory.log_prob.numpy()
    assert (np.isnan(found) == np.isnan(expected)).all() and np.isfinite(found).any()
    allowed = (rounding(trajectory) if name == "ER-SDE" else 0) + 1e-5 * SIZE  # its last steps are small
    assert not (abs(found - expected) > allowed).any()
    extra = {"cond": {"y": LABELS}, "uncond": {"y": NULLS}, "guidance": 2.5} if guided else {}
    plain = ulam.sample(denoiser(), sampler, SHAPE, 12, 3, slots=5, progress=False, **extra)
    assert torch.equal(plain, trajectory.x) and torch.equal(plain, trajectory.states[:, -1])
    np.testing.assert_allclose(trajectory.total.numpy(), np.nansum(found, 1), rtol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_bits_do_not_depend_on_the_batch(name: str) -> None:
    """In batches of 1, 7 and 64 chains at equal slots, and beside other jobs."""
    whole = rolled(SAMPLERS[name], 64, slots=8)
    for chains in (range(1), range(7), range(20, 27)):
        part = rolled(SAMPLERS[name], chains, slots=8)
        for of in ("states", "history", "squares"):
            one, other = getattr(part, of), getattr(whole, of)
            assert one is other is None or torch.equal(one, other[chains.start : chains.stop])
    engine = ulam.Engine(denoiser(), SHAPE, 8)
    jobs = [
        engine.submit(DDIM(steps=3, eta=1.0), 5, 1),
        engine.submit(SAMPLERS[name], 64, 3, rollout=Rollout()),
        engine.submit(DDPM(steps=9), 9, 4, rollout=Rollout(log_prob=False)),
    ]
    found = engine.run()
    assert torch.equal(found[jobs[1]].states, whole.states) and torch.equal(found[jobs[1]].squares, whole.squares)
    assert torch.equal(
        found[jobs[0]], ulam.sample(denoiser(), DDIM(steps=3, eta=1.0), SHAPE, 5, 1, slots=8, progress=False)
    )


def test_a_window_of_rows_is_that_of_the_whole() -> None:
    whole, part = rolled(DDPM(steps=9)), rolled(DDPM(steps=9), rows=slice(2, 6))
    assert part.states.shape == (12, 5, *SHAPE) and list(part.rows) == [2, 3, 4, 5]
    assert torch.equal(part.states, whole.states[:, 2:7]) and torch.equal(part.log_prob, whole.log_prob[:, 2:6])
    assert torch.equal(part.times, whole.times[2:6])


def test_results_of_a_stream_have_the_trajectories_of_their_chains() -> None:
    whole = rolled(DDPM(steps=9))
    engine = ulam.Engine(denoiser(), SHAPE, 5)
    job = engine.submit(DDPM(steps=9), 12, 3, rollout=Rollout())
    seen = {result.chain: result for result in engine.stream()}
    assert len(seen) == 12
    for chain, result in seen.items():
        assert result.job is job and torch.equal(result.trajectory.states[0], whole.states[chain])
        assert torch.equal(result.trajectory.total, whole[chain].total)
        assert result.trajectory.chains.tolist() == [chain] and torch.equal(result.trajectory.x[0], result.x)
    engine.submit(DDPM(steps=9), 2, 3)
    assert all(result.trajectory is None for result in engine.stream())


def test_an_interrupt_at_any_tick_leaves_the_record_whole() -> None:
    """An exception out of the network, and one out of the step's neighbourhood, then on with the same engine."""
    whole = rolled(DDPM(steps=9))
    for fails in range(1, 25):
        net, calls = Net(), []

        def interrupted(
            x: torch.Tensor, t: torch.Tensor, net: Net = net, calls: list[int] = calls, at: int = fails
        ) -> Any:
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return net(x, t)

        engine = ulam.Engine(ulam.Denoiser(interrupted, denoiser().schedule), SHAPE, 5)
        job = engine.submit(DDPM(steps=9), 12, 3, rollout=Rollout())
        with pytest.raises((KeyboardInterrupt, ulam.NetworkError)):
            engine.run()
        found = engine.run()[job]
        assert torch.equal(found.states, whole.states) and torch.equal(found.squares, whole.squares)


def test_interrupts_anywhere_in_recording_leave_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from ulam.engine.recording import Recorder

    whole = rolled(DDPM(steps=9))
    for method in ("begin", "keep", "of_step"):
        plain, left = getattr(Recorder, method), [4]

        def broken(self: Any, *arguments: Any, plain: Any = plain, left: list[int] = left) -> Any:
            found = plain(self, *arguments)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(Recorder, method, broken)
        engine = ulam.Engine(denoiser(), SHAPE, 5)
        job = engine.submit(DDPM(steps=9), 12, 3, rollout=Rollout())
        with pytest.raises(KeyboardInterrupt):
            engine.run()
        found = engine.run()[job]
        assert torch.equal(found.states, whole.states) and torch.equal(found.squares, whole.squares)
        monkeypatch.undo()


def test_failed_chains_have_no_densities_from_there_on() -> None:
    net = Net()

    def failing(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = net(x, t)
        out[(x.flatten(1)[:, 0] < -0.5) & (t < 500)] = torch.nan
        return out

    engine = ulam.Engine(ulam.Denoiser(failing, denoiser().schedule), SHAPE, 5)
    job = engine.submit(DDPM(steps=9), 12, 3, rollout=Rollout())
    found = engine.run()[job]
    assert 0 < len(found.failed) < 12
    for place in range(12):
        from_here = found.failed.get(place, len(found.rows))
        assert found.x[place].isnan().all() == (place in found.failed)
        assert torch.isfinite(found.log_prob[place, : min(from_here, len(found.rows) - 1)]).all()
        assert torch.isnan(found.log_prob[place, from_here:]).all()


def test_failed_chains_have_none_computed_again_and_copies_of_them_neither() -> None:
    net = Net()

    def failing(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = net(x, t)
        out[(x.flatten(1)[:, 0] < -0.5) & (t < 500) & (t > 300)] = torch.nan
        return out

    one = ulam.Denoiser(failing, denoiser().schedule)
    found = rollouts.sample(one, DDPM(steps=9), SHAPE, 12, 3, slots=5)
    place, row = next(iter(found.failed.items()))
    again = rollouts.log_prob(one, found).detach()
    assert again[place, row:].isnan().all() and again[place, :row].isfinite().all()
    assert found[[place, place]].log_prob[:, row:].isnan().all() and len(found[[place, place]].failed) == 2
    kl = rollouts.kl(denoiser(1), denoiser(), found)
    assert kl[place, row:].isnan().all() and kl[place, :row].isfinite().all()
    with pytest.raises(ValueError, match=rf"^row: got {row + 1}, which place \d+ did not reach: it failed at row \d"):
        found.fork(row + 1, 2, seed=4)
    assert found[[place]].fork(row, 2, seed=4)["x_init"].isfinite().all()


def test_sizes_are_those_of_the_states_whatever_finish_makes_of_them() -> None:
    engine = ulam.Engine(denoiser(), SHAPE, 5)
    job = engine.submit(
        DDPM(steps=9), 12, 3, finish=lambda x: x.double().flatten(1)[:, :3], rollout=Rollout(states=False)
    )
    found = engine.run()[job]
    assert found.x.shape == (12, 3) and torch.equal(found.total, rolled(DDPM(steps=9)).total)


def test_results_can_train_a_critic() -> None:
    for slots in (5, 12):
        x = rolled(DDPM(steps=9), slots=slots).x
        torch.nn.Linear(SIZE, 1)(x.flatten(1)).sum().backward()


def test_outputs_are_nan_where_a_row_has_none() -> None:
    found = rolled(SAMPLERS["Euler with churn"], outputs=True)
    evaluates = torch.from_numpy(found.program.evaluates.copy())
    assert found.outputs[:, ~evaluates].isnan().all() and found.outputs[:, evaluates].isfinite().all()


def test_a_cancelled_job_leaves_others_whole_and_threads_may_take_results() -> None:
    engine = ulam.Engine(denoiser(), SHAPE, 4)
    gone = engine.submit(DDPM(steps=9), 6, 1, rollout=Rollout())
    kept = engine.submit(DDPM(steps=9), 12, 3, rollout=Rollout())
    engine.cancel(gone)
    found: dict[Any, Any] = {}
    thread = threading.Thread(target=lambda: found.update(engine.run()))
    thread.start()
    thread.join()
    assert gone not in found and torch.equal(found[kept].squares, rolled(DDPM(steps=9), slots=4).squares)


def test_chains_of_a_trajectory_are_taken_like_rows_of_a_tensor() -> None:
    whole = rolled(DDPM(steps=9), guided=True, outputs=True)
    for at in (
        slice(3, 7),
        [5, 2],
        torch.tensor([9, 0, 4]),
        torch.arange(12) % 2 == 0,
        3,
        torch.tensor(4),
        np.int64(2),
        range(2, 5),
    ):
        part = whole[at]
        index = (
            list(at)
            if isinstance(at, range)
            else [int(at)]
            if not getattr(at, "shape", 1) or isinstance(at, int)
            else at
        )
        for name in ("chains", "x", "states", "outputs", "squares", "guidance"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[index])
        assert torch.equal(part.cond["y"], LABELS[index])
    assert len(repr(whole)) < 80


def test_a_chain_kernel_and_float64_record_too() -> None:
    engine = ulam.Engine(denoiser(), SHAPE, 4, chain_kernel="on")
    job = engine.submit(DDPM(steps=9), 6, 3, rollout=Rollout(outputs=True))
    found = engine.run()[job]
    np.testing.assert_allclose(found.log_prob.numpy(), densities(found, found.outputs), rtol=0, atol=1e-5 * SIZE)
    assert torch.equal(found.x, ulam.sample(denoiser(), DDPM(steps=9), SHAPE, 6, 3, chain_kernel="on", progress=False))
    wide = rollouts.sample(denoiser(dtype=torch.float64), DDPM(steps=9), SHAPE, 6, 3, dtype=torch.float64, outputs=True)
    np.testing.assert_allclose(
        wide.log_prob.numpy(), rolled(DDPM(steps=9), 6).log_prob.numpy(), rtol=0, atol=1e-5 * SIZE
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": slice(0, 9, 2)}, "rows: got .*, expected a slice of consecutive rows, or None"),
        ({"rows": [1]}, r"rows: got .*, expected a slice"),
        ({"rows": slice(9, 9)}, "rows: got .*, expected at least one of 9 rows"),
        ({"states": 1}, "states: got 1, expected True or False"),
        ({"history": torch.zeros(12, 0, *SHAPE, dtype=torch.int64)}, "history: got .*, expected a float tensor"),
        ({"history": torch.zeros(12, 3, *SHAPE)}, r"history: got shape .*, expected \[12, 0, 2, 7\]"),
    ],
)
def test_hostile_arguments_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        rolled(DDPM(steps=9), **change)
    assert "\n" not in str(error.value)


def test_what_has_no_density_is_refused() -> None:
    learned = DDPM(steps=9, variance="learned")
    net = lambda x, t: torch.cat([x, 0 * x], 1)  # noqa: E731
    engine = ulam.Engine(ulam.Denoiser(net, denoiser().schedule), SHAPE, 4)
    with pytest.raises(ValueError, match=r"^rollout: got .*learned variance.*Rollout\(log_prob=False\)$"):
        engine.submit(learned, 4, 1, rollout=Rollout())
    job = engine.submit(learned, 4, 1, rollout=Rollout(log_prob=False))
    with pytest.raises(ValueError, match=r"^log_prob: got a trajectory without it"):
        _ = engine.run()[job].log_prob
    with pytest.raises(ValueError, match=r"^noise: got a callable beside rollout"):
        engine.submit(
            DDPM(steps=9), 4, 1, noise=lambda row, chains: torch.zeros(len(chains), *SHAPE), rollout=Rollout()
        )
    with pytest.raises(TypeError, match=r"^rollout: got True, expected an ulam.rollouts.Rollout or None$"):
        engine.submit(DDPM(steps=9), 4, 1, rollout=True)


def test_a_trajectory_moves_whole() -> None:
    """To the device that holds no numbers, as there is one everywhere: all tensors go, shared conditioning too."""
    trajectory = rolled(SAMPLERS["SEEDS"], guided=True, outputs=True)
    trajectory.cond["y"] = ulam.shared(torch.ones(()))
    moved = trajectory.to("meta")
    tensors = [moved.x, moved.states, moved.history, moved.squares, moved.outputs, moved.guidance, moved.uncond["y"]]
    assert {tensor.device.type for tensor in [*tensors, moved.cond["y"].tensor]} == {"meta"}
    assert torch.equal(trajectory.to("cpu").states, trajectory.states)
