"""What torch records, fakes or wraps goes through ``torch.ops.ulam``, or is refused in one line.

Kernels read and write memory by its address. A tracer does not see that, and would play back memory that nothing was
written to; fake tensors and those of ``torch.func`` have no memory at all.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

try:
    from ulam_kernels._cpu import eager as eager
except ImportError:  # a broken build is reported by its backend

    def eager(*tensors: torch.Tensor | None) -> bool:
        """Whether nothing records the call, and each has memory of its own: see bindings/door.h."""
        return False


# The state that torch.jit.trace, modes such as make_fx's and torch.func set while they are active.
traced: Callable[[], Any] = torch._C._get_tracing_state
modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
transformed: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack

# torch.compile's function for the frames of this thread, None outside of what it runs.
watches: Callable[[], Any] = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: "unknown")

_functorch: Any = torch._C._functorch
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def outside_graphs(function: F) -> F:
    """The function, run outside of the graphs of torch.compile with all that it calls; elsewhere it is unchanged.

    For functions that depend on memory no graph sees, or on progress of their caller. With fullgraph=True torch refuses
    the call.
    """

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if compiles():
            from .outside import call

            return call(function, *args, **kwargs)
        return function(*args, **kwargs)

    return called  # type: ignore[return-value]


def not_recorded(function: F) -> F:
    """As :func:`outside_graphs`, and refused by :func:`check_not_recorded` where anything else records the call."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if compiles():
            from .outside import call

            return call(_checked, function, *args, **kwargs)
        check_not_recorded(function.__name__)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def _checked(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    check_not_recorded(function.__name__)
    return function(*args, **kwargs)


def compiles() -> bool:
    """Whether torch.compile traces what runs now, or watches for functions to trace."""
    return "torch._dynamo" in sys.modules and (torch.compiler.is_dynamo_compiling() or watches() is not None)


class _Running(threading.local):
    operator = False


_running = _Running()


@contextmanager
def operator_runs() -> Iterator[None]:
    """Within it, in this thread, calls go to the backend: they are an operator's, which torch has seen."""
    before, _running.operator = _running.operator, True
    try:
        yield
    finally:
        _running.operator = before


def compiling() -> bool:
    """Whether torch compiles this call: it says so in every thread while one does, and of what an operator calls."""
    return torch.compiler.is_compiling() and not _running.operator


def by_operator(name: str, *tensors: torch.Tensor | None, pure: bool = False) -> bool:
    """Whether a public operation must call its operator, because torch records, fakes or wraps what is called; never
    where the operator itself calls. Ask it only where ``eager`` says no.

    pure: the operator writes to none of its arguments.

    Raises:
        RuntimeError: a transform of torch.func wraps a tensor, and the operator cannot go through it.
    """
    if _running.operator:
        return False
    if pure and transformed() is not None:
        return True
    _check_not_transformed(name, tensors)
    _check_all_fake(name, tensors)
    return bool(modes()) or traced() is not None or any(_wrapped(t) or _dispatches(t) for t in tensors)


def through_operator(name: str, *tensors: torch.Tensor | None, pure: bool = False) -> bool:
    """Whether a public operation must call its operator: torch compiles the call, or as :func:`by_operator`."""
    if _running.operator:
        return False
    return torch.compiler.is_compiling() or (not eager(*tensors) and by_operator(name, *tensors, pure=pure))


def check_not_recorded(what: str, *tensors: object) -> None:
    """Raises RuntimeError where something records, fakes or transforms a call that no operator stands for."""
    # torch.compile breaks its graph further on, and calls the rest as it is
    if torch.compiler.is_dynamo_compiling() or eager(*tensors):  # type: ignore[arg-type]
        return
    by = recorder()
    if by is None:
        _check_not_transformed(what, tensors)
        by = next((f"tensors of {type(t).__name__} without memory" for t in tensors if without_memory(t)), None)
    if by is not None:
        raise RuntimeError(f"{what}: got a call under {by}, expected one outside: no operator of torch stands for it")


def recorder() -> str | None:
    """What records or transforms torch's operations now, or None. Modes that only observe do neither."""
    if traced() is not None:
        return "torch.jit.trace"
    if transformed() is not None:
        return "a transform of torch.func"
    if not modes():
        return None
    kinds = torch._C._TorchDispatchModeKey.__members__
    found = {name for name, key in kinds.items() if torch._C._get_dispatch_mode(key) is not None}
    return "make_fx or torch.export" if "PROXY" in found else "FakeTensorMode" if found else None


def graph_constant(function: Callable[..., T], *args: Any) -> T:
    """The function's result; while torch compiles, computed at once: a constant of the graph, for equal arguments."""
    if torch.compiler.is_compiling():
        from .outside import constant

        found: T = constant(function, *args)
        return found
    return function(*args)


def check_second_derivatives() -> None:
    """Raises RuntimeError where torch.compile traced an autograd.Function in the torch.func transform that just ended.

    A graph loses the derivative of its backward pass without a word.
    """
    if torch.compiler.is_dynamo_compiling():
        from .outside import check_no_function, constant

        constant(check_no_function)


def transforming() -> bool:
    """Whether a transform of torch.func is at work; torch.compile, which traces within it, may ask too."""
    return graph_constant(_transforms)


def _transforms() -> bool:
    return transformed() is not None


def readable(tensor: torch.Tensor) -> bool:
    """Whether the host can read a tensor's numbers without waiting, and nothing records that it does."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return eager(tensor) or (recorder() is None and not without_memory(tensor))


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Within it tensors are made as outside of every mode and transform of torch: they may be kept for later calls."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), temporarily_clear_interpreter_stack(), torch.inference_mode(False):
        yield


def check_read(tensor: torch.Tensor, name: str, right: str = "a number or a NumPy array") -> None:
    """Raises RuntimeError where the host cannot read a tensor's numbers, or a tracer would not see that it does."""
    by = recorder() or (f"a {type(tensor).__name__}" if without_memory(tensor) else None)
    if by is not None:
        raise RuntimeError(f"{name}: got a tensor under {by}, expected {right}: its values are read on the host")


def constant_beside(constant: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A real tensor as an argument of an operator beside ``x``: fake where ``x`` is, or a constant of the graph."""
    if modes():
        return torch.tensor(constant.tolist(), dtype=constant.dtype, device=constant.device)
    fake, _ = _without_memory_types()
    return x.fake_mode.from_tensor(constant) if isinstance(x, fake) else constant  # type: ignore[attr-defined]


def without_memory(tensor: object) -> bool:
    """Whether a dense tensor that has elements has no memory: fake, functional, or wrapped by a transform."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.layout is not torch.strided:
        return False
    if _wrapped(tensor) or isinstance(tensor, _without_memory_types()):
        return True
    try:
        return tensor.numel() > 0 and not tensor.data_ptr()
    except RuntimeError:
        return True


def _check_all_fake(what: str, tensors: tuple[object, ...]) -> None:
    """Refuse fake tensors beside real ones in one line, where torch takes many."""
    kind, _ = _without_memory_types()
    fakes = [tensor for tensor in tensors if isinstance(tensor, kind)]
    mixed = fakes and any(isinstance(tensor, torch.Tensor) and not isinstance(tensor, kind) for tensor in tensors)
    if mixed and not fakes[0].fake_mode.allow_non_fake_inputs:  # type: ignore[attr-defined]
        raise RuntimeError(f"{what}: got fake tensors beside real ones, expected all of them fake, or none")


def _without_memory_types() -> tuple[type, ...]:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return FakeTensor, FunctionalTensor  # torch warns when their address is read, or raises


def _wrapped(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and (
        bool(_functorch.is_functorch_wrapped_tensor(tensor)) or torch._is_functional_tensor(tensor)
    )


def _dispatches(tensor: object) -> bool:
    """Whether a tensor's class has a ``__torch_dispatch__`` of its own."""
    if not isinstance(tensor, torch.Tensor) or type(tensor) is torch.Tensor:
        return False
    return bool(torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python))


def _check_not_transformed(what: str, tensors: tuple[object, ...]) -> None:
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor) or not _wrapped(tensor):
            continue
        if transformed() is None and not torch._is_functional_tensor(tensor):
            raise RuntimeError(f"{what}: got a tensor of a transform of torch.func that is over, expected a plain one")
        if not _functorch.is_gradtrackingtensor(tensor):
            kind = "torch.vmap" if _functorch.is_batchedtensor(tensor) else "torch.func.functionalize"
            raise RuntimeError(
                f"{what}: got a tensor of {kind}, expected a call outside of it: the operation takes a batch of chains"
            )
