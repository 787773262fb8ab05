"""A denoiser's network as a graph of operations, by `torch.export`: in eval mode, without gradients, any batch.

A network on a GPU is traced on the host, with copies in the places of what it holds: the same operations as there.
"""

from __future__ import annotations

import io
import logging
import operator
import os
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from inspect import signature
from types import FunctionType
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from ulam_kernels.arguments import described

from ..conditioning import Shared
from ..denoiser import Denoiser
from ..evaluation import in_eval_mode, modules_in, parameters_reached, way_out_of, without_remarks
from ..outputs import only_reading
from .changes import Held, hooks_of_all

EXPECTED = "expected one that the chain kernel can hold"
EXAMPLES = 3  # chains in the batch that it is traced with
TRIED = (1, 2, 5)  # and of those that it is tried with
FOR_SOME = "an operation for some numbers of chains alone"
FOR_ANY = "expected one for any number: x.shape[0], not len(x)"
CHAINS = sympy.Symbol("chains", integer=True, positive=True)
LARGEST_KERNEL = 2  # dimensions of a weight: those of convolutions have more
FILE = re.compile(r'File "([^"]+)", line (\d+)')
aten = torch.ops.aten
WHOLE = {  # operations that are not made of others
    aten.linear, aten.addmm, aten.mm, aten.matmul, aten.embedding, aten.layer_norm, aten.silu, aten.relu, aten.tanh,
    aten.sigmoid, aten.mish, aten.gelu, aten.leaky_relu, aten.elu, aten.softplus, aten.add, aten.sub, aten.rsub,
    aten.mul, aten.div, aten.neg, aten.square, aten.pow, aten.sqrt, aten.exp, aten.log, aten.sin, aten.cos, aten.sum,
    aten.mean, aten.cat, aten.stack, aten.unsqueeze, aten.slice, aten.select, aten.view, aten.expand, aten.permute,
    aten.transpose, aten.arange, aten.full, aten.zeros, aten.ones, aten.sym_size, aten._to_copy, aten.group_norm,
}  # fmt: skip
DROPOUTS = (aten.dropout, aten.feature_dropout, aten.alpha_dropout)
LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
LOGS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor", "torch.export._trace")

_ALONE = threading.RLock()  # torch.export is for one thread at a time


@dataclass(frozen=True, eq=False)
class Seen:
    """A call of the network as it is: what it was given and what it gave."""

    x: torch.Tensor
    t: torch.Tensor
    cond: dict[str, torch.Tensor | Shared]
    output: torch.Tensor


@dataclass(frozen=True, eq=False)
class Traced:
    """The operations of a network in order.

    tensors: parameters, buffers and other constants, the network's own, by the node that stands for each.
    x, t, cond: the nodes of the arguments. shared: the arguments without a chain dimension. seen: calls.
    some: whether the operations are those for some numbers of chains alone.
    """

    nodes: list[Node]
    tensors: dict[Node, torch.Tensor]
    x: Node
    t: Node
    cond: dict[str, Node]
    shared: frozenset[str]
    output: Node
    seen: tuple[Seen, ...]
    some: bool


def trace(denoiser: Denoiser, shape: tuple[int, ...], cond: Mapping[str, torch.Tensor | Shared]) -> Traced:
    """The network as operations. Raises TypeError, with the line of its source where one is to blame."""
    with _ALONE:
        return _traced(denoiser, shape, cond)


