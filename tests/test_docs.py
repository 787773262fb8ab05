"""docs/samplers.md is what the samplers say of themselves, whole and up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracles import execute, impulses

from ulam import catalogue, samplers, schedules
from ulam.samplers.grid import GridSampler

PAGE = Path(__file__).parents[1] / "docs" / "samplers.md"


def test_the_page_is_what_the_classes_say_now() -> None:
    assert PAGE.read_text() == catalogue.page(), "run `python -m ulam.catalogue docs/samplers.md`"


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "ulam.catalogue", str(tmp_path / "page.md")], check=True)
    assert (tmp_path / "page.md").read_text() == catalogue.page()


def test_every_exported_sampler_is_on_the_page_and_no_other() -> None:
    exported = {name: getattr(samplers, name) for name in samplers.__all__}
    grids = {name for name, it in exported.items() if isinstance(it, type) and issubclass(it, GridSampler)}
    assert grids - {GridSampler.__name__} == catalogue.catalogue().keys()


def test_the_table_states_what_programs_are() -> None:
    """Read back from the text and counted again on another schedule."""
    rows = re.findall(
        r"^\| [`[]([^`\]]*).*? \| (\d) \| (\d+) \| (\d) \| ([a-z, ]+) \|$", PAGE.read_text(), re.MULTILINE
    )
    assert len(rows) == len(catalogue.catalogue()) + sum(map(len, catalogue.VARIANTS.values()))
    for call, order, evaluations, registers, needs in rows:
        sampler = eval(call.replace("(", f"({catalogue.STEPS}, ", 1), vars(samplers))
        program = sampler.program(schedules.vp_cosine(), "x0")
        assert (int(order), int(evaluations)) == (program.order, program.evaluates.sum())
        unused = [j for j in range(1, program.registers) if not program.A[:, :, j].any()]
        assert int(registers) == program.registers - 1 and not unused
        assert set(needs.split(", ")) - {"none"} == {*program.needs} - {"registers"}


def test_every_link_of_the_page_leads_to_a_heading() -> None:
    text = PAGE.read_text()
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert links and set(links) <= headings
    assert not re.search(r"\]\((?!#)", text)  # no citation reads as a link


def test_every_source_is_listed() -> None:
    body, sources = PAGE.read_text().split("## Sources\n")
    listed = re.findall(r"^- ([^:]*): \S", sources, re.MULTILINE)
    assert all(any(name.startswith(key) for name in listed) for key in catalogue.citations(body))
    assert listed == sorted(listed, key=str.lower) and set(listed) <= catalogue.REFERENCES.keys()
    assert catalogue.citations(
        "a [Ho 2020, eq. 3;\n Nichol & Dhariwal 2021, table 2] b (Lu 1999) [k-diffusion, f]"
    ) == {
        "Ho 2020",
        "Nichol & Dhariwal 2021",
        "k-diffusion",
    }


def test_samplers_and_sources_that_are_not_known_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(catalogue, "REFERENCES", {})
        with pytest.raises(KeyError, match="REFERENCES must hold every source"):
            catalogue.page()
    monkeypatch.setattr(catalogue, "SECTIONS", {"Some": {"DDIM": "here.", "Vanished": "never."}})
    with pytest.raises(KeyError, match=r"SECTIONS must hold just the samplers, these differ: .*'DDPM'.*'Vanished'"):
        catalogue.page()


@pytest.mark.parametrize("schedule", [schedules.vp_linear(), schedules.ve(0.01, 50)])
def test_dpm2_is_the_singlestep_dpm_solver_as_the_page_says(schedule: schedules.Schedule) -> None:
    levels = np.geomspace(9, 0.2, 9)
    dpm2 = samplers.DPM2(4, sigmas=levels[::2]).program(schedule)
    solver = samplers.DPMSolver(8, kind="singlestep", sigmas=levels).program(schedule)
    x, outputs, _ = impulses(8)
    states = [
        execute(program, x, lambda row, _: outputs[row], lambda _: np.zeros_like(x))[-1] for program in (dpm2, solver)
    ]
    np.testing.assert_allclose(states[0], states[1], atol=1e-12 * abs(states[0]).max())
