"""docs/throughput.md: its block runs, its commands parse, and the columns that it explains are those of the report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from ulam.cli.main import _parser
from ulam.throughput.report import WAYS

PAGE = (Path(__file__).parents[2] / "docs" / "throughput.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_block_runs() -> None:
    namespace: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/throughput.md, block {number + 1}", "exec"), namespace)
    assert namespace["found"].verdict and namespace["found"]["ulam"].speed.median > 0


def test_the_commands_parse_and_every_column_is_explained() -> None:
    commands = re.findall(r"^ulam (.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert _parser().parse_args(shlex.split(command, comments=True)).run.__module__ == "ulam.cli.bench"
    explained = re.findall(r"^\| ([a-z -]+) \|", PAGE, flags=re.MULTILINE)[1:]
    assert {*explained} == {*WAYS} - {"way", "samples/s", "its quartiles"}
