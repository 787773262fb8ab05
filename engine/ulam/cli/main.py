"""The command line: `ulam sample`, `tune`, `run` and what belongs to it, `check`, `convert`, `mcmc` and `info`."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from ulam_kernels import __version__

from ..memory import keep_freed_memory
from . import bulk, check, convert, info, mcmc, sample, tune
from .arguments import add_network_arguments
from .streams import BAD_INPUT, FAILED, INTERRUPTED, TERMINATED, Terminated, lenient_streams, termination


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for bad input, 1 for a failure inside the model or chains that did
    not mix, 130 after Ctrl-C, 143 after SIGTERM. It goes on if nobody reads its output any more.
    """
    with lenient_streams(), warnings.catch_warnings():
        warnings.showwarning = _warn
        return _run(arguments)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"ulam: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
        with termination():
            return int(options.run(options))
    except KeyboardInterrupt as error:
        print("ulam: interrupted", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except Exception as error:
        if options.traceback:
            raise
        known = isinstance(error, (ValueError, TypeError, OSError, ImportError))
        text = str(error) if known else f"{type(error).__name__}: {error} (--traceback shows where)"
        print(f"ulam: error: {' '.join(text.split())}", file=sys.stderr)
        return BAD_INPUT if known else FAILED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"ulam: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _parser() -> _Parser:
    parser = _Parser(prog="ulam", description="Sample trained diffusion models.")
    parser.add_argument("--version", action="version", version=f"ulam {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _Parser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")

    p = commands.add_parser("info", parents=[common], help="versions, devices and backends")
    info.add_arguments(p)

    p = commands.add_parser("sample", parents=[common], help="draw samples from a trained model")
    _add_model(p)
    sample.add_arguments(p)

    p = commands.add_parser("tune", parents=[common], help="find the fastest way to run a network")
    _add_model(p)
    tune.add_arguments(p)

    p = commands.add_parser("run", parents=[common], help="draw many samples into a folder, by many workers")
    _add_model(p, required=False)
    bulk.add_run_arguments(p)
    add_network_arguments(p)
    for name, add, about in (
        ("status", bulk.add_status_arguments, "how far a run is"),
        ("verify", bulk.add_verify_arguments, "whether the units of a run are as they were written"),
        ("export", bulk.add_export_arguments, "the samples of a run as npz, png, webdataset, parquet or zarr"),
        ("merge", bulk.add_merge_arguments, "copy the units of one run's folders into the first"),
    ):
        add(commands.add_parser(name, parents=[common], help=about))

    p = commands.add_parser("check", parents=[common], help="test a trained denoiser: SURE, calibration, its score")
    _add_model(p)
    check.add_arguments(p)

    p = commands.add_parser("convert", parents=[common], help="a checkpoint of torch to safetensors, for --weights")
    convert.add_arguments(p)

    p = commands.add_parser("mcmc", parents=[common], help="run Markov chains of a density or an energy")
    mcmc.add_arguments(p)
    return parser


def _add_model(p: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that choose a model."""
    p.add_argument(
        "--model",
        required=required,
        help="digits, the folder of a pipeline or model of diffusers, or your own module:factory",
    )
    p.add_argument("--weights", type=Path, metavar="FILE", help="safetensors weights for your network")
    p.add_argument("--shape", type=_integers, metavar="C,H,W", help="shape of one sample of your network")
    p.add_argument("--schedule", metavar="CALL", help="such as 'vp_linear(1000)' (your network; that is the default)")
    p.add_argument("--predicts", help="eps, x0, v, score, flow, raw or mean (your network; default eps)")
    p.add_argument("--time", help="index for a network that embeds whole training steps, int64 (default auto: floats)")
    p.add_argument(
        "--output", type=_key, metavar="KEY", help="of a network that returns several tensors: a key, or a position"
    )
    p.add_argument("--null-class", type=int, help="the label that means no class (your network, for guidance)")


def _key(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else text


def _integers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers such as 3,32,32")
    return tuple(int(part) for part in text.split(","))
