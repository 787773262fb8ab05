"""The backends to hold against the CPU on a GPU, each skipped with its reason where it is not usable."""

from __future__ import annotations

from typing import Any

import pytest

import ulam_kernels


def there(backend: str, device: str) -> Any:
    state = ulam_kernels.backends()[backend]
    marks = [pytest.mark.gpu, pytest.mark.skipif(state != "usable", reason=f"no GPU for {backend}: {state}")]
    return pytest.param(backend, device, marks=marks if device == "cuda" else [], id=backend)


BACKENDS = [there("cuda", "cuda"), there("triton", "cuda"), there("reference", "cpu")]
