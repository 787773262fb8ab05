"""`python -m bench.report`: the newest of every bench in one page, each under its date."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

from bench import report
from bench.timing import RESULTS

import ulam
from ulam.files import json_text
from ulam.throughput import Work, measure
from ulam.throughput.plain_loop import Unlike

TIMING = {"median": 2e-3, "lower_quartile": 1e-3, "upper_quartile": 3e-3, "best": 1e-3, "runs": 5}


def timed(folder: Path, name: str, median: float, **more: object) -> None:
    rows = {"ulam fused": {**TIMING, "median": median}, "eager <1>": {**TIMING, "median": 4 * median}}
    data = {
        "date": "x",
        "processor": "P",
        "threads": 2,
        "versions": {"torch": "2"},
        "seconds": {"a step": rows},
        **more,
    }
    (folder / f"{name}.json").write_text(json.dumps(data))


def test_the_newest_of_each_bench_is_shown_with_its_ratios(tmp_path: Path) -> None:
    timed(tmp_path, "cpu-2026-01-02", 1e-3)
    timed(tmp_path, "cpu-2026-01-03", 5e-3)
    timed(tmp_path, "diffusers-steps-2026-01-01", 7e-6)
    peers = {"funnel": {"ulam": {"ess_per_second": 3e6, "seconds": 1.5, "gradients_per_second": 10.0}}}
    (tmp_path / "mcmc-peers-2026-01-01.json").write_text(json.dumps({"peers": peers, "seconds": 3.0}))
    (tmp_path / "digits-quality-2026-01-01.json").write_text(json.dumps({"count": 3}))
    (tmp_path / "gpu-check-x.md").write_text("# GPU, today\n\nsome words\n\n| figure | us |\n|---|---|\n| a | 3 |\n")
    (tmp_path / "gpu-check-x-2026-01-01-bench.json").write_text("{}")
    text = "\n".join(report.sections(tmp_path))
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "cpu, 2026-01-03", "diffusers-steps, 2026-01-01", "mcmc-peers, 2026-01-01", "GPU, today",
    ]  # fmt: skip
    assert "5 ms" in text and "20 ms" in text and "4.00" in text and "7 us" in text and "eager &lt;1&gt;" in text
    assert "3,000,000" in text and "P, 2 threads" in text and "<td>3</td>" in text


def missing(work: Work, evaluations: int) -> Callable[[], object]:
    raise Unlike("it is not installed: pip install azula")


def test_a_case_is_shown_with_its_verdict(tmp_path: Path) -> None:
    denoiser = ulam.Denoiser(lambda x, t: x, ulam.schedules.vp_linear(1000))
    work = Work(denoiser, (4,), ulam.samplers.DDIM(4), 8)
    others = {"k-diffusion 0.1.1": lambda work, evaluations: lambda: None, "azula": missing}
    found = measure(work, budget=1.0, compiles=False, progress=False, others=others)
    data = {"machine": {"gpu": "none: here", "processor": "P"}, "does": {"k-diffusion 0.1.1": "Euler", "azula": "none"}}
    (tmp_path / "throughput-own-cpu-2026-01-01.json").write_text(json_text({**data, **found.as_dict()}))
    text = unescape("\n".join(report.sections(tmp_path)))
    assert "<h2>ulam bench: own-cpu</h2>" in text and found.verdict[1:].split(",")[0].split('"')[0] in text
    assert text.count("<table>") == 3 and "limit of a step" in text
    assert "<p>k-diffusion 0.1.1: Euler</p>" in text and "azula: none" not in text
    assert "<td>azula</td><td class=words>it is not installed: pip install" in text


def test_what_was_measured_so_far_makes_a_page(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "report.html"
    monkeypatch.setattr(sys, "argv", ["report", "--only-assemble", "--out", str(out)])
    report.main()
    assert capsys.readouterr().out == f"wrote {out}\n"
    text = out.read_text()
    assert text.count("<h2>") >= len([*RESULTS.glob("gpu-check-*.md")]) + 5 and "http" not in text
