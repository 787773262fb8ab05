"""README's table of figures, from the results that are committed: `python -m bench.readme`.

Writes bench/results/readme.json, one entry a row with where it was measured and how to repeat it, and README's table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
TABLE = RESULTS / "readme.json"
BEGIN, END = "<!-- python -m bench.readme -->\n", "<!-- end -->\n"
CPU, H200 = "cpu-2026-11-22", "gpu-check-nvidia-h200-2026-11-27"

# What is measured, its results, the names there of ulam and of the other, what the other is, the command.
SMALL, LARGE = "DDPM step, 64x3x32x32 fp32", "DDPM step, 64x3x256x256 fp32"
LOOP = "100 DDPM steps, free network, 64x3x32x32"
STEP, NAIVE = ("ulam fused step", "eager, the paper's code"), "the paper's code, PyTorch"
ROWS: tuple[tuple[str, str, tuple[str, ...], tuple[str, str], str, str], ...] = (
    ("one DDPM step with its noise, 64x3x32x32", CPU, ("seconds", SMALL), STEP, NAIVE, "make bench"),
    ("the same at 64x3x256x256", CPU, ("seconds", LARGE), STEP, NAIVE, "make bench"),
    ("100 steps, a network that costs nothing", CPU, ("seconds", LOOP), ("ulam.sample", "the naive loop"),
     "the naive loop", "make bench"),
    ("512 chains of 10 to 250 steps, digits U-Net", "trace-cpu-2026-11-28", ("trace",),
     ("seconds_with_ladder", "static_seconds"), "batches as long as their longest chain",
     "python -m bench.end_to_end --only-trace"),
    ("a policy's MLP, one chain, 50 steps by `ulam.Policy`", "chain-kernel-2026-11-29",
     ("seconds", "(14, 256, 256, 256, 14), 1 chains, 50 steps, 2 threads"), ("policy", "naive loop"),
     "the naive loop", "python -m bench.chain_kernel"),
    ("an MLP in the plane, 100,000 chains, 100 steps", "chain-kernel-2026-11-29",
     ("seconds", "(2, 64, 64, 2), 100000 chains, 100 steps, 2 threads"), ("sample", "naive loop"),
     "the naive loop", "python -m bench.chain_kernel"),
    ("H200: one DDPM step with its noise, 4096x3x64x64", f"{H200}-bench",
     ("figures", "DDPM row with noise, 4096x3x64x64, float32", "candidates"), ("ulam cuda", "naive eager"), NAIVE,
     "make gpu-check"),
    ("H200: a step of an MLP, 4,096 chains", f"{H200}-loops", ("figures", "MLP, 4096 chains, fp32", "candidates"),
     ("ulam", "naive, CUDA graph"), "the naive loop in a CUDA graph", "make gpu-check"),
    ("H200: a step of the digits U-Net, 256 chains", f"{H200}-loops",
     ("figures", "digits U-Net, 256 chains, fp32", "candidates"), ("ulam", "naive, CUDA graph"),
     "the naive loop in a CUDA graph", "make gpu-check"),
)  # fmt: skip
UNITS = {"us": 1e-6, "ms": 1e-3}


def figures() -> list[dict[str, Any]]:
    """One entry a row: seconds of both, and where they come from."""
    return [_figure(*row) for row in ROWS]


def _figure(
    what: str, file: str, path: tuple[str, ...], names: tuple[str, str], other: str, command: str
) -> dict[str, Any]:
    results = json.loads((RESULTS / f"{file}.json").read_text())
    at, scale = results, 1.0
    for key in path:
        if isinstance(at, list):
            at = next(entry for entry in at if entry["name"] == key)
            scale = UNITS[at["unit"]]
        else:
            at = at[key]
    found = [at[name]["median"] if isinstance(at[name], dict) else at[name] for name in names]
    on_gpu = "machine" in results
    device = results["machine"]["device"] if on_gpu else f"{results['processor']}, {results['threads']} threads"
    return {
        "what": what, "ulam_seconds": found[0] * scale, "other_seconds": found[1] * scale, "other": other,
        "device": device, "date": results["date"][:10], "source": f"bench/results/{file}.json", "command": command,
    }  # fmt: skip


def told(seconds: float) -> str:
    """A time with two digits: 54 us, 3.1 ms, 48 s."""
    unit, size = next((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if seconds >= s or u == "us")
    number = seconds / size
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"


def table(entries: list[dict[str, Any]]) -> str:
    """README's table."""
    lines = ["| measured | ulam | beside it | ratio | again by |", "|---|---|---|---|---|"]
    for entry in entries:
        ratio = entry["other_seconds"] / entry["ulam_seconds"]
        times = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
        beside = f"{told(entry['other_seconds'])}, {entry['other']}"
        lines.append(f"| {entry['what']} | {told(entry['ulam_seconds'])} | {beside} | {times} | `{entry['command']}` |")
    return "\n".join(lines) + "\n"


def with_table(readme: str, entries: list[dict[str, Any]]) -> str:
    """README with its table of these figures."""
    return re.sub(f"(?s){re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{table(entries)}\n{END}", readme)


def main() -> None:
    entries = figures()
    TABLE.write_text(json.dumps(entries, indent=1) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), entries))


if __name__ == "__main__":
    main()
