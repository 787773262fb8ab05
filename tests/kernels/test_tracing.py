"""Every operation of the kernels under every tracer, fake, transform and mode of torch: right, or refused in one line.

A kernel writes memory by its address, so that a tracer which records torch's own operations alone would play back
memory that nothing was written to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from tracing_cases import CASES, Case, Tensors, inputs, operations
from ulam_kernels import operator

pytestmark = [pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
              pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")]  # fmt: skip
NAMES = sorted(CASES)
PURE = ("affine", "langevin", "moments", "squared_norm", "evaluate", "evaluate without energies", "gaussian_kl",
        "discretised_log_likelihood", "fill_normal of a new tensor")  # fmt: skip


def same(ours: Tensors, expected: Tensors) -> bool:
    return all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(ours, expected, strict=True))


def eager(name: str, given: Tensors) -> Tensors:
    """What the call gives, and the state of torch's generator before it."""
    torch.manual_seed(0)
    return CASES[name].call(*given)


def refused(name: str, kind: type[Exception] = RuntimeError) -> Any:
    return pytest.raises(kind, match=rf"^{name.split()[0]}: got [^\n]*, expected [^\n]*\Z")


def test_no_operation_is_forgotten() -> None:
    assert {name.split()[0] for name in CASES} == set(operations())


def traced_by_jit(case: Case, given: Tensors) -> tuple[Callable[..., Tensors], str]:
    graph = torch.jit.trace(lambda *tensors: case.call(*tensors), given, check_trace=False)
    return graph, str(graph.graph)


def traced_by_make_fx(mode: str) -> Callable[[Case, Tensors], tuple[Callable[..., Tensors], str]]:
    def trace(case: Case, given: Tensors) -> tuple[Callable[..., Tensors], str]:
        graph = make_fx(case.call, tracing_mode=mode)(*given)
        return graph, graph.code.replace(".", "::")

    return trace


TRACERS = {mode: traced_by_make_fx(mode) for mode in ("real", "fake", "symbolic")} | {"torch.jit.trace": traced_by_jit}


