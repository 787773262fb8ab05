"""`ulam info`: what is installed and what it can run on."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from typing import Any

import torch

import ulam_kernels

PACKAGES = ("torch", "triton", "numpy", "safetensors")


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam info`."""
    p.set_defaults(run=run)
    p.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the facts; 0."""
    facts = collect()
    print(json.dumps(facts, indent=1) if options.json else text(facts))
    return 0


def versions() -> dict[str, str]:
    """Versions of ulam, Python and the packages that ulam depends on."""
    found = {"ulam": ulam_kernels.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def gpus() -> tuple[list[dict[str, Any]], str | None]:
    """The GPUs that NVML sees (name, driver, memory in GiB), and why there are none if there are none."""
    try:
        import pynvml
    except ImportError:
        return [], "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"no NVIDIA driver ({error})"
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [
            {
                "name": pynvml.nvmlDeviceGetName(handle),
                "driver": driver,
                "memory_gib": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1),
            }
            for handle in handles
        ]
        return found, None if found else "the driver sees no GPU"
    finally:
        pynvml.nvmlShutdown()


def collect() -> dict[str, Any]:
    """Everything that `ulam info` prints."""
    found, missing = gpus()
    return {
        "versions": versions(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "gpus": found or missing,
        "backends": ulam_kernels.backends(),
    }


def instruction_set() -> str:
    """The instruction set that the CPU backend uses, and all that this machine has."""
    try:
        from ulam_kernels import _cpu
    except ImportError as error:
        return f"none: {error}"
    names = _cpu.instruction_sets()
    return f"{_cpu.instruction_set()} (of {', '.join(names)})"


def text(facts: dict[str, Any]) -> str:
    """The facts as lines to read."""
    lines = [f"{name:<12} {version}" for name, version in facts["versions"].items()]
    lines.append(f"{'cpu':<12} {facts['machine']}, {facts['threads']} threads, {facts['instruction_set']}")
    if isinstance(facts["gpus"], str):
        lines.append(f"{'gpu':<12} none: {facts['gpus']}")
    else:
        lines += [f"{'gpu':<12} {g['name']}, {g['memory_gib']} GiB, driver {g['driver']}" for g in facts["gpus"]]
    lines.append("backends")
    lines += [f"  {name:<10} {state}" for name, state in facts["backends"].items()]
    return "\n".join(lines)
