"""The command line: `ulam sample` and the other commands, listed below, their streams and exit codes."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn, TextIO

from ..memory import keep_freed_memory
from .streams import BAD_INPUT, FAILED, INTERRUPTED, TERMINATED, Terminated, lenient_streams, termination

OPTION = re.compile(r"--[A-Za-z][\w-]*")
# For each command the function that adds its options, by module, and what `ulam --help` says of it.
COMMANDS = {
    "info": ("info", "add_arguments", "versions, devices and backends"),
    "sample": ("sample", "add_arguments", "draw samples from a trained model"),
    "tune": ("tune", "add_arguments", "find the fastest way to run a network"),
    "bench": ("bench", "add_arguments", "measure a network's throughput, in ulam and without it"),
    "compare": ("compare", "add_arguments", "samplers and numbers of steps beside one another, in a picture"),
    "run": ("bulk", "add_run_arguments", "draw many samples into a folder, by many workers"),
    "status": ("status", "add_arguments", "how far a run is"),
    "verify": ("bulk", "add_verify_arguments", "whether the units of a run are as they were written"),
    "export": ("bulk", "add_export_arguments", "the samples of a run as npz, png, webdataset, parquet or zarr"),
    "merge": ("bulk", "add_merge_arguments", "copy the units of one run's folders into the first"),
    "check": ("check", "add_arguments", "test a trained denoiser: SURE, calibration, its score"),
    "convert": ("convert", "add_arguments", "a checkpoint of torch to safetensors, for --weights"),
    "mcmc": ("mcmc", "add_arguments", "run Markov chains of a density or an energy"),
}


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
    given = [_with_hyphens(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    options = argparse.Namespace(traceback="--traceback" in given)
    try:
        with termination():
            _parser(given).parse_args(given, options)
            keep_freed_memory()
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


def _with_hyphens(word: str) -> str:
    """An option spelled with _ as it is with -: ``--null_class=10`` is ``--null-class=10``."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if OPTION.fullmatch(name) else word


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"ulam: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(BAD_INPUT)


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> None:
        from .. import __version__

        print(f"ulam {__version__}")
        sys.exit(0)


def _parser(needed: Iterable[str] = tuple(COMMANDS)) -> _Parser:
    """Of all commands, with the options of those among ``needed``, whose modules are imported for it."""
    parser = _Parser(prog="ulam", description="Sample trained diffusion models.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _Parser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")
    for name, (module, function, about) in COMMANDS.items():
        p = commands.add_parser(name, parents=[common], help=about)
        if name in needed:
            getattr(import_module(f".{module}", __package__), function)(p)
    return parser
