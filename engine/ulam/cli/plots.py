"""Whether there is matplotlib for plots, and the one line that says what to do where there is none."""

from __future__ import annotations


def require_matplotlib(without: str = "") -> None:
    """Raises ImportError, naming the extra and the option that does without plots, where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        way_out = f", or pass {without}" if without else ""
        raise ImportError(
            f"matplotlib: got no such package, expected it for plots: pip install 'ulam[plots]'{way_out}"
        ) from error
