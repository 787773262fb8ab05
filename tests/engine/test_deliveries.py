"""Each chain is delivered once, and counted once, whoever is interrupted, fails or cancels, in whichever thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, net
from ulam.engine.delivery import Delivery
from ulam.samplers import DDIM

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

GIVEN = {"y": torch.arange(3.0)}


class Interrupt(BaseException):
    """As KeyboardInterrupt."""


def engine_of(
    *finishes: Callable[[torch.Tensor], torch.Tensor] | None, slots: int = 6
) -> tuple[ulam.Engine, list[Any]]:
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, slots)
    jobs = [engine.submit(DDIM(steps=2), 3, seed, GIVEN, finish=how) for seed, how in enumerate(finishes)]
    return engine, jobs


def interrupted(monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[], object], *, after: bool) -> None:
    """Call, with an interrupt as a method of the delivery begins, or after it."""
    method = getattr(Delivery, name)

    def interrupt(self: Delivery, *arguments: Any) -> Any:
        if after:
            method(self, *arguments)
        raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(Delivery, name, interrupt)
        with pytest.raises(Interrupt):
            call()


def in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_one_cancelled_amid_a_hand_over_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are at their new place, and still at the old one."""

    def half(self: Delivery, target: dict[Any, Any], entries: dict[Any, Any], drop: Callable[[], object]) -> None:
        self._moving = target, next(iter(entries)), drop
        target.update(entries)
        raise Interrupt

    engine, (mine, other) = engine_of(None, None)
    with monkeypatch.context() as patched:
        patched.setattr(Delivery, "_move", half)
        with pytest.raises(Interrupt):
            next(engine.stream())
    assert engine.cancel(mine) == 3 and engine.report.cancelled == 3
    assert [result.job for result in engine.stream()] == [other] * 3 and not engine.run()


def test_one_whose_chains_left_their_slots_is_cancelled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, (job,) = engine_of(None)
    interrupted(monkeypatch, "put", engine.run, after=True)
    assert engine.cancel(job) == 3 and engine.report.cancelled == 3 and not engine.run()


def test_one_half_of_which_was_streamed_is_cancelled_by_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, (job,) = engine_of(None)
    next(engine.stream())
    interrupted(monkeypatch, "join", engine.run, after=True)
    assert engine.cancel(job) == 2 and engine.report.cancelled == 2 and not engine.run()


def test_a_run_that_fails_takes_nothing_from_another_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of the second job cannot be joined: its decoder gives them other shapes."""
    sizes = iter([1, 2])
    engine, _ = engine_of(None, slots=2)
    interrupted(monkeypatch, "join", engine.run, after=True)
    odd = engine.submit(DDIM(steps=2), 3, 9, GIVEN, finish=lambda x: x.flatten(1)[:, : next(sizes)])

    def fails() -> None:
        with pytest.raises(RuntimeError):
            engine.run()

    in_thread(fails)
    came = [(result.job.seed, result.chain) for result in engine.stream()]
    assert sorted(came) == [(0, 0), (0, 1), (0, 2), (odd.seed, 0), (odd.seed, 1), (odd.seed, 2)]
    assert not engine.run()


def test_an_engine_keeps_no_results_of_threads_that_have_ended() -> None:
    engine, _ = engine_of()
    for seed in range(5):
        in_thread(lambda seed=seed: (engine.submit(DDIM(steps=2), 3, seed, GIVEN), engine.run()))  # type: ignore[misc]
    assert len(engine._delivery._joined_of) == 1
