"""docs/theory.md does what it says: its code runs and its claims hold, its figures and sources are there."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from pages import DOCS, execute
from ulam.cli import main as cli
from ulam.cli import samplers_page

PAGE = (DOCS / "theory.md").read_text()
SECTIONS = 10


def test_every_block_runs_and_every_claim_holds() -> None:
    execute("theory.md")
    assert len(re.findall(r"^assert ", PAGE, flags=re.MULTILINE)) >= 2 * SECTIONS


def test_every_section_is_shown_in_code() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    numbered = [section for section in sections if section[0].isdigit()]
    assert len(numbered) == SECTIONS and all("\nassert " in section or "    assert " in section for section in numbered)


def test_every_figure_is_there_and_the_page_names_the_command_that_made_it() -> None:
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    drawn = (DOCS / "figures.py").read_text()
    commands = re.findall(r"`((?:python|ulam) [^`]+)`", PAGE)
    assert len(figures) >= 6
    for figure in figures:
        with Image.open(DOCS / figure) as picture:
            assert min(picture.size) > 200
        if figure.startswith("theory_"):
            assert f'"{figure[len("theory_") : -len(".png")]}"' in drawn and "python docs/figures.py" in commands
        else:
            assert any(f"docs/{figure}" in command or "--out docs/check" in command for command in commands), figure
    (check,) = [command for command in commands if command.startswith("ulam check --")]
    assert cli._parser().parse_args(check.split()[1:]).out == Path("docs/check")


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (DOCS / target).exists(), target


def test_every_source_is_listed_and_no_other() -> None:
    body, sources = PAGE.split("## Sources\n")
    listed = re.findall(r"^- ([^:]*): \S", sources, flags=re.MULTILINE)
    text = re.sub(r"```python.*?```", lambda block: " ".join(re.findall("#.*", block[0])), body, flags=re.DOTALL)
    assert samplers_page.citations(text) == set(listed)
    assert listed == sorted(listed, key=str.lower)
