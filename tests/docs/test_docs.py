"""docs/samplers.md is what the samplers say of themselves, whole and up to date."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from oracles import execute, impulses
from ulam import samplers, schedules
from ulam.cli import samplers_page
from ulam.samplers.grid import GridSampler

PAGE = Path(__file__).parents[2] / "docs" / "samplers.md"
FOLDER = Path(samplers.__path__[0])


def test_the_page_is_what_the_classes_say_now() -> None:
    assert PAGE.read_text() == samplers_page.page(), "run `python -m ulam.cli.samplers_page docs/samplers.md`"


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "ulam.cli.samplers_page", str(tmp_path / "page.md")], check=True)
    assert (tmp_path / "page.md").read_text() == samplers_page.page()


def test_every_sampler_of_the_folder_is_exported_and_on_the_page() -> None:
    found = set()
    for file in FOLDER.glob("*.py"):
        module = importlib.import_module(f"ulam.samplers.{file.stem}") if file.stem != "__init__" else samplers
        classes = [getattr(module, name) for name in re.findall(r"^class ([A-Z]\w*)\(", file.read_text(), re.MULTILINE)]
        found |= {cls.__name__ for cls in classes if issubclass(cls, GridSampler) and not inspect.isabstract(cls)}
    assert found == samplers.catalogue().keys() >= {"DDIM", "EulerAncestral", "UniPC"}
    assert found | {"DynamicThreshold", "Grid", "GridSampler", "named"} == {*samplers.__all__}
    headings = re.findall(r"^### (.*)$", PAGE.read_text(), re.MULTILINE)
    assert all(headings.count(name) == 1 for name in found)


def test_the_table_states_what_programs_are() -> None:
    """Read back from the text and counted again on another schedule."""
    rows = re.findall(
        r"^\| [`[]([^`\]]*).*? \| (\d) \| (\d+) \| (\d) \| ([a-z, ]+) \|$", PAGE.read_text(), re.MULTILINE
    )
    assert len(rows) == len(samplers.catalogue()) + sum(len(cls.variants) for cls in samplers.catalogue().values())
    for call, order, evaluations, registers, needs in rows:
        sampler = eval(call.replace("(", f"({samplers_page.STEPS}, ", 1), vars(samplers))
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
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert pictures == [*samplers_page.FIGURES.values()] and all((PAGE.parent / name).is_file() for name in pictures)
    assert len(re.findall(r"\]\((?!#)", text)) == len(pictures)  # no citation reads as a link


def test_every_source_is_listed() -> None:
    body, sources = PAGE.read_text().split("## Sources\n")
    listed = re.findall(r"^- ([^:\n]*)", sources, re.MULTILINE)
    assert all(any(name.startswith(key) for name in listed) for key in samplers_page.citations(body))
    assert listed == sorted(listed, key=str.lower)
    assert samplers_page.citations(
        "a [Ho 2020, eq. 3;\n Nichol & Dhariwal 2021, table 2] b (Lu 1999) [k-diffusion, f]"
    ) == {
        "Ho 2020",
        "Nichol & Dhariwal 2021",
        "k-diffusion",
    }


def test_samplers_that_the_package_names_are_described_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says when to use it, in a section whose place is known, and all sources are in the bibliography."""
    named = re.findall(r'^    "(\w+)",$', (FOLDER / "__init__.py").read_text(), re.MULTILINE)
    monkeypatch.setattr(samplers, "__all__", named)
    classes = samplers.catalogue()
    assert len(classes) >= 18
    assert {cls.section for cls in classes.values()} == {*samplers_page.SECTIONS}
    assert all(re.fullmatch(r"\S.*\S\.", cls.use) for cls in classes.values())
    listed = re.findall(r"^- (.*)$", samplers_page.page().split("## Sources\n")[1], re.MULTILINE)
    assert listed and {*listed} <= {f"{name}: {about}" for name, about in samplers_page.REFERENCES.items()}


def test_sections_and_sources_that_are_not_known_follow_as_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Bare(samplers.DDIM):
        """As DDIM [Nobody & Else 1999, eq. 1]."""

        section = GridSampler.section

    @dataclass(frozen=True)
    class Apart(samplers.DDIM):
        """As DDIM [Song 2021a]."""

        section = "A section of its own"
        use = "seldom."
        variants = ({"eta": 1.0},)

    for cls in (Bare, Apart):
        monkeypatch.setattr(samplers, cls.__name__, cls, raising=False)
    monkeypatch.setattr(samplers, "__all__", [*samplers.__all__, "Bare", "Apart"])
    page = samplers_page.page()
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles[2 : 4 + len(samplers_page.SECTIONS)] == [*samplers_page.SECTIONS, "A section of its own", "Others"]
    assert "\n- [Apart](#apart): seldom.\n- [Bare](#bare)\n\n" in page
    assert "\n| `Apart(eta=1.0)` |" in page and "\n| `Bare(" not in page
    assert "\n## Others\n\n### Bare\n\n    Bare(steps, eta=0.0" in page
    assert "\n- Nobody & Else 1999\n" in page.split("## Sources\n")[1]


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
