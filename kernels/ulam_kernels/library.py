"""The operations as ``torch.ops.ulam.*``, so that ``torch.compile`` keeps them in its graph.

Each has a schema that declares what it mutates, a fake for tracing, and one implementation for every device: the
public function, which validates and selects the backend when the compiled graph runs. That function calls the operator
only while a graph is being traced; eager calls go straight to the backend, because PyTorch's dispatcher would cost
them several times what the launch does.

A schema names the arguments of its function. What is no tensor or number comes in parts: a :class:`Table` as ``coef``
and ``flags``, a density as its fields, pairs as two lists.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ulam_kernels import autograd, likelihood, mcmc, ops, tick
from ulam_kernels.densities import Density
from ulam_kernels.table import Table
from ulam_kernels.torch_normal import torch_normal
from ulam_kernels.tracing import operator_runs

IDS = "Tensor seed, Tensor chain, Tensor draw"
NOISE = "Tensor? seed=None, Tensor? chain=None, Tensor? draw=None, Tensor? noise=None"
ROWS = (
    "Tensor coef, Tensor flags, Tensor row, Tensor? model, Tensor? uncond, Tensor? guidance, Tensor? seed, "
    "Tensor? chain, Tensor? draw, Tensor? noise"
)
DENSITY = "str name, SymInt kind, SymInt dimension, SymInt components, Tensor params"
BACKEND = "str? backend=None"
SCHEMAS = {
    "step": f"(Tensor(a!) state, {ROWS}, Tensor(b!)? net_in, Tensor? scales=None, {BACKEND}, Tensor? source=None) "
    "-> ()",
    "reduce": f"(Tensor state, {ROWS}, Tensor(a!) out, {BACKEND}) -> ()",
    "blend": "(Tensor(a!) state, Tensor known, Tensor mask, Tensor a, Tensor b, Tensor? seed, Tensor? chain, "
    f"Tensor? draw, Tensor? noise=None, Tensor(b!)? net_in=None, Tensor? c_next=None, {BACKEND}, Tensor? row=None, "
    "SymInt stage=0) -> ()",
    "fill_normal": f"(Tensor(a!) out, {IDS}, SymInt tag=0, float scale=1.0, SymInt offset=0, {BACKEND}) -> ()",
    "affine": f"(Tensor x, Tensor m, Tensor a, Tensor b, {BACKEND}) -> Tensor",
    "affine_out": f"(Tensor x, Tensor m, Tensor a, Tensor b, Tensor(a!) out, {BACKEND}) -> ()",
    "look_up": "(Tensor times, Tensor row, Tensor(a!) out, Tensor? guidance=None, Tensor? interval=None, "
    f"Tensor(b!)? weight=None, {BACKEND}) -> ()",
    "advance": "(Tensor(a!) cursor, Tensor(b!) now, Tensor? model=None, Tensor? uncond=None, Tensor? guidance=None, "
    f"{BACKEND}) -> ()",
    "torch_normal": "(Tensor(a!) out) -> ()",
    "langevin": "(Tensor x, Tensor score, Tensor step, Tensor noise_scale, Tensor? scale, float lo, float hi, "
    f"{NOISE}, {BACKEND}) -> Tensor",
    "langevin_out": "(Tensor x, Tensor score, Tensor step, Tensor noise_scale, Tensor? scale, float lo, float hi, "
    f"Tensor(a!) out, {NOISE}, {BACKEND}) -> ()",
    "langevin_in_place": "(Tensor(a!) x, Tensor score, Tensor step, Tensor noise_scale, Tensor? scale, "
    f"float lo, float hi, {NOISE}, {BACKEND}) -> ()",
    "mala_accept": "(Tensor(a!) x, Tensor proposal, Tensor(b!) score, Tensor proposal_score, Tensor(c!) energy, "
    f"Tensor proposal_energy, Tensor step, Tensor? inverse_temperature, Tensor? scale, {IDS}, {BACKEND}) "
    "-> (Tensor, Tensor)",
    "kick_drift": "(Tensor(a!) x, Tensor(b!) v, Tensor score, Tensor kick, Tensor? drift, Tensor? keep, "
    f"Tensor? noise_scale, Tensor? scale, {NOISE}, {BACKEND}) -> ()",
    "squared_norm": f"(Tensor x, {BACKEND}) -> Tensor",
    "accept": f"(Tensor log_ratio, Tensor(a!)[] kept, Tensor[] proposed, {IDS}, {BACKEND}) -> Tensor",
    "evaluate": f"({DENSITY}, Tensor x, {BACKEND}) -> (Tensor, Tensor)",
    "evaluate_score": f"({DENSITY}, Tensor x, {BACKEND}) -> Tensor",
    "run": f"({DENSITY}, Tensor(a!) x, str sampler, Tensor coef, SymInt steps, {IDS}, Tensor(b!)? v, SymInt leapfrog, "
    "Tensor? scale, float lo, float hi, SymInt thin, Tensor(c!)? draws, Tensor(d!)? energies, Tensor(e!)? moments, "
    f"Tensor(f!)? accepted, Tensor(g!)? diverged, {BACKEND}) -> ()",
    "gaussian_kl": f"(Tensor mean_a, Tensor log_var_a, Tensor mean_b, Tensor log_var_b, {BACKEND}) -> Tensor",
    "discretised_log_likelihood": "(Tensor x, Tensor mean, Tensor log_scale, SymInt bins=256, str cdf='exact', "
    f"{BACKEND}) -> Tensor",
}

Values = dict[str, Any]
implementations: dict[str, Callable[..., Any]] = {}
_library = torch.library.Library("ulam", "DEF")  # the registrations live as long as this object


def _with_table(values: Values) -> None:
    values["table"] = Table(values.pop("coef"), values.pop("flags"), values["state"].shape[0])


def _with_density(values: Values) -> None:
    fields = (values.pop(name) for name in ("name", "kind", "dimension", "components", "params"))
    values["density"] = Density(*fields)


def _with_pairs(values: Values) -> None:
    values["pairs"] = list(zip(values.pop("kept"), values.pop("proposed"), strict=True))


def _nothing(**_: Any) -> None:
    """What operators that write in place return."""


def _per_chain(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    return lambda **values: next(iter(values.values())).new_empty(next(iter(values.values())).shape[:1], dtype=dtype)


def _affine(x: torch.Tensor, m: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.empty(x.shape, dtype=torch.promote_types(x.dtype, m.dtype), device=x.device)


def _like(x: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.empty_like(x)


def _test(x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[:1], dtype=torch.bool), x.new_empty(x.shape[:1], dtype=torch.float64)


def _evaluated(x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[:1], dtype=torch.float64), torch.empty_like(x)


def _in_place(x: torch.Tensor, **values: Any) -> None:
    mcmc.langevin(x, out=x, **values)


def _score(**values: Any) -> torch.Tensor:
    return mcmc.evaluate(energy=False, **values)[1]


def _define(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any] = _nothing,
    pack: Callable[[Values], None] | None = None,
    *tags: torch.Tag,
) -> None:
    """Register an operator; ``pack`` makes the arguments of the function that come in parts."""
    # The layouts that the graph was traced with are kept: states are updated in place and must be contiguous.
    _library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order, *tags))
    names = [argument.name for argument in getattr(torch.ops.ulam, name).default._schema.arguments]
    returns = fake is not _nothing

    @operator_runs()
    def run(*given: Any) -> Any:
        values = dict(zip(names, given, strict=False))  # without those that have their defaults
        if pack is not None:
            pack(values)
        made = function(**values)
        return made if returns else None

    implementations[name] = run
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"ulam::{name}", lambda *given: fake(**dict(zip(names, given, strict=False))), lib=_library
    )


_define("step", ops.step, pack=_with_table)
_define("reduce", ops.reduce, pack=_with_table)
_define("blend", ops.blend)
_define("fill_normal", ops.fill_normal)
_define("affine", ops.affine, _affine)
_define("affine_out", ops.affine)
_define("look_up", tick.look_up)
_define("advance", tick.advance)
_define("torch_normal", torch_normal, _nothing, None, torch.Tag.nondeterministic_seeded)
_define("langevin", mcmc.langevin, _like)
_define("langevin_out", mcmc.langevin)
_define("langevin_in_place", _in_place)
_define("mala_accept", mcmc.mala_accept, _test)
_define("kick_drift", mcmc.kick_drift)
_define("squared_norm", mcmc.squared_norm, _per_chain(torch.float64))
_define("accept", mcmc.accept, _per_chain(torch.bool), _with_pairs)
_define("evaluate", mcmc.evaluate, _evaluated, _with_density)
_define("evaluate_score", _score, _like, _with_density)
_define("run", mcmc.run, pack=_with_density)
_define("gaussian_kl", likelihood.gaussian_kl, _per_chain(torch.float64))
_define("discretised_log_likelihood", likelihood.discretised_log_likelihood, _per_chain(torch.float64))

torch.library.register_autograd(
    "ulam::affine", autograd.of_affine, setup_context=autograd.save_for_affine, lib=_library
)
