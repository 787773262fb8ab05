"""The environment of a worker: what the bits of a sample may depend on besides the plan."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ulam_kernels


def environment(device: torch.device, backend: str, threads: int) -> dict[str, Any]:
    """Backend, device, versions and torch's settings of precision; on the CPU also threads, since sums are split among
    them, and the instructions that it has.
    """
    told: dict[str, Any] = {
        "backend": backend,
        "ulam": ulam_kernels.__version__,
        "torch": torch.__version__,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type == "cpu":
        told |= {"device": _processor(), "threads": threads, "mkldnn": torch.backends.mkldnn.enabled}
    else:
        cudnn = torch.backends.cudnn
        told |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
            "triton": metadata.version("triton") if backend == "triton" else None,
            "cudnn_settings": [cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic],
        }
    return told


@cache
def _processor() -> str:
    """The processor's name, and the instructions that torch uses of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
