"""One call of a network: in eval mode, under the caller's autocast; the shape of its output, learned variances;
what helps against what it raised."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType

import torch
from torch.nn.parallel import DistributedDataParallel

from ulam_kernels.validation import check_real

from .outputs import only_reading

WHOLE = (
    "'indices'",
    "index tensor",
    "used as indices",
    "for index",
)  # in torch's errors for floats where it looks up whole numbers
MIXED = ("dtype", "ouble", "scalar type", "should be the same")  # for two types where it takes one
REMARK = re.compile(r" \(while checking arguments for [^()]*\)")  # torch's, on its own inside
# In Python's errors for a call: an argument that it does not take, or those that it lacks.
TAKEN = re.compile(r"takes (from )?\d+ (to \d+ )?positional arguments? but \d+ were given")
ASKED = re.compile(r"(?:(got an unexpected keyword argument)|missing \d+ required .*arguments?:) (.*)")


def modules_in(value: object) -> list[torch.nn.Module]:
    """A module and its submodules, each once; for another callable, those of the modules that it refers to."""
    found = (module for module in _reached(value, set()) if isinstance(module, torch.nn.Module))
    return list(dict.fromkeys(inside for module in found for inside in module.modules()))


def parameters_reached(*values: object) -> list[torch.nn.Parameter]:
    """The parameters among these values and of the modules they are, or refer to, each once and in order."""
    parameters: dict[torch.nn.Parameter, None] = {}
    seen: set[int] = set()
    for found in (found for value in values for found in _reached(value, seen)):
        parameters |= dict.fromkeys(found.parameters() if isinstance(found, torch.nn.Module) else [found])
    return list(parameters)


def _reached(value: object, seen: set[int]) -> Iterator[torch.nn.Module | torch.nn.Parameter]:
    """A module or parameter; for another callable or a container, those that it refers to."""
    if isinstance(value, (torch.nn.Module, torch.nn.Parameter)):
        yield value
        return
    contained = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if id(value) in seen or isinstance(value, type) or not (contained or callable(value)):
        return
    seen.add(id(value))
    reached: list[object] = [*contained, *getattr(value, "__dict__", {}).values()]
    if isinstance(value, partial):
        reached += [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        reached += [value.__self__, *getattr(value.__self__, "__dict__", {}).values(), value.__func__]
    elif isinstance(value, FunctionType):
        named = (value.__globals__.get(name) for name in value.__code__.co_names)
        reached += [global_ for global_ in named if isinstance(global_, (torch.nn.Module, torch.nn.Parameter))]
        reached += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # not assigned yet
                reached.append(cell.cell_contents)
    for other in reached:
        yield from _reached(other, seen)


@contextlib.contextmanager
def in_eval_mode(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Puts modules into eval mode, then those that were in training mode back into it."""
    training = [module for module in modules if getattr(module, "training", False)]  # frozen TorchScript has none
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def without_collectives(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Keeps calls of DistributedDataParallel to this process: no buffers are sent, no gradients awaited.

    For calls whose number depends on the data: ranks that make different numbers of them would wait for each other.
    """
    synced = ("require_forward_param_sync", "require_backward_grad_sync")
    wrappers = [module for module in modules if isinstance(module, DistributedDataParallel)]
    before = [[getattr(wrapper, name) for name in synced] for wrapper in wrappers]
    for wrapper in wrappers:
        for name in synced:
            setattr(wrapper, name, False)
    try:
        yield
    finally:
        for wrapper, values in zip(wrappers, before, strict=True):
            for name, value in zip(synced, values, strict=True):
                setattr(wrapper, name, value)


def autocast_state(device: torch.device) -> tuple[bool, torch.dtype]:
    """Whether the caller runs under autocast, and with which dtype."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def check_output(m: object, shape: tuple[int, ...], name: str = "net") -> torch.Tensor:
    """The output m of a network on x of this shape ``[B, C, *shape]``: shaped like x, or with twice the channels.

    ``name``: the network's in errors. Of a dict, a tuple or an object the one tensor that can be meant. Raises
    TypeError for what is not a tensor of real numbers, or where several may be, ValueError for another shape.
    """
    if not isinstance(m, torch.Tensor):
        m = only_reading(m, (tuple(shape), _doubled(shape)), name)
    if isinstance(m, torch.Tensor) and (m.shape == shape or m.shape == _doubled(shape)):
        check_real(m, name)
        return m
    raise _output_error(m, name, f"{list(shape)} like its input")


def check_halves(m: object, shape: tuple[int, ...], halves: str, name: str = "net") -> torch.Tensor:
    """As :func:`check_output` for an output with twice the channels; ``halves``: what they are, for the error."""
    if not isinstance(m, torch.Tensor):
        m = only_reading(m, (_doubled(shape),), name)
    if isinstance(m, torch.Tensor) and m.shape == _doubled(shape):
        check_real(m, name)
        return m
    raise _output_error(m, name, f"{list(_doubled(shape))}, {halves}")


def check_like(m: object, shape: tuple[int, ...], name: str, kind: str = "", why: str = "") -> torch.Tensor:
    """As :func:`check_output`, for exactly this shape; ``kind``: what m holds, in the plural; ``why``: the reason."""
    if isinstance(m, torch.Tensor) and m.shape == shape:
        check_real(m, name)
        return m
    raise _output_error(m, name, f"{list(shape)}{why}", kind)


def split_output(m: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The prediction in an output of :func:`check_output`, and its second half (a learned variance) or None."""
    if m.shape[1] == channels:  # a slice of all would be a step of its own in the graph, and copied on the way back
        return m, None
    return m[:, :channels], m[:, channels:]


def _doubled(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], 2 * shape[1], *shape[2:]) if len(shape) > 1 else shape


def _output_error(m: object, name: str, expected: str, kind: str = "") -> Exception:
    if not isinstance(m, torch.Tensor):
        return TypeError(f"{name}: got {type(m).__name__}, expected {kind or 'a tensor'} {expected}")
    return ValueError(f"{name}: got {kind + ' of ' if kind else ''}shape {list(m.shape)}, expected {expected}")


def way_out_of(error: BaseException, x: torch.Tensor, t: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> str:
    """What helps against an error that torch raised in a network, where its words and the arguments' types tell."""
    text, floats = str(error), {name: value.dtype for name, value in inputs.items() if value.is_floating_point()}
    if any(words in text for words in WHOLE):
        clock = ["time='index' (--time index), whole training steps"] if t.is_floating_point() else []
        labels = [name for name in floats if inputs[name].dim() == 1]
        return " or ".join([*clock, *(f"whole numbers as cond[{name!r}]" for name in labels)])
    if isinstance(error, TypeError) and TAKEN.search(text) is not None:
        return "a network that takes (x, t, **cond), such as lambda x, t: net(x)"
    if isinstance(error, TypeError) and (found := ASKED.search(text)) is not None:
        names = re.findall(r"'(\w+)'", found[2])
        return "cond=" + ", ".join(f"{name!r}: ..." for name in names).join("{}") + (" left out" if found[1] else "")
    wide = [name for name, dtype in floats.items() if dtype == torch.float64 != x.dtype]
    if wide and any(words in text for words in MIXED):
        return f"cond[{wide[0]!r}] as {x.dtype}, not {torch.float64}"
    return ""


def without_remarks(text: str) -> str:
    """An error of torch on one line, without what it remarks on its own inside."""
    return REMARK.sub("", " ".join(text.split()))


def shortened(text: str, most: int) -> str:
    """Its first words, with ... where more follow."""
    return text if len(text) <= most else text[: most - 3].rsplit(" ", 1)[0] + "..."
