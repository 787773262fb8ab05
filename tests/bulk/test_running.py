"""Bulk runs from Python: the bytes of ulam.sample, whatever the job, and one line for what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import ulam
from bulk_cases import (
    CHAINS,
    SCHEDULE,
    SHAPE,
    Breaks,
    Decoder,
    Net,
    job,
    jobs,
    labelled,
    sampled,
    values,
)
from processes import started
from ulam import bulk
from ulam.bulk.workers.worker import ONE_AT_A_TIME
from ulam.samplers import DDIM, DDPM

SUPPORT = Path(__file__).parent.parent / "support"


def run(given: Any, folder: Path, workers: int = 1, **plan: Any) -> bulk.Folder:
    return bulk.run(bulk.Plan(given, **{"slots": 32} | plan), folder, workers, progress=False)


def stored(folder: bulk.Folder) -> torch.Tensor:
    return torch.cat([unit.x for _, unit in folder.finished()])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("unit", [None, 1, 50])
@pytest.mark.parametrize("name", jobs())
def test_units_hold_the_bits_of_sample(tmp_path, name, unit):
    folder = run(job(**jobs()[name]), tmp_path, unit=unit)
    assert same_bits(stored(folder), sampled(**jobs()[name]))
    assert folder.status().done_chains == CHAINS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_of_every_type(tmp_path, dtype):
    given = {"denoiser": ulam.Denoiser(Net().to(dtype), SCHEDULE), "sampler": DDPM(5)}
    assert same_bits(stored(run(job(**given), tmp_path, dtype=dtype, unit=50)), sampled(**given, dtype=dtype))


def test_jobs_with_and_without_blends(tmp_path):
    """One network, whose engines have as many branches as the jobs in them."""
    other = ({"y": torch.arange(CHAINS) % 3}, 0.5)
    given: list[dict[str, Any]] = [{}, {"blend": [({}, 0.5)]}]
    given += [{"cond": labelled()}, {"cond": labelled(), "blend": [other]}, {"cond": labelled(), "blend": [other] * 2}]
    folder = run([job(**arguments) for arguments in given], tmp_path)
    for number, arguments in enumerate(given):
        x = torch.cat([unit.x for at, unit in folder.finished() if at == number])
        assert same_bits(x, sampled(**arguments))


def test_with_256_slots(tmp_path):
    given: dict[str, Any] = {"chains": 600, "cond": labelled(600)}
    assert same_bits(stored(run(job(**given), tmp_path, slots=256)), sampled(256, **given))


def test_several_networks_and_shapes_and_equal_jobs(tmp_path):
    given: list[dict[str, Any]] = [
        {}, {"denoiser": ulam.Denoiser(Net(0.2), SCHEDULE)}, {"shape": (4, 3)}, {}, {"sampler": DDIM(4)},
    ]  # fmt: skip
    folder = run([job(**arguments) for arguments in given], tmp_path, unit=50)
    for number, arguments in enumerate(given):
        x = torch.cat([unit.x for at, unit in folder.finished() if at == number])
        assert same_bits(x, sampled(**arguments))
    told = folder.status()
    assert (told.done_units, told.done_chains) == (told.units, told.chains) == (10, 5 * CHAINS)
    assert folder.verify().passed


def test_jobs_of_one_network_with_and_without_conditioning(tmp_path):
    context = [ulam.shared(values(*SHAPE, seed=seed)) for seed in (1, 2)]
    y = labelled()["y"]
    given: list[dict[str, Any]] = [
        {}, {"cond": {"y": y}}, {"cond": {"y": y.float()}}, {"cond": {"y": y, "context": context[0]}},
        {"cond": {"y": y, "context": context[1]}}, {"cond": {"y": y}, "uncond": {"y": y * 0}, "guidance": 2.0},
        {"cond": {"y": y}, "uncond": {"y": ulam.shared(y[0])}, "guidance": 2.0}, {"seed": 1},
    ]  # fmt: skip
    folder = run([job(**arguments) for arguments in given], tmp_path, unit=50)
    for number, arguments in enumerate(given):
        x = torch.cat([unit.x for at, unit in folder.finished() if at == number])
        assert same_bits(x, sampled(**arguments))


def double_floats(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0].double() * 2


BUFFER = torch.zeros(32, *SHAPE)


def in_a_buffer(x: torch.Tensor) -> torch.Tensor:
    return BUFFER[: len(x)].copy_(x)


@pytest.mark.parametrize("finish", [Decoder(), double_floats, in_a_buffer, lambda x: x.bfloat16()])
def test_finish_may_change_shape_and_type(tmp_path, finish):
    with torch.inference_mode():
        expected = torch.cat([finish(part).clone() for part in sampled().split(32)])
    assert same_bits(stored(run(job(finish=finish), tmp_path, unit=64)), expected)


def fails(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no\npictures")


WRONG = {
    "a row": (lambda x: x[:1], "finish: got a tensor of torch.float32 [1, 2, 3] for 32 chains, expected a dense"),
    "a number": (lambda x: x.mean(), "finish: got a tensor of torch.float32 [] for 32 chains"),
    "more": (lambda x: torch.cat([x, x]), "finish: got a tensor of torch.float32 [64, 2, 3] for 32 chains"),
    "none": (lambda x: None, "finish: got None for 32 chains"),
    "an array": (lambda x: x.numpy(), "finish: got ndarray for 32 chains"),
    "sparse": (lambda x: x.to_sparse(), "finish: got a tensor of torch.float32 [32, 2, 3] for 32 chains"),
    "changing": (lambda x: x[:, :, : len(x) // 10], "finish: got a tensor of torch.float32 [6, 2, 0] after a tensor"),
    "raises": (fails, "no\npictures"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_finish_that_gives_no_row_for_each_chain_is_named_in_the_status(tmp_path, name):
    finish, message = WRONG[name]
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        run(job(finish=finish), tmp_path, unit=CHAINS)
    assert str(caught.value).startswith(message)
    told = bulk.open(tmp_path).status()
    assert told.done_units == 0
    assert [message.replace("\n", " ") in text for text in told.errors.values()] == [True]
    assert (told.running, told.workers) == (0, 0)


def test_bfloat16_of_finish_is_refused_in_npz(tmp_path):
    with pytest.raises(TypeError, match=r"^finish: got bfloat16, which NumPy lacks, expected"):
        run(job(finish=lambda x: x.bfloat16()), tmp_path, format="npz")


@pytest.mark.parametrize("unit", [None, 1, 50])
@pytest.mark.filterwarnings("ignore:.*turned NaN")
def test_chains_that_turn_nan_are_told_and_equal_those_of_sample(tmp_path, unit):
    given: dict[str, Any] = {"denoiser": ulam.Denoiser(Breaks(), SCHEDULE), "cond": labelled()}
    folder = run(job(**given), tmp_path / "a", unit=unit)
    assert same_bits(stored(folder), sampled(**given))
    expected = [i for i in range(CHAINS) if i % 8 == 3]
    found = [int(part.chains[place]) for _, part in folder.finished() for place in part.failed]
    assert found == expected
    assert folder.status().failed == folder.export("npz", tmp_path / "b.npz").failed == len(expected)


def test_pictures_of_chains_that_turned_nan_are_listed(tmp_path):
    given = {"denoiser": ulam.Denoiser(Breaks(), SCHEDULE), "cond": labelled(), "finish": Decoder()}
    folder = run(job(**given), tmp_path)
    (_, unit), *_ = folder.finished()
    assert unit.failed == dict.fromkeys(range(3, CHAINS, 8), 0)
    assert unit.x.dtype == torch.uint8


class Overflows(Net):
    """Far too much in the last row, for chains of class 3."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        last = (t < 2) & (y == 3)
        return torch.where(last.view(-1, 1, 1), -torch.inf, x * 0.5)


