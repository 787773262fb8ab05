"""Archives of arrays, read whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def arrays(path: Path | str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)