@pytest.mark.parametrize("by", TRACERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_call_gives_the_eager_bits_of_other_tensors(name: str, by: str) -> None:
    case = CASES[name]
    graph, code = TRACERS[by](case, inputs(case, 1))
    assert f"::{case.operator}" in code
    other = inputs(case, 2)
    expected = eager(name, other)
    torch.manual_seed(0)
    assert same(graph(*other), expected)
    assert not same(case.call(*inputs(case, 1)), expected) or name == "advance"


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors(name: str, inside: bool) -> None:
    """Within their mode and without it: what a fake call gives has the shapes of the real one."""
    case, mode = CASES[name], FakeTensorMode()
    real = inputs(case, 1)
    fakes = tuple(mode.from_tensor(tensor) for tensor in real)

    def call() -> Tensors:
        if inside:
            with mode:
                return case.call(*fakes)
        return case.call(*fakes)

    if inside:
        for ours, theirs in zip(call(), case.call(*real), strict=True):
            assert isinstance(ours, FakeTensor) and (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    else:  # what the call makes is real, then
        try:
            made = call()
        except RuntimeError as error:
            assert "\n" not in str(error) and str(error).startswith(name.split()[0])
        else:
            assert all(isinstance(tensor, FakeTensor) for tensor in made)


@pytest.mark.parametrize("kind", ["fake", "functional", "meta", "of a vmap that is over", "of a grad that is over"])
@pytest.mark.parametrize("name", NAMES)
def test_one_tensor_without_memory_among_others(name: str, kind: str) -> None:
    case = CASES[name]
    for place in range(len(inputs(case, 1))):
        given = list(inputs(case, 1))
        given[place] = without_memory(kind, given[place])
        if given[place] is None:
            continue
        before = [tensor.clone() for k, tensor in enumerate(given) if k != place]
        try:
            ours = eager(name, tuple(given))
        except (RuntimeError, TypeError, ValueError) as error:
            if "Either your tensor may have escaped" in str(error):  # where the case itself copies it
                continue
            assert re.match(r"\w+: [^\n]*, expected [^\n]*\Z", str(error)), error
        else:
            assert_follows(kind, name, ours)
        assert same(tuple(tensor for k, tensor in enumerate(given) if k != place), tuple(before))


def assert_follows(kind: str, name: str, ours: Tensors) -> None:
    """torch gave a copy of the tensor: of one whose transform is over, a plain one; a fake or meta one of its kind."""
    expected = eager(name, inputs(CASES[name], 1))
    if "over" in kind:
        assert same(ours, expected)
    else:
        assert (name == "torch_normal" or len(inputs(CASES[name], 1)) == 1) and ours[0].shape == expected[0].shape
        assert isinstance(ours[0], FakeTensor) or ours[0].is_meta or torch._is_functional_tensor(ours[0])


def without_memory(kind: str, tensor: torch.Tensor) -> Any:
    if kind == "meta":
        return tensor.to("meta")
    if kind == "fake":
        return FakeTensorMode().from_tensor(tensor)
    if kind == "functional":
        return torch._to_functional_tensor(tensor)
    kept: list[torch.Tensor] = []
    if "vmap" in kind:
        torch.vmap(lambda x: kept.append(x) or x)(tensor[None])
    elif not tensor.is_floating_point():
        return None
    else:
        torch.func.grad(lambda x: kept.append(x.detach()) or x.sum())(tensor)
    return kept[0]


@pytest.mark.parametrize("name", NAMES)
def test_vmap_and_functionalize(name: str) -> None:
    """A pure operator goes through them; what writes to its arguments is refused, and its way out named."""
    case, given = CASES[name], inputs(CASES[name], 1)
    expected = eager(name, given)
    transforms = {
        "vmap": lambda: torch.vmap(case.call)(*(tensor[None] for tensor in given)),
        "functionalize": lambda: torch.func.functionalize(case.call)(*given),
    }
    for by, transform in transforms.items():
        if name in PURE:
            assert same(tuple(tensor.view_as(e) for tensor, e in zip(transform(), expected, strict=True)), expected)
        elif name == "torch_normal":
            if by == "functionalize":
                torch.manual_seed(0)
                assert same(transform(), expected)
            else:
                with pytest.raises(RuntimeError, match="randomness"):
                    transform()
        else:
            with refused(name):
                transform()


@pytest.mark.parametrize("name", NAMES)
def test_functional_tensors_of_python(name: str) -> None:
    """As AOTAutograd makes them."""
    given = inputs(CASES[name], 1)
    expected = eager(name, given)
    with FunctionalTensorMode():
        ours = eager(name, tuple(FunctionalTensor.to_functional(tensor) for tensor in given))
    assert same(tuple(torch._from_functional_tensor(tensor.elem) for tensor in ours), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fill_normal of a new tensor"])  # of ids alone
def test_transforms_that_differentiate(name: str) -> None:
    """None has a derivative in torch.func; constants beside what is differentiated are plain, or pass through."""
    case, given = CASES[name], inputs(CASES[name], 1)
    place = next(k for k, tensor in enumerate(given) if tensor.is_floating_point())

    def of_one(x: torch.Tensor) -> torch.Tensor:
        return 0 * x.sum() + sum(tensor.double().sum() for tensor in case.call(*given[:place], x, *given[place + 1 :]))

    def constant(x: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        return x.sum(), eager(name, tuple(tensor.detach() for tensor in given))

    if name in ("torch_normal", "fill_normal", "advance"):  # what they give does not depend on it
        assert not torch.func.grad(of_one)(given[place]).any()
    else:
        with pytest.raises(RuntimeError, match=r"^\w+: got [^\n]*, expected [^\n]*\Z"):
            torch.func.grad(of_one)(given[place])
        with pytest.raises(RuntimeError, match=r"^\w+: got [^\n]*, expected [^\n]*\Z"):
            torch.func.jvp(of_one, (given[place],), (given[place],))
    assert same(torch.func.grad(constant, has_aux=True)(torch.ones(2))[1], eager(name, given))


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class SeenWithin(Seen):
    """That looks on inside of the operators too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        if func.namespace == "ulam":
            with self:
                return operator.implementations[func._opname](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class FunctionsSeen(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_modes_that_look_on_see_the_operator_and_change_nothing(name: str) -> None:
    case, given = CASES[name], inputs(CASES[name], 1)
    expected = eager(name, given)
    with Seen() as seen:
        assert same(eager(name, given), expected)
    assert [n.split("::")[1] for n in seen.names].count(case.operator) == 1
    for mode in (SeenWithin(), FunctionsSeen(), FlopCounterMode(display=False)):
        with mode:
            ours = eager(name, given)
        assert same(ours, expected)


class Wrapping(torch.Tensor):
    """A class with a dispatch of its own and no memory: it calls what it wraps."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapping:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), strides=inner.stride(), dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = tree_map(lambda x: x.inner if isinstance(x, Wrapping) else x, (args, kwargs or {}))
        made = func(*unwrapped[0], **unwrapped[1])
        if func._schema.name.endswith("_"):  # torch's own, in place
            return args[0]
        return tree_map(lambda x: Wrapping(x) if isinstance(x, torch.Tensor) else x, made)


class Named(torch.Tensor):
    """A class that only functions of torch see."""


@pytest.mark.parametrize("name", NAMES)
def test_classes_of_tensors(name: str) -> None:
    given = inputs(CASES[name], 1)
    expected = eager(name, given)
    ours = eager(name, tuple(tensor.as_subclass(Named) for tensor in given))
    assert same(tuple(tensor.as_subclass(torch.Tensor) for tensor in ours), expected)
    ours = eager(name, tuple(map(Wrapping, given)))
    assert same(tuple(t.inner if isinstance(t, Wrapping) else t for t in ours), expected)