@pytest.mark.filterwarnings("ignore:.*turned NaN")
def test_an_overflow_in_the_last_row_counts_as_failed(tmp_path):
    given = {"denoiser": ulam.Denoiser(Overflows(), SCHEDULE), "cond": labelled(), "sampler": DDIM(20)}
    folder = run(job(**given), tmp_path)
    (_, unit), *_ = folder.finished()
    assert set(unit.failed) == {*range(3, CHAINS, 8)}
    assert unit.x[sorted(unit.failed)].isnan().all()
    alive = [i for i in range(CHAINS) if i not in unit.failed]
    assert same_bits(unit.x[alive], sampled(**given)[alive])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_network_that_raises_is_told_and_what_is_finished_stays(tmp_path, workers):
    y = labelled()["y"]
    y[40] = 9
    given = job(denoiser=ulam.Denoiser(Breaks(), SCHEDULE), cond={"y": y})
    with pytest.raises((ulam.NetworkError, bulk.WorkerError), match="a class"):
        run(given, tmp_path, workers, unit=32)
    told = bulk.open(tmp_path).status()
    assert 40 not in [int(chain) for _, unit in bulk.open(tmp_path).finished() for chain in unit.chains]
    assert any("a class that it does not know" in text for text in told.errors.values())
    assert all("\n" not in text for text in told.errors.values())