def _traced(denoiser: Denoiser, shape: tuple[int, ...], cond: Mapping[str, torch.Tensor | Shared]) -> Traced:
    net = denoiser.network
    modules = modules_in(net)
    check_weights(parameters_reached(net), net)
    if scripted := [m for net in modules for m in net.modules() if isinstance(m, torch.jit.ScriptModule)]:
        raise TypeError(f"net: got a {scripted[0].original_name} of torch.jit, expected its module in Python")
    if any(hooks_of_all()):
        raise TypeError(f"net: got hooks of every module, {EXPECTED}: with hooks of its own")
    x = torch.ones(EXAMPLES, *shape)
    t = torch.ones(EXAMPLES, dtype=denoiser.time_dtype)
    given = {name: _example(value) for name, value in cond.items()}
    auto = torch.export.Dim.AUTO
    dynamic = {name: None if isinstance(value, Shared) else {0: auto} for name, value in cond.items()}
    held = Held(modules, net)
    written: list[object] = []
    shapes = {"x": {0: auto}, "t": {0: auto}, "cond": dynamic}
    try:
        with warnings.catch_warnings(), _quietly(), in_eval_mode(modules), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            replaced = held.on_host()
            called = _Called(net, modules, written)
            exported = _exported(called, (x, t, given), shapes)
            if written and _listed(exported) != _listed(_exported(called.twice(), (x, t, given), shapes)):
                raise TypeError(f"net: got one whose calls differ by what those before have left, {EXPECTED}")
            signature_of = exported.graph_signature
            if written_to := dict(signature_of.user_inputs_to_mutate):
                node, name = next(iter(written_to.items()))
                at = next(one for one in exported.graph.nodes if one.name == node)
                raise refused(at, f"a write into its argument {name}", "arguments that stay as they are")
            seen = [_seen(called, denoiser, shape, cond, chains) for chains in TRIED]
    finally:
        held.restore()
    nodes = list(exported.graph.nodes)
    for node in nodes:
        if _is_random(node):
            raise refused(node, "random numbers", "the same output for the same arguments")
    by_name = {node.name: node for node in nodes}
    inputs, tensors = [], {}
    for spec in exported.graph_signature.input_specs:
        node = by_name[spec.arg.name]
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(node)
            continue
        named = exported.state_dict if spec.target in exported.state_dict else exported.constants
        tensor = named[str(spec.target)]
        assert isinstance(tensor, torch.Tensor)
        tensors[node] = replaced[id(tensor)][1] if id(tensor) in replaced else tensor
    if exported.graph_signature.buffers_to_mutate:
        name = next(iter(exported.graph_signature.buffers_to_mutate.values()))
        raise TypeError(f"net: got one that writes its buffer {name!r} when it is called, {EXPECTED}")
    names = list(given)
    read = dict(zip(names, inputs[2:], strict=True))
    shared = frozenset(name for name, value in cond.items() if isinstance(value, Shared))
    (outputs,) = nodes[-1].args
    assert isinstance(outputs, (tuple, list))
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    output = outputs[kinds.index(OutputKind.USER_OUTPUT)]
    if not isinstance(output, Node):
        raise TypeError(f"net: got the output {described(output)}, expected a tensor that depends on x")
    some = _is_for_some([*inputs[:2], *(node for name, node in read.items() if name not in shared)])
    return Traced(nodes, tensors, inputs[0], inputs[1], read, shared, output, tuple(filter(None, seen)), some)


def _is_for_some(arguments: list[Node]) -> bool:
    """Whether the operations are those for some numbers of chains; TypeError where a line asks about them."""
    some = False
    for argument in arguments:
        chains = argument.meta["val"].shape[0]
        if not isinstance(chains, torch.SymInt):
            return True
        for guard in chains.node.shape_env.guards:
            if guard.expr.subs(dict.fromkeys(guard.expr.free_symbols, CHAINS)) is not sympy.true:
                some, at = True, guard.sloc.framework_loc
                if isinstance(at, traceback.FrameSummary) and not at.filename.startswith(LIBRARIES):
                    raise TypeError(f"net: got {FOR_SOME} at {at.filename}:{at.lineno}, {FOR_ANY}")
    return some


