"""Calling the network: dtype, memory format, autocast, guidance in two batches or one, and its errors."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ulam_kernels.arguments import described

from ..denoiser import Denoiser
from ..evaluation import autocast_state, check_output, way_out_of
from ..gradients import plain, wants_gradients
from ..outputs import OutputError, ReadOutput
from .errors import NetworkError
from .report import Report

# What torch.compile is told. Its own CUDA graphs stay off: the engine captures whole ticks.
COMPILE: dict[bool | str, dict[str, Any]] = {
    True: {},
    "frozen": {"options": {"freezing": True}},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHORT = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class NetworkOptions:
    """How the network is called; the defaults change nothing about it. :func:`ulam.tune` finds the fastest.

    autocast: a dtype for ``torch.autocast``, or None. channels_last: hand over x in that memory format.
    compile: run it through ``torch.compile``; "frozen": with its weights as constants, "max-autotune": with kernels
    chosen by trials, which may choose others, of other bits, in another process. doubled: evaluate the conditional and
    the unconditional branch in one batch of twice the slots, not in two calls: faster on small networks; a chain's bits
    may then depend on whether guided chains share its batch. gradients: call it with gradients recorded, for a network
    that takes some inside, as classifier guidance does; by default it runs in inference mode. weights: run a copy of a
    ``torch.nn.Module`` whose matrices and kernels have this dtype, under autocast to it, which then need not cast them.
    Frozen or copied weights are those of the engine's first evaluation: training after it does not reach them.
    Raises ValueError for an invalid option.
    """

    autocast: torch.dtype | None = None
    channels_last: bool = False
    compile: bool | str = False
    doubled: bool = False
    gradients: bool = False
    weights: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("autocast", "weights"):
            dtype = getattr(self, name)
            if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in SHORT):
                raise ValueError(f"{name}: got {described(dtype)}, expected torch.bfloat16, torch.float16 or None")
        for name in ("channels_last", "doubled", "gradients"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {described(getattr(self, name))}, expected True or False")
        if not isinstance(self.compile, bool) and not (isinstance(self.compile, str) and self.compile in COMPILE):
            names = [repr(name) for name in COMPILE if name is not True]
            raise ValueError(f"compile: got {described(self.compile)}, expected True, False, {' or '.join(names)}")
        if self.weights is not None and self.autocast not in (None, self.weights):
            raise ValueError(f"autocast: got {self.autocast} beside weights={self.weights}, expected None or the same")
        if self.gradients and self.compile == "frozen":
            raise ValueError("compile: got 'frozen' beside gradients=True, expected True: frozen networks have none")

    def __str__(self) -> str:
        """In few words, such as ``compiled (frozen), bf16 weights``; ``eager`` for the defaults."""
        compiled = {False: "", True: "compiled"}.get(self.compile, f"compiled ({self.compile})")  # type: ignore[arg-type]
        dtypes = f"{SHORT[self.weights]} weights" if self.weights else ""
        if self.autocast and not self.weights:
            dtypes = f"{SHORT[self.autocast]} autocast"
        formats = "channels-last" if self.channels_last else ""
        branches = "branches in one batch" if self.doubled else ""
        return ", ".join(filter(None, (compiled, dtypes, formats, branches))) or "eager"


class Network:
    """The network of a denoiser over a batch of slots.

    When it runs out of memory the batch is halved and evaluated part by part; ``batch`` remembers what fits.
    """

    def __init__(
        self, denoiser: Denoiser, slots: int, device: torch.device, options: NetworkOptions, report: Report
    ) -> None:
        given = _with_weights(denoiser.net, options) if options.weights else denoiser.net
        self._eager: Callable[..., Any] = given if denoiser.output is None else ReadOutput(given, denoiser.output)
        self._nets: dict[int, Callable[..., Any]] = {}  # compiled, by the size of the batch
        self._device, self._options, self._report = device, options, report
        self._autocast_dtype = options.autocast or options.weights
        self._no_autocast = self._autocast_dtype is None and device.type != "cuda"  # none to enter, none in a graph
        self._run: Callable[..., Any] = self._eager
        if options.compile or options.gradients:
            self._run = self._recorded if options.gradients else self._compiled
        self.batch = self._slots = slots
        self.doubled = options.doubled
        self.halves = True  # the batch when out of memory; else that is an error
        self.seconds = 0.0
        self.began: float | None = None  # when the call under way began, for a watchdog
        self.dtype = computing_dtype(denoiser.net)
        self._guide: Network | None = None  # takes the place of the unguided branch
        if denoiser.guide is not None:
            guide = replace(denoiser, net=denoiser.guide, guide=None)
            self._guide = Network(guide, slots, device, options, report)
            if self._guide.dtype not in (None, self.dtype):
                got = f"got a network of {self._guide.dtype}"
                raise ValueError(f"guide: {got}, expected {self.dtype}, as the network that it guides has")

    def __call__(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        cond: dict[str, torch.Tensor],
        uncond: dict[str, torch.Tensor] | None,
        shared: set[str],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The outputs of the conditional and, unless ``uncond`` is None, the unconditional branch.

        Raises NetworkError for whatever the network raises, TypeError or ValueError for an invalid output.
        """
        if uncond is not None and self._guide is not None:
            return self(x, t, cond, None, shared)[0], self._guided(x, t, uncond, shared)
        begin = self.began = time.perf_counter()
        try:
            while True:
                try:
                    if uncond is None and self.batch == self._slots:
                        return self._call(x, t, cond), None
                    return self._branches(x, t, cond, uncond, shared)
                except torch.OutOfMemoryError as error:
                    if self.batch == 1 or not self.halves or self._capturing():  # memory cannot be freed during capture
                        raise NetworkError(error, {}) from error
                    reason = str(error).split("\n")[0]
                self.batch = (self.batch + 1) // 2
                self._report.shrink(self.batch, reason)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
        finally:
            self.seconds += time.perf_counter() - begin
            self.began = None

    def _guided(
        self, x: torch.Tensor, t: torch.Tensor, inputs: dict[str, torch.Tensor], shared: set[str]
    ) -> torch.Tensor:
        """The output of the guide, whose time counts as the network's."""
        assert self._guide is not None
        begin = self.began = time.perf_counter()
        try:
            return self._guide(x, t, inputs, None, shared)[0]
        finally:
            self.seconds += time.perf_counter() - begin
            self.began = None

    def _branches(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        cond: dict[str, torch.Tensor],
        uncond: dict[str, torch.Tensor] | None,
        shared: set[str],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if uncond is None:
            return self._parts(x, t, cond, shared, self.batch), None
        if not self.doubled:
            return self._parts(x, t, cond, shared, self.batch), self._parts(x, t, uncond, shared, self.batch)
        both = {key: v if key in shared else torch.cat([v, uncond[key]]) for key, v in cond.items()}
        m = self._parts(torch.cat([x, x]), torch.cat([t, t]), both, shared, 2 * self.batch)
        return m[: len(x)], m[len(x) :]

    def _parts(
        self, x: torch.Tensor, t: torch.Tensor, inputs: dict[str, torch.Tensor], shared: set[str], batch: int
    ) -> torch.Tensor:
        """The whole batch at once, or in overlapping parts of ``batch`` chains, all of one shape."""
        chains = x.shape[0]
        if batch >= chains:
            return self._call(x, t, inputs)
        out: torch.Tensor | None = None
        for begin in range(0, chains, batch):
            first = min(begin, chains - batch)
            at = slice(first, first + batch)
            m = self._call(x[at], t[at], {key: v if key in shared else v[at] for key, v in inputs.items()})
            if out is None:
                out = m.new_empty(chains, *m.shape[1:])
            out[at] = m
        assert out is not None
        return out

    def _call(self, x: torch.Tensor, t: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        version = None if x.is_inference() else x._version  # inference tensors are copies, made for this call
        given = x.double() if self.dtype == torch.float64 else x
        if self._options.channels_last and x.dim() == 4:
            given = given.contiguous(memory_format=torch.channels_last)
        try:
            if self._no_autocast:
                m = self._run(given, t, **inputs)
            else:
                with self._autocast():
                    m = self._run(given, t, **inputs)
        except (torch.OutOfMemoryError, OutputError):
            raise
        except Exception as error:
            inside = wants_gradients(error) and not self._options.gradients
            raise NetworkError(error, {}, inside, way_out_of(error, x, t, inputs)) from error
        if version is not None and x._version != version:
            raise ValueError("net: got its input x changed in place, expected one that works on x.clone()")
        if not isinstance(m, torch.Tensor) or m.shape != x.shape:
            m = check_output(m, tuple(x.shape))
            m = m.detach() if m.requires_grad else m  # a tensor that came alone is without a graph already
        if not m.is_floating_point() or m.device != x.device:
            raise TypeError(f"net: got {m.dtype} on {m.device}, expected a float tensor on {x.device}")
        return m

    def _recorded(self, x: torch.Tensor, t: torch.Tensor, **inputs: torch.Tensor) -> Any:
        """The output of a network that may take gradients, also in x: its inputs are leaves of their own."""
        with torch.inference_mode(False), torch.enable_grad():
            m = self._compiled(plain(x), plain(t), **{key: plain(value) for key, value in inputs.items()})
        return m.detach() if isinstance(m, torch.Tensor) else m

    def _compiled(self, x: torch.Tensor, t: torch.Tensor, **inputs: torch.Tensor) -> Any:
        if not self._options.compile:
            return self._eager(x, t, **inputs)
        if (net := self._nets.get(len(x))) is None:
            net = self._nets[len(x)] = _compiled(self._eager, self._options.compile)
        try:
            return net(x, t, **inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._nets[len(x)] = self._eager
            self._report.add_fallback(f"torch.compile failed, the network runs eagerly: {str(error).splitlines()[0]}")
            return self._eager(x, t, **inputs)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast as requested; weights that the caller's own autocast has cached must not enter a graph."""
        dtype = self._autocast_dtype
        if self._capturing():
            outer, outer_dtype = autocast_state(self._device)
            if outer:
                return torch.autocast(self._device.type, dtype or outer_dtype, cache_enabled=False)
        return torch.autocast(self._device.type, dtype) if dtype is not None else _NO_CONTEXT

    def _capturing(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_NO_CONTEXT = contextlib.nullcontext()


def _with_weights(net: Callable[..., Any], options: NetworkOptions) -> torch.nn.Module:
    """A copy in eval mode whose matrices and kernels have the dtype (and the memory format) that the options say."""
    if not isinstance(net, torch.nn.Module):
        raise ValueError(f"weights: got {options.weights} for {described(net)}, expected None, or a torch.nn.Module")
    copied = copy.deepcopy(net).eval()
    for module in copied.modules():
        if not isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):  # autocast leaves these as they are
            for weight in module.parameters(recurse=False):
                if weight.dim() > 1 and weight.is_floating_point():
                    weight.data = weight.data.to(options.weights)
    return copied.to(memory_format=torch.channels_last) if options.channels_last else copied  # type: ignore[call-overload]


def _compiled(net: Callable[..., Any], how: bool | str) -> Callable[..., Any]:
    """The network through torch.compile, with code of its own.

    What torch has compiled it keeps by code, and at most eight versions of each: a ninth engine would run eagerly.
    """

    def call(x: torch.Tensor, t: torch.Tensor, **inputs: torch.Tensor) -> Any:
        return net(x, t, **inputs)

    call.__code__ = call.__code__.replace()
    return torch.compile(call, dynamic=False, **COMPILE[how])


def computing_dtype(net: Any) -> torch.dtype | None:
    """The dtype of the network's floating-point parameters, None if it has none."""
    for parameter in net.parameters() if isinstance(net, torch.nn.Module) else ():
        if parameter.is_floating_point():
            return parameter.dtype
    return None