def test_functions_that_cannot_be_sent_to_workers_are_refused_in_one_line(tmp_path):
    with pytest.raises(TypeError, match=r"^plan: got one that cannot be sent .* or workers=1$"):
        run(job(finish=lambda x: x * 2), tmp_path, 2)


def test_nothing_of_the_process_changes(tmp_path):
    net = Net().train()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    plan = bulk.Plan(job(denoiser=ulam.Denoiser(net, SCHEDULE)), slots=32)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for on_interrupt in ("drop", "drain"):
        bulk.run(plan, tmp_path / on_interrupt, progress=False, threads=threads + 1, on_interrupt=on_interrupt)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_that_fails_before_its_work_does_not_block_the_next(tmp_path, monkeypatch):
    def fail(count: int) -> None:
        raise RuntimeError("no threads")

    monkeypatch.setattr(torch, "set_num_threads", fail)
    with pytest.raises(RuntimeError, match="no threads"):
        run(job(), tmp_path)
    assert not ONE_AT_A_TIME.locked()


def test_several_runs_in_threads_of_one_process_do_each_unit_once(tmp_path):
    calls: list[torch.nn.Module] = []  # counted outside the network: what its code refers to belongs to its fingerprint
    counting = register_module_forward_pre_hook(lambda module, args: calls.append(module))
    plan = bulk.Plan(job(denoiser=ulam.Denoiser(Net(), SCHEDULE), chains=1000), slots=32, unit=32)
    run_one = lambda: bulk.run(plan, tmp_path, progress=False, on_interrupt="drain")  # noqa: E731
    threads = [threading.Thread(target=run_one) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        counting.remove()
    evaluations = sum(isinstance(module, Net) for module in calls)
    told = bulk.open(tmp_path)
    assert told.verify().passed
    assert same_bits(stored(told), sampled(chains=1000, denoiser=ulam.Denoiser(Net(), SCHEDULE)))
    assert 0 < evaluations < 240  # 160 ticks


def test_a_folder_by_a_relative_path_or_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = run(job(), "a")  # type: ignore[arg-type]
    monkeypatch.chdir("/")
    assert folder.status().done_chains == CHAINS
    assert run(job(), "~/a").path == tmp_path / "home" / "a"  # type: ignore[arg-type]
    assert bulk.open("~/a").export("npz", "~/b.npz").rows == CHAINS
    assert (tmp_path / "home" / "b.npz").exists()


@pytest.mark.parametrize("there", ["missing", "a file", "empty", "foreign", "damaged"])
def test_open_names_what_is_no_folder_of_a_run(tmp_path, there):
    path = tmp_path / "a"
    if there == "a file":
        path.write_text("x")
    elif there != "missing":
        path.mkdir()
    if there in ("foreign", "damaged"):
        (path / "plan.json").write_text('{"format": "other"}' if there == "foreign" else "{")
    with pytest.raises((OSError, ValueError), match=r"^(folder|/.*plan.json).*got .*, expected ") as caught:
        bulk.open(path)
    assert "\n" not in str(caught.value)


def test_batches_are_shared_by_the_workers_of_a_loader(tmp_path):
    folder = run([job(cond=labelled()), job(seed=1)], tmp_path, unit=20)
    loader = torch.utils.data.DataLoader(folder.batches(), num_workers=2, batch_size=None)
    found = {(batch["job"], int(batch["chains"][0])): batch for batch in loader}
    alone = list(folder.batches())
    assert len(alone) == len(found) == 8
    for batch in alone:
        other = found[batch["job"], int(batch["chains"][0])]
        assert same_bits(batch["x"], other["x"])
        assert (batch["labels"] is None) == (other["labels"] is None) == (batch["job"] == 1)
    assert next(folder.batches())["x"].shape == (20, *SHAPE)


def test_merge_takes_what_is_missing_and_refuses_what_differs(tmp_path):
    mine, other = run(job(), tmp_path / "a", unit=10), run(job(), tmp_path / "b", unit=10)
    names = sorted((tmp_path / "a" / "units").glob("*/*"))
    for path in names[:3]:
        path.unlink()
    assert mine.merge(other) == 3
    assert mine.verify().passed and mine.merge(other) == 0
    with pytest.raises(ValueError, match=r"^seed: got 1 in job 1, expected 0 as the plan in"):
        mine.merge(run(job(seed=1), tmp_path / "c", unit=10))
    threads = torch.get_num_threads() + 1
    foreign = bulk.run(bulk.Plan(job(), slots=32, unit=10), tmp_path / "d", threads=threads, progress=False)
    names[0].unlink()
    with pytest.raises(ValueError, match=rf"^environment: got threads {threads} \(not "):
        mine.merge(foreign)
    damaged = tmp_path / "b" / names[0].relative_to(tmp_path / "a")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"^unit: got .*, damaged .*, expected what was written"):
        mine.merge(other)
    assert mine.merge(foreign, allow_environment=True) == 1
    assert mine.verify().passed
    assert same_bits(stored(mine), sampled())
    with pytest.raises(TypeError, match=r"^other: got 'b', expected what ulam.bulk.open gives"):
        mine.merge("b")  # type: ignore[arg-type]


