"""What `ulam.throughput` measures and what it says of it: ways that do the same work, bytes, peaks, verdicts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import pytest
import torch

import ulam
from ulam import samplers
from ulam.files import json_text
from ulam.throughput import Work, measure
from ulam.throughput.cases import free
from ulam.throughput.measured import how_to, judged
from ulam.throughput.parts import STEP, bytes_of_step, timed_parts
from ulam.throughput.peaks import peak_bytes
from ulam.throughput.report import html
from ulam.throughput.timing import Ratio, ratio, rounds, summary
from ulam.throughput.ways import COMPILED, DIFFUSERS, KERNEL, LOOP, TUNED, ULAM, ready

SCHEDULE = ulam.schedules.vp_linear(1000)


def net() -> torch.nn.Module:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(5, 4)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.cat([x, t[:, None] / 1000], dim=1))

    return Net()


def test_every_way_is_measured_and_draws_the_same_samples():
    work = Work(ulam.Denoiser(net(), SCHEDULE), (4,), samplers.DDIM(5), 8)
    found = measure(work, budget=2.0, compiles=False, progress=False)
    assert [way.name for way in found.ways] == [LOOP, COMPILED, DIFFUSERS, ULAM, TUNED, KERNEL]
    assert (found.evaluations, found.slots, found.parameters, found.shape) == (5, 8, 24, (4,))
    for name in (LOOP, DIFFUSERS, ULAM, KERNEL):
        way = found[name]
        assert way.timing is not None and 0 < way.timing.lower_quartile <= way.timing.median
        assert way.samples_per_second == pytest.approx(8 / (5 * way.timing.median))
        assert way.timing.runs == found.rounds >= 5
    assert found[ULAM].difference < 1e-5 and found[KERNEL].difference < 1e-5 and found[LOOP].speed is None
    steps = {part.name: part.timing.median for part in found.parts}
    assert found.limit <= steps[STEP] * (1 + 1e-9)
    assert found[TUNED].told == found[COMPILED].told == "not asked for"
    assert str(found).splitlines()[-1] == found.verdict and len(str(found).splitlines()) <= 14 + bool(found.unrest)
    assert len(repr(found).splitlines()) == 1
    assert json.loads(json_text(found.as_dict()))["verdict"] == found.verdict
    busy = replace(found.ways[0], timing=replace(found.ways[0].timing, lower_quartile=1.0, upper_quartile=3.0))
    assert "are 3.0-fold apart: run again" in str(replace(found, ways=(busy,))).splitlines()[-2]


@pytest.mark.parametrize("name", [LOOP, DIFFUSERS, ULAM])
@pytest.mark.parametrize("sampler", [samplers.DDIM(4), samplers.UniPC(4), samplers.DPMSolverPP(4)], ids=repr)
def test_every_way_evaluates_the_network_as_often(name, sampler):
    if name == DIFFUSERS:
        pytest.importorskip("diffusers")
    rows = []

    def counting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return 0.1 * x

    way = ready(name, Work(ulam.Denoiser(counting, SCHEDULE), (4,), sampler, 8), 4)
    rows.clear()
    way.run()
    assert rows == [8] * 4


def test_other_libraries_are_measured_beside_the_rest():
    work = Work(ulam.Denoiser(net(), SCHEDULE), (4,), samplers.DDIM(5), 8)
    others = {"mine": lambda work, evaluations: lambda: torch.zeros(work.batch), "missing": _missing}
    found = measure(work, budget=1.0, compiles=False, others=others, progress=False)
    assert [way.name for way in found.ways][3:5] == ["mine", "missing"]
    assert found["mine"].timing is not None and found["mine"].difference is None and found["missing"].told == "not here"
    assert found.best == "mine" and found.verdict.startswith("use mine's loop")


def _missing(work: Work, evaluations: int):
    raise ImportError("not here")


def test_the_step_of_the_free_case_reads_the_bytes_that_are_counted(monkeypatch):
    """An output that is x itself would be a third less; states that are read elsewhere, as much more."""
    model = free()
    x, t = torch.randn(8, 3), torch.zeros(8)
    m = model.denoiser.net(x, t)
    assert m.shape == x.shape and m.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert model.denoiser.net(x[:4], t[:4]).data_ptr() == m.data_ptr()
    steps = []
    monkeypatch.setattr("ulam_kernels.step", lambda state, *_, **given: steps.append((state.clone(), given)))
    work = Work(model.denoiser, (3,), samplers.DDIM(5), 8)
    timed_parts(work, 0.01)
    assert bytes_of_step(work) == 3 * 4 * work.elements  # x and m read, x written
    assert all("source" not in given for _, given in steps) and torch.equal(steps[0][0], steps[2][0])


def test_diffusers_is_left_out_where_it_has_no_such_sampler():
    work = Work(ulam.Denoiser(net(), ulam.schedules.ve(0.01, 10.0)), (4,), samplers.DDIM(5), 8)
    found = measure(work, budget=1.0, compiles=False, progress=False)
    assert "do not take" in found[DIFFUSERS].told and found[DIFFUSERS].timing is None


def test_a_network_that_fails_and_a_budget_of_nothing_are_one_line():
    bad = Work(ulam.Denoiser(lambda x, t: x[:1], SCHEDULE), (4,), samplers.DDIM(5), 8)
    with pytest.raises(ValueError, match=r"^model: got a network that fails .*, expected one that runs on"):
        measure(bad, budget=1.0)
    with pytest.raises(ValueError, match=r"^budget: got 0"):
        measure(bad, budget=0)
    with pytest.raises(TypeError, match=r"^work: got str, expected a ulam.throughput.Work"):
        measure("digits")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sampler, guidance, numbers",
    [
        (samplers.DDIM(10), None, 3),  # x and m read, x written
        (samplers.DDIM(10), 2.0, 4),  # and the unguided output
        (samplers.DDPM(10), None, 3),  # noise is made on the way
        (samplers.DPMSolverPP(10), None, 5),  # and the last x0 estimate, read and written
    ],
    ids=repr,
)
def test_bytes_of_a_step(sampler, guidance, numbers):
    denoiser = ulam.Denoiser(lambda x, t, y=None: x, SCHEDULE)
    cond = {} if guidance is None else {"cond": {"y": torch.zeros(1)}, "uncond": {"y": torch.zeros(1)}}
    assert bytes_of_step(Work(denoiser, (5,), sampler, 7, guidance=guidance, **cond)) == 4 * 35 * numbers


def test_peak_memory_counts_what_lives_at_once(capfd):
    def run() -> None:
        for _ in range(3):
            a = torch.ones(1000, 250)  # 1 MB
            b = a + 1
            del a, b

    assert peak_bytes(run, torch.device("cpu")) == pytest.approx(2_000_000, rel=0.05)
    assert capfd.readouterr().err == ""


def test_rounds_run_in_turn():
    seen: list[str] = []
    times = rounds({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 0.0, least=3)
    assert seen == ["a", "b"] * 3 and {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0]).median == 3.0
    assert ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == Ratio(2.0, 2.0, 2.0)


def verdict(**seconds: float) -> tuple[str, str]:
    """Of exact medians, with quartiles 1% away."""
    ratios = {
        (a, b): Ratio(seconds[a] / seconds[b], 0.99 * seconds[a] / seconds[b], 1.01 * seconds[a] / seconds[b])
        for a in seconds
        for b in seconds
        if a != b
    }
    return judged(ratios, seconds, how_to("compiled"), 0.9)


@pytest.mark.parametrize(
    "seconds, best, says",
    [
        ({LOOP: 2.0, ULAM: 1.0}, ULAM, "use ulam.Engine as it is: 2.00 "),
        ({LOOP: 2.0, COMPILED: 1.5, ULAM: 2.0, TUNED: 1.0}, TUNED, "use ulam.Engine(options=ulam.tune(...)), which"),
        ({LOOP: 2.0, ULAM: 1.9, TUNED: 1.89, KERNEL: 0.2}, KERNEL, "or --chain-kernel on: 10.00 "),
        ({LOOP: 2.0, COMPILED: 1.0, ULAM: 2.0, TUNED: 1.0}, TUNED, "between the two there is nothing"),
        ({LOOP: 2.0, COMPILED: 1.0, ULAM: 2.0}, COMPILED, "use torch.compile of it: 2.00 "),
        ({LOOP: 2.0, ULAM: 1.97}, "", "nothing to gain in speed: "),
        ({LOOP: 2.0, ULAM: 2.01}, "", "nothing to gain in speed: "),
        ({LOOP: 2.0, ULAM: 3.0}, "", "nothing to gain: keep the plain loop"),
        ({LOOP: 1.0}, "", "nothing was compared"),
    ],
)
def test_the_verdict_says_what_to_use_and_nothing_where_it_is_nothing(seconds, best, says):
    found, sentence = verdict(**seconds)
    assert found == best and says in sentence and "\n" not in sentence


def test_the_page_needs_no_other_file():
    pytest.importorskip("matplotlib")
    work = Work(ulam.Denoiser(net(), SCHEDULE), (4,), samplers.DDIM(5), 8)
    found = measure(work, budget=1.0, compiles=False, progress=False)
    text = html(found, "a <title>", {"date": "2026-01-01", "processor": "one & only"})
    assert (
        re.findall(r'(?:src|href)="(.{5})', text) == ["data:"] * 2 and "<script" not in text and "@import" not in text
    )
    assert "a &lt;title&gt;" in text and "one &amp; only" in text and found.verdict[1:] in unescape(text)
    assert text.count("<table>") == text.count('<div class="scroll"><table>') == 4
    plain = html(found, "title", {}, pictures=False)
    assert "<img" not in plain and "plain PyTorch" in plain