def _seen(
    called: _Called, denoiser: Denoiser, shape: tuple[int, ...], cond: Mapping[str, torch.Tensor | Shared], chains: int
) -> Seen | None:
    """A call with so many chains, no two of which are alike; None where it fails with one alone, as by a squeeze."""
    generator = torch.Generator().manual_seed(chains)
    x = torch.randn(chains, *shape, generator=generator)
    steps, each = denoiser.schedule.steps, torch.arange(1, chains + 1)
    t = (each % steps if steps else each / (chains + 1)).to(denoiser.time_dtype)
    given = {name: _varied(value, chains, generator) for name, value in cond.items()}
    told = {name: value.tensor if isinstance(value, Shared) else value for name, value in given.items()}
    copies = {name: value.clone() for name, value in told.items()}
    try:
        output = called(x.clone(), t.clone(), copies)
    except Exception as error:
        if chains == 1:
            return None
        reason = without_remarks(str(error).strip().split("\n")[0]) or type(error).__name__
        expected = f"expected {way_out}" if (way_out := way_out_of(error, x, t, told)) else EXPECTED
        raise TypeError(
            f"net: got {_line_of(error)}a network that fails with {chains} chains ({reason}), {expected}"
        ) from error
    return Seen(x, t, given, output.detach())


def _varied(value: torch.Tensor | Shared, chains: int, generator: torch.Generator) -> torch.Tensor | Shared:
    """Conditioning of so many chains, made of those that there are; floats differ by less than 1."""
    if isinstance(value, Shared):
        return Shared(value.tensor.detach().cpu())
    rows = value.detach().cpu()[torch.arange(chains) % len(value)] if len(value) else value.new_zeros(
        chains, *value.shape[1:], device="cpu")  # fmt: skip
    if not rows.is_floating_point():
        return rows
    return rows + torch.rand(rows.shape, generator=generator, dtype=torch.float32).to(rows.dtype) / 2


def _exported(called: torch.nn.Module, given: tuple[Any, ...], shapes: dict[str, Any]) -> ExportedProgram:
    """The call as a graph in which nothing is written in place any more; Linear and the like stay whole."""
    try:
        exported: ExportedProgram = torch.export.export(called, given, strict=False, dynamic_shapes=shapes)
        if not all(map(_is_whole, exported.graph.nodes)):
            exported = exported.run_decompositions({})  # which takes three times as long as all before
    except Exception as error:
        x, t, cond = given
        reason = without_remarks(str(error).strip().split("\n")[0]) or type(error).__name__
        way_out = way_out_of(error, x, t, cond)
        if not way_out and "data-dependent" in reason:
            reason = "a branch or a number in Python that depends on a tensor's values"
            way_out = "torch.where, or tensors"
        expected = f"expected {way_out}" if way_out else EXPECTED
        raise TypeError(
            f"net: got {_line_of(error)}a network that torch.export cannot read ({reason}), {expected}"
        ) from error
    return exported


def _is_whole(node: Node) -> bool:
    """Whether `run_decompositions({})` leaves an operation as it is."""
    if node.op in ("placeholder", "output") or node.target is operator.getitem:
        return True
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and op.overloadpacket in WHOLE and not op._schema.is_mutable


@contextmanager
def _quietly() -> Iterator[None]:
    """Within, torch neither logs nor prints what it cannot export: the error says it in one line."""
    loggers = [logging.getLogger(name) for name in LOGS]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _listed(exported: ExportedProgram) -> list[tuple[str, ...]]:
    """The operations that the output depends on, back from it, whatever their names and order."""
    places: dict[Node, str] = {}
    waiting = [exported.graph_module.graph.output_node()]
    while waiting:
        node = waiting.pop()
        if node not in places:
            places[node] = f"%{len(places)}"
            waiting += node.all_input_nodes
    return [
        (node.op, str(node.target), str(torch.fx.map_arg((node.args, node.kwargs), places.__getitem__)))
        for node in places
    ]


