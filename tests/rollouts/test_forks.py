"""Branches of a trajectory: leaves have the bits of runs that begin there, and share their trunk's evaluations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ulam
from rollout_cases import SAMPLERS, SHAPE, VP, Net, denoiser
from ulam import rollouts
from ulam.rollouts import Rollout, Trajectory
from ulam.samplers import DDPM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

LABELS = torch.arange(3.0)
GUIDED = {"cond": {"y": LABELS}, "uncond": {"y": 0 * LABELS}, "guidance": torch.tensor([0.5, 1.0, 2.0])}


def trunk(sampler: Any, **options: Any) -> Trajectory:
    return rollouts.sample(denoiser(), sampler, SHAPE, 3, 3, slots=4, **options)


@pytest.mark.parametrize("options", [{}, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_leaves_are_independent_runs_from_that_state(name: str, options: dict[str, Any]) -> None:
    whole = trunk(SAMPLERS[name], **options)
    row = len(whole.program) // 2
    leaves = rollouts.sample(denoiser(), shape=SHAPE, slots=4, **whole.fork(row, 4, seed=8))
    assert len(leaves) == 12 and leaves.first_row == row
    program = whole.program.cut(row, len(whole.program))
    for parent in range(3):
        for branch in range(4):
            own = {
                key: {"y": value["y"][parent : parent + 1]} if isinstance(value, dict) else value[parent : parent + 1]
                for key, value in options.items()
            }
            history = None if whole.history is None else whole.history[parent : parent + 1, row]
            alone = rollouts.sample(
                denoiser(), program, SHAPE, [4 * parent + branch], 8, slots=4, history=history, first_row=row,
                x_init=whole.states[parent : parent + 1, row], **own,
            )  # fmt: skip
            assert torch.equal(alone.x[0], leaves.x[4 * parent + branch])
            assert torch.equal(alone.squares[0], leaves.squares[4 * parent + branch])
    x = leaves.x.reshape(3, 4, -1)
    assert all(not torch.equal(x[p, i], x[p, j]) for p in range(3) for i in range(4) for j in range(i))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_fork_of_the_same_seed_and_ids_goes_on_as_the_trunk_did(name: str) -> None:
    whole = trunk(SAMPLERS[name])
    row = len(whole.program) // 2
    again = rollouts.sample(denoiser(), shape=SHAPE, slots=4, **{**whole.fork(row, 1, seed=4), "seed": 3})
    assert torch.equal(again.x, whole.x) and torch.equal(again.squares, whole.squares[:, row:])


def test_a_tree_of_16_leaves_takes_little_more_than_half_of_16_chains() -> None:
    calls: list[int] = []
    net = Net()

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return net(x, t)

    one = ulam.Denoiser(counted, VP)
    program = one.program(DDPM(steps=50))
    engine = ulam.Engine(one, SHAPE, 1)
    job = engine.submit(program[:25], 1, 3, rollout=Rollout())
    leaves_of = engine.run()[job].fork(25, 16, seed=1, program=program)
    (leaves,) = (engine.submit(**leaves_of, rollout=Rollout()), engine.run())[1].values()
    assert len(leaves) == 16 and len(calls) == 25 + 16 * 25 <= 0.55 * 16 * 50
    assert engine.report.evaluations == len(calls)
    whole = rollouts.sample(one, program, SHAPE, 1, 3)
    same = rollouts.sample(one, shape=SHAPE, slots=1, **whole.fork(25, 16, seed=1))
    assert torch.equal(same.x, leaves.x)
    with pytest.raises(ValueError, match=r"^program: got .*, expected one that begins as the trunk's"):
        whole.fork(2, 2, 1, one.program(DDPM(steps=20)))


def test_a_fork_of_a_fork_goes_on_with_its_rows() -> None:
    whole = trunk(DDPM(steps=9))
    first = rollouts.sample(denoiser(), shape=SHAPE, slots=4, **whole.fork(3, 2, seed=1))
    second = rollouts.sample(denoiser(), shape=SHAPE, slots=4, **first.fork(2, 2, seed=2))
    assert second.first_row == 5 and len(second) == 12 and second.states.shape[1] == 5
    same = rollouts.sample(denoiser(), shape=SHAPE, slots=4, **{**first.fork(2, 1, seed=2), "seed": 1})
    assert torch.equal(same.x, first.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 2, 1), "row: got 9, expected 0 to 8, which was recorded"),
        ((-1, 2, 1), "row: got -1, expected 0 to 8"),
        ((2, 0, 1), "n: got 0, expected at least 1"),
        ((2.5, 1, 1), "row: got 2.5, expected an integer"),
        ((2, 1, 1, DDPM(steps=9)), r"program: got .*, expected a Program, as denoiser.program"),
        ((2, 1, 3), "seed: got 3, the trunk's own, expected another"),
    ],
)
def test_hostile_arguments_are_refused_in_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        trunk(DDPM(steps=9)).fork(*arguments)
    with pytest.raises(ValueError, match=r"^fork: got a trajectory without states"):
        trunk(DDPM(steps=9), states=False).fork(1, 1, 1)


def test_what_a_trajectory_does_not_hold_is_not_forked() -> None:
    engine = ulam.Engine(denoiser(), SHAPE, 4)
    for more, name in (
        ({"guidance_rescale": 0.7}, "guidance_rescale"),
        ({"guidance_rule": ulam.guidance.APG()}, "a rule of guidance"),
    ):
        job = engine.submit(DDPM(steps=9), 3, 1, **GUIDED, **more, rollout=Rollout())
        with pytest.raises(ValueError, match=f"^fork: got a trajectory with {name}, which it does not hold"):
            engine.run()[job].fork(3, 2, 5)
