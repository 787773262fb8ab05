"""`ulam convert`: the weights in a checkpoint of torch as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..models.conversion import convert


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `ulam convert`."""
    p.set_defaults(run=run)
    p.add_argument("source", type=Path, metavar="IN.pt", help="what torch.save wrote, or Lightning; never unpickled")
    p.add_argument("target", type=Path, metavar="OUT.safetensors")
    p.add_argument(
        "--prefix", metavar="STR", help="take the tensors whose names begin so, such as ema, without it ('': all as is)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the file and say what is in it; 0."""
    found = convert(options.source, options.target, options.prefix)
    taken = f", without {found.prefix!r} before their names" if found.prefix else ""
    left = f", {found.left_out} others left out" if found.left_out else ""
    print(f"ulam: {found.tensors} tensors{taken}{left}; wrote {options.target}")
    return 0
