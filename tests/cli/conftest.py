"""For all tests here: a folder with the user's own networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_cases import USER_MODULE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(USER_MODULE)
    return tmp_path