def _is_random(node: Node) -> bool:
    """Whether an operation draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    if getattr(node.target, "overloadpacket", None) in DROPOUTS:
        return bool(node.args[2])
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    told = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    told |= dict(zip(names, node.args, strict=False)) | node.kwargs
    return not (told.get("train", True) is False or any(told.get(name, 1) == 0 for name in ("dropout", "dropout_p")))


def takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a function can be called with these arguments."""
    try:
        signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class _Called(torch.nn.Module):
    """The call that is traced: a module with all that it refers to, so that its weights stay tensors of their own.

    written: told of a call that writes what the modules hold.
    """

    called: Callable[..., Any]
    watch: Callable[[], Held]

    def __init__(self, net: Callable[..., Any], modules: list[torch.nn.Module], written: list[object]) -> None:
        super().__init__()
        object.__setattr__(self, "called", _as_forward(net))  # not among the modules
        self.watch, self.note, self.calls = lambda: Held(modules, net), written.append, 1
        self.held = torch.nn.ModuleList(modules)
        owned = {id(parameter) for module in modules for parameter in module.parameters()}
        loose = [parameter for parameter in parameters_reached(net) if id(parameter) not in owned]
        self.loose = torch.nn.ParameterList(loose)

    def twice(self) -> _Called:
        """With a call before: the second finds what the first has left."""
        self.calls = 2
        return self

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        held = self.watch()  # weights are others during the export
        for _ in range(self.calls):
            m = self.called(x, t, **cond)
        if not held.holds():
            self.note(True)
        if not isinstance(m, torch.Tensor):
            twice = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if x.dim() > 1 else tuple(x.shape)
            m = only_reading(m, (tuple(x.shape), twice), "net")
        if not isinstance(m, torch.Tensor):
            raise TypeError(f"an output {described(m)}")
        return m


def _as_forward(net: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function under the name forward: torch keeps the lines of such functions alone."""
    if not isinstance(net, FunctionType):
        return net
    code = net.__code__.replace(co_name="forward")
    named = FunctionType(code, net.__globals__, "forward", net.__defaults__, net.__closure__)
    named.__kwdefaults__ = net.__kwdefaults__
    return named


def _example(value: torch.Tensor | Shared) -> torch.Tensor:
    if isinstance(value, Shared):
        return value.tensor.detach().cpu()
    return torch.zeros(EXAMPLES, *value.shape[1:], dtype=value.dtype)


def check_weights(parameters: Iterable[torch.nn.Parameter], net: object = None) -> None:
    """Raise TypeError for weights that no chain kernel holds, before the seconds that tracing a large network takes.

    net: has their names, and the classes of their layers.
    """
    for parameter in parameters:
        wide = parameter.is_floating_point() and parameter.dtype != torch.float32
        if parameter.dim() > LARGEST_KERNEL or wide or parameter.device.type not in ("cpu", "cuda"):
            kind = f"weights {list(parameter.shape)} of {parameter.dtype} on {parameter.device}{_owner(parameter, net)}"
            raise TypeError(f"net: got {kind}, expected float32 vectors and matrices on the CPU or a CUDA device")


def _owner(parameter: torch.nn.Parameter, net: object) -> str:
    """Whose a parameter of these networks is: ``, layers.0.weight of a Conv1d``."""
    for module in modules_in(net):
        for name, own in module.named_parameters():
            if own is parameter:
                layer = dict(module.named_modules())[name.rpartition(".")[0]]  # torch.jit has no get_submodule
                return f", {name} of a {getattr(layer, 'original_name', type(layer).__name__)}"
    return ""


def _line_of(error: BaseException) -> str:
    """The line of the user's source that an error comes from, as ``FILE:LINE: ``."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(LIBRARIES)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if len(frames) else ""


def place(node: Node) -> str:
    """A node's name and the line of the source that it comes from."""
    found = [m for m in FILE.findall(node.meta.get("stack_trace") or "") if not m[0].startswith(LIBRARIES)]
    return f"{node.name} at {found[-1][0]}:{found[-1][1]}" if found else node.name


class OfValues(TypeError):
    """A refusal over the values of weights, which may be others at the next call."""


def refused(node: Node, what: str, expected: str) -> TypeError:
    """The error for a node: its name and line, what it is, what would fit."""
    return TypeError(f"net: got {place(node)} ({what}), expected {expected}")
