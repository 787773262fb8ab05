"""README.md: what a visitor reads on the first screen, and figures that all come from one file."""

from __future__ import annotations

import json
import re

from bench import readme

TEXT = (readme.ROOT / "README.md").read_text()
FIRST_SCREEN = "\n".join(TEXT.splitlines()[:30])


def test_the_first_screen_says_what_for_whom_when_and_shows_code_a_command_and_a_picture() -> None:
    for said in ("**What it does.**", "**For whom.**", "**When it pays.**", "**When not:**"):
        assert said in FIRST_SCREEN
    (code,) = re.findall(r"^```python\n(.*?)^```", FIRST_SCREEN, flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert "ulam.Denoiser(" in code and "ulam.sample(" in code
    assert len(re.findall(r"^    ulam sample ", FIRST_SCREEN, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^!\[", FIRST_SCREEN, flags=re.MULTILINE)) == 1


def test_the_table_is_made_of_the_figures_that_are_committed() -> None:
    entries = json.loads(readme.TABLE.read_text())
    assert entries == readme.figures(), "run `python -m bench.readme`"
    assert readme.with_table(TEXT, entries) == TEXT, "run `python -m bench.readme`"
    assert len(entries) >= 8 and all((readme.ROOT / entry["source"]).is_file() for entry in entries)


def test_no_figure_stands_outside_the_table() -> None:
    """But for the time that `make test` takes."""
    outside = readme.with_table(TEXT, []).replace("about 25 minutes", "")
    assert not re.search(r"\d\s*(?:us|ms|s|seconds|minutes|times|x|%)\b", re.sub(r"```.*?```", "", outside, flags=re.S))


def test_the_table_can_say_that_nothing_is_gained() -> None:
    table = readme.table([
        {"what": "a", "ulam_seconds": 2e-3, "other_seconds": 2e-3, "other": "b", "command": "c"},
        {"what": "d", "ulam_seconds": 5.4e-5, "other_seconds": 48.1, "other": "e", "command": "f"},
    ])  # fmt: skip
    assert "| a | 2.0 ms | 2.0 ms, b | 1.0 | `c` |" in table and "| d | 54 us | 48 s, e |" in table
