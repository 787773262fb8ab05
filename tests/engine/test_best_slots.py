"""Finding the number of slots: the knee of known curves, limits, and what is remembered."""

from __future__ import annotations

import json
import logging
import threading

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, net
from ulam import NetworkOptions
from ulam.engine import best_slots

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

CPU = torch.device("cpu")


class Linear(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(width))

    def forward(self, x, t):
        return x @ self.weight


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def best(network, **options):
    return ulam.Engine.best_slots(ulam.Denoiser(network, SCHEDULE), (4,), CPU, **options)


def with_curve(monkeypatch, rate):
    """Trials that give rate(slots); the slots that were tried."""
    tried = []

    def trial(engine, denoiser, shape, device, backend, dtype, options, cond, slots):
        tried.append(slots)
        return rate(slots)

    monkeypatch.setattr(best_slots, "_rate", trial)
    return tried


@pytest.mark.parametrize("full, knee", [(1, 1), (2, 2), (40, 64), (100, 128), (4096, 4096)])
def test_the_knee_of_a_device_that_is_full_at_so_many_chains(home, monkeypatch, full, knee):
    """A tick takes max(slots, full): twice the slots are worth it until `full` lies behind."""
    tried = with_curve(monkeypatch, lambda slots: 1e6 * slots / max(slots, full))
    assert best(Linear()) == knee
    assert tried == [2**k for k in range(knee.bit_length() + 2)], "two more than were worth it"


def test_memory_time_and_number_are_limits(home, monkeypatch):
    with_curve(monkeypatch, lambda slots: 1e6 * slots if slots <= 16 else 0.0)  # 0: did not fit
    assert best(Linear()) == 16
    tried = with_curve(monkeypatch, lambda slots: 1e6 * slots)
    assert best(Linear(5)) == best_slots.MOST == tried[-1]
    tried = with_curve(monkeypatch, lambda slots: slots**0.5)  # 4 slots take 2 s a tick, 32 take 5.7
    assert best(Linear(6)) == 32 == tried[-1]
    monkeypatch.setattr(best_slots, "_has_room", lambda device: len(tried) < 4)
    tried = with_curve(monkeypatch, lambda slots: 1e6 * slots)
    assert best(Linear(7)) == 8 == tried[-1]


def test_a_result_is_remembered_for_what_it_depends_on(home, monkeypatch):
    tried = with_curve(monkeypatch, lambda slots: 1000 * slots / max(slots, 8))
    assert best(Linear()) == best(Linear()) == 8 and len(tried) == 6
    for other in (
        lambda: best(Linear(8)),
        lambda: best(Linear(), options=NetworkOptions(channels_last=True)),
        lambda: best(Linear(), backend="reference"),
        lambda: best(Linear(), dtype=torch.bfloat16),
        lambda: best(Linear().bfloat16()),
        lambda: ulam.Engine.best_slots(ulam.Denoiser(Linear(), SCHEDULE), (3, 4), CPU),
    ):
        tried.clear()
        assert other() == 8 and len(tried) == 6
        assert other() == 8 and len(tried) == 6
    tried.clear()
    assert best(net) == best(net) == 8 and len(tried) == 12, "a function has no shapes to know it by"


@pytest.mark.parametrize("text", ["", "{", '["slots"]', '{"key": "many"}', '{"key": 0}', '{"key": true}'])
def test_a_corrupt_cache_is_ignored_with_a_warning(home, monkeypatch, caplog, text):
    with_curve(monkeypatch, lambda slots: 1000 * slots / max(slots, 8))
    best_slots.remembered().path.parent.mkdir()
    best_slots.remembered().path.write_text(text)
    with caplog.at_level(logging.WARNING, logger="ulam"):
        assert best(Linear()) == 8
    assert "is ignored" in caplog.text
    assert list(json.loads(best_slots.remembered().path.read_text()).values()) == [8], "and replaced"
    assert [path.name for path in best_slots.remembered().path.parent.iterdir()] == ["slots.json"]


def test_a_cache_that_cannot_be_written_costs_the_memory_only(home, monkeypatch, caplog):
    tried = with_curve(monkeypatch, lambda slots: 1000 * slots / max(slots, 8))
    (home / "ulam").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="ulam"):
        assert best(Linear()) == best(Linear()) == 8
    assert len(tried) == 12 and "cannot be kept" in caplog.text


def test_threads_writing_at_once_leave_a_whole_file(home):
    threads = [threading.Thread(target=best_slots.remembered().write, args=(str(k), k + 1)) for k in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(best_slots.remembered().read()) <= 20
    assert all(slots == int(key) + 1 for key, slots in best_slots.remembered().read().items())


def test_trials_for_real(home):
    """A network whose every call takes the same time is full nowhere near."""
    engine = ulam.Engine(ulam.Denoiser(Linear(), SCHEDULE), (4,), "auto")
    assert engine.slots >= 8 and engine.slots & (engine.slots - 1) == 0
    job = engine.submit(ulam.samplers.DDIM(steps=3), 5)
    assert engine.run()[job].shape == (5, 4)


def test_out_of_memory_ends_the_trials(home):
    class Small(Linear):
        def forward(self, x, t):
            if len(x) > 8:
                raise torch.OutOfMemoryError("simulated")
            return x @ self.weight

    assert best(Small()) <= 8


def test_arguments_of_the_network(home):
    def network(x, t, y):
        assert len(y) == len(x)
        return x * y

    with pytest.raises(
        TypeError, match=r"slots: got 'auto', whose trials called .* with x, t and cond=\[\].*best_slots"
    ):
        ulam.Engine(ulam.Denoiser(network, SCHEDULE), (4,), "auto")
    assert best(network, cond={"y": torch.ones(1, 1)}) >= 1


@pytest.mark.parametrize("bad", ["many", 0, -3, 2.5])
def test_bad_slots(bad):
    with pytest.raises((TypeError, ValueError), match="slots"):
        ulam.Engine(ulam.Denoiser(Linear(), SCHEDULE), (4,), bad)