SCRIPT = """
import sys, time
import ulam
from bulk_cases import *

class Slow(Net):
    def forward(self, x, t):
        time.sleep(0.02)
        return super().forward(x, t)

denoiser = ulam.Denoiser(Slow(), SCHEDULE)
plan = ulam.bulk.Plan(job(denoiser=denoiser, chains=6400, sampler=DDIM(20)), slots=32, unit=64)
ulam.bulk.run(plan, sys.argv[1], on_interrupt=sys.argv[2], progress=False)
"""


@pytest.mark.parametrize(("on_interrupt", "times"), [("drop", 1), ("drain", 1), ("drain", 2)])
def test_an_interrupt_drops_or_ends_the_units_in_hand(tmp_path, on_interrupt, times):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    process = started([sys.executable, "-c", SCRIPT, tmp_path, on_interrupt], tmp_path, env=environment)
    late = time.monotonic() + 60
    while not list(tmp_path.glob("units/*/*.safetensors")) and time.monotonic() < late:
        time.sleep(0.02)
    leased = {path.name for path in tmp_path.glob("leases/*")}
    for again in range(times):
        time.sleep(0.3 * again)
        process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[1]
    assert process.returncode in (1, -signal.SIGINT)
    assert "KeyboardInterrupt" in text
    assert ("again stops at once" in text) == (on_interrupt == "drain")
    folder = bulk.open(tmp_path)
    units = [planned.key for planned, _ in bulk.record.finished_units(folder.store, folder.record)]
    if (on_interrupt, times) == ("drain", 1):
        assert leased <= set(units)
    assert 0 < len(units) < 100
    assert folder.verify().damaged == []
    assert not list(tmp_path.rglob("*.partial"))


def test_networks_of_a_notebook_are_refused_for_several_workers(tmp_path):
    script = SCRIPT.replace("on_interrupt=", "workers=2, on_interrupt=")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    command = [sys.executable, "-c", script, tmp_path, "drop"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("TypeError: plan: got one with classes or functions of a notebook or of python -c, ")
