"""docs/compare.md: its block runs, and its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from ulam.cli.main import _parser

PAGE = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()


def test_the_block_runs(capsys) -> None:
    namespace: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)):
        exec(compile(block, f"docs/compare.md, block {number + 1}", "exec"), namespace)
    assert len(capsys.readouterr().out.splitlines()) == 2 and namespace["long"].isfinite().all()


def test_the_commands_parse() -> None:
    commands = re.findall(r"^ulam (.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert _parser().parse_args(shlex.split(command)).run.__module__ == "ulam.cli.compare"
