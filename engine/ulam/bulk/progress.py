"""A progress bar on a terminal; elsewhere lines."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, shown: bool = True, begun: int = 0, unit: str = "chain") -> Any:
    """A bar on a terminal; elsewhere a line on stderr every ten seconds; nothing unless ``shown``."""
    if not shown or sys.stderr.isatty():
        return tqdm(total=total, initial=begun, unit=unit, desc="ulam", disable=not shown)
    plain = f"ulam: {{percentage:.0f}}% ({{n_fmt}}/{{total_fmt}} {unit}s, {{elapsed}}, {{remaining}} left)\n"
    return tqdm(total=total, initial=begun, mininterval=10, delay=10, bar_format=plain, leave=False, file=_Lines())


class _Lines:
    """Where the plain progress goes: whole lines on stderr, without the bar's carriage returns."""

    def write(self, text: str) -> None:
        if line := text.replace("\r", "").strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
