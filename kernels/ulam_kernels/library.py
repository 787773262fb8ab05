"""The operations as ``torch.ops.ulam.*``, so that ``torch.compile`` keeps them in its graph.

Each has a schema that declares what it mutates, a fake for tracing, and one implementation for every device: the
public function, which validates and selects the backend when the compiled graph runs. That function calls the operator
only while a graph is being traced; eager calls go straight to the backend, because PyTorch's dispatcher would cost
them several times what the launch does.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch

from ulam_kernels import autograd, ops, tick
from ulam_kernels.table import Table
from ulam_kernels.tracing import operator_runs

SCHEMAS = {
    "step": "(Tensor(a!) state, Tensor coef, Tensor flags, Tensor row, Tensor? model, Tensor? uncond, "
    "Tensor? guidance, Tensor? seed, Tensor? chain, Tensor? draw, Tensor? noise, Tensor(b!)? net_in, "
    "Tensor? scales=None, str? backend=None, Tensor? source=None) -> ()",
    "reduce": "(Tensor state, Tensor coef, Tensor flags, Tensor row, Tensor? model, Tensor? uncond, "
    "Tensor? guidance, Tensor? seed, Tensor? chain, Tensor? draw, Tensor? noise, Tensor(a!) out, "
    "str? backend=None) -> ()",
    "blend": "(Tensor(a!) state, Tensor known, Tensor mask, Tensor a, Tensor b, Tensor? seed, Tensor? chain, "
    "Tensor? draw, Tensor? noise=None, Tensor(b!)? net_in=None, Tensor? c_next=None, str? backend=None, "
    "Tensor? row=None, SymInt stage=0) -> ()",
    "fill_normal": "(Tensor(a!) out, Tensor seed, Tensor chain, Tensor draw, SymInt tag=0, float scale=1.0, "
    "SymInt offset=0, str? backend=None) -> ()",
    "affine": "(Tensor x, Tensor m, Tensor a, Tensor b, str? backend=None) -> Tensor",
    "affine_out": "(Tensor x, Tensor m, Tensor a, Tensor b, Tensor(a!) out, str? backend=None) -> ()",
    "look_up": "(Tensor times, Tensor row, Tensor(a!) out, Tensor? guidance=None, Tensor? interval=None, "
    "Tensor(b!)? weight=None, str? backend=None) -> ()",
    "advance": "(Tensor(a!) cursor, Tensor(b!) now, Tensor? model=None, Tensor? uncond=None, Tensor? guidance=None, "
    "str? backend=None) -> ()",
}

_library = torch.library.Library("ulam", "DEF")  # the registrations live as long as this object
for _name, _schema in SCHEMAS.items():
    # The layouts that the graph was traced with are kept: states are updated in place and must be contiguous.
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


@operator_runs()
def step(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    net_in: torch.Tensor | None,
    scales: torch.Tensor | None = None,
    backend: str | None = None,
    source: torch.Tensor | None = None,
) -> None:
    """:func:`ulam_kernels.step` of a table given as its tensors."""
    table = Table(coef, flags, state.shape[0])
    ops.step(
        state,
        table,
        row,
        model=model,
        uncond=uncond,
        guidance=guidance,
        seed=seed,
        chain=chain,
        draw=draw,
        noise=noise,
        net_in=net_in,
        scales=scales,
        source=source,
        backend=backend,
    )


@operator_runs()
def reduce(
    state: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    row: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    out: torch.Tensor,
    backend: str | None = None,
) -> None:
    """:func:`ulam_kernels.reduce` of a table given as its tensors, but returning nothing."""
    ops.reduce(
        state,
        Table(coef, flags, state.shape[0]),
        row,
        model=model,
        uncond=uncond,
        guidance=guidance,
        seed=seed,
        chain=chain,
        draw=draw,
        noise=noise,
        out=out,
        backend=backend,
    )


@operator_runs()
def blend(
    state: torch.Tensor,
    known: torch.Tensor,
    mask: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None = None,
    net_in: torch.Tensor | None = None,
    c_next: torch.Tensor | None = None,
    backend: str | None = None,
    row: torch.Tensor | None = None,
    stage: int = 0,
) -> None:
    """:func:`ulam_kernels.blend`."""
    ops.blend(
        state,
        known,
        mask,
        a,
        b,
        seed=seed,
        chain=chain,
        draw=draw,
        noise=noise,
        net_in=net_in,
        c_next=c_next,
        row=row,
        stage=stage,
        backend=backend,
    )


@operator_runs()
def fill_normal(
    out: torch.Tensor,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    tag: int = 0,
    scale: float = 1.0,
    offset: int = 0,
    backend: str | None = None,
) -> None:
    """:func:`ulam_kernels.fill_normal`, but returning nothing: an operator may not return what it was given."""
    ops.fill_normal(out, seed=seed, chain=chain, draw=draw, tag=tag, scale=scale, offset=offset, backend=backend)


@operator_runs()
def affine(
    x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, backend: str | None = None
) -> torch.Tensor:
    """:func:`ulam_kernels.affine` into a new tensor."""
    return ops.affine(x, m, a, b, backend=backend)


@operator_runs()
def affine_out(
    x: torch.Tensor,
    m: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    backend: str | None = None,
) -> None:
    """:func:`ulam_kernels.affine` into ``out``."""
    ops.affine(x, m, a, b, out, backend=backend)


@operator_runs()
def look_up(
    times: torch.Tensor,
    row: torch.Tensor,
    out: torch.Tensor,
    guidance: torch.Tensor | None = None,
    interval: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """:func:`ulam_kernels.look_up`."""
    tick.look_up(times, row, out, guidance=guidance, interval=interval, weight=weight, backend=backend)


@operator_runs()
def advance(
    cursor: torch.Tensor,
    now: torch.Tensor,
    model: torch.Tensor | None = None,
    uncond: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """:func:`ulam_kernels.advance`."""
    tick.advance(cursor, now, model=model, uncond=uncond, guidance=guidance, backend=backend)


def _fake_affine(
    x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, backend: str | None = None
) -> torch.Tensor:
    return torch.empty(x.shape, dtype=torch.promote_types(x.dtype, m.dtype), device=x.device)


def _fake_nothing(*arguments: object, **options: object) -> None:
    """What the operators that write in place return."""


for _function in (step, reduce, blend, fill_normal, affine, affine_out, look_up, advance):
    _library.impl(_function.__name__, _function, "CompositeExplicitAutograd")
    _fake = _fake_affine if _function is affine else _fake_nothing
    torch.library.register_fake(f"ulam::{_function.__name__}", _fake, lib=_library)

torch.library.register_autograd(
    "ulam::affine", autograd.of_affine, setup_context=autograd.save_for_affine, lib=_library
)
