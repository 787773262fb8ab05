"""A log density of named, constrained parameters as the target of chains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributions import Distribution

from ulam_kernels.arguments import described, switch

from ...arguments import check_states
from ...evaluation import in_eval_mode, modules_in
from ...samplers.mcmc.chain_state import Evaluate, Evaluated
from ..targets import Energy, checked_float, name_of
from .parameters import Layout, Parameter


class Model(Energy):
    """A log density of named parameters, each in a set of its own: chains run on all of them as one flat vector.

    Chains see x ``[B, n]`` without constraints, and the energy E(x) = -log p(f(x)) - log |det df/dx|, f the bijections
    of ``torch.distributions`` (:mod:`ulam.mcmc.models.parameters`): draws of exp(-E), mapped by f, are draws of p. It
    is an :class:`ulam.Energy` of x, with its scores; ``ulam.mcmc.run(model, sampler)`` needs no shape.

    **How log_prob is called.** With every parameter by its name, for ONE set of parameters, without an axis of chains:
    ``log_prob(mu=..., theta=...)``, a tensor ``[*shape]`` each, and returns one number ``[]``, a sum over all that is
    observed. ``torch.func.vmap`` makes it a function of all chains, and refuses control flow that depends on values
    (``torch.where`` in its place). ``batched=True``: it is called for all chains at once, tensors ``[chains, *shape]``,
    and returns ``[chains]``; ``mu`` beside ``theta`` is ``mu[:, None]`` then. Constants of log p may be left out.

    A run calls it once more where each batch starts, for the first chain alone (for all with ``batched=True``), with
    the checks of ``torch.distributions`` on, which name data and arguments out of range. Later they are off: a proposal
    out of range is not a number, and so is refused by a Metropolis test.

    A chain has the same bits in any company where ``log_prob`` rounds alike in any batch. On the CPU ``torch.sigmoid``
    and ``softplus`` do not (the bijections here do): with them it takes ``rows=`` of a multiple of 32, or equal
    ``slots=`` of :func:`ulam.mcmc.run`.

    Args:
        log_prob: log p, as above, differentiable in the parameters; an ``nn.Module`` is called in eval mode.
        parameters: :class:`ulam.mcmc.Parameter` by name, in the order of x; the names are those of the arguments.
        batched: whether ``log_prob`` takes all chains at once.
        dtype: float32 or float64, in which the parameters, their Jacobians and ``log_prob`` are computed; by default
            that of the states. An energy of 10^4 has neighbours 0.001 apart in float32.
        rows: for how many chains it is computed at a time: see :class:`ulam.Energy`.

    Raises:
        TypeError, ValueError: arguments that do not fit together, named. In a run, also for a log density that is not
        one number a chain, or has no gradient.
    """

    def __init__(
        self,
        log_prob: Callable[..., Any],
        parameters: Mapping[str, Parameter],
        *,
        batched: bool = False,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
    ) -> None:
        if not callable(log_prob) or isinstance(log_prob, type):
            raise TypeError(f"log_prob: got {described(log_prob)}, expected a function of the parameters by name")
        super().__init__(self._energy, dtype=dtype, rows=rows)
        switch(batched, "batched")
        self.layout, self.given, self.batched = Layout(parameters, dtype), log_prob, batched
        check_names("log_prob", log_prob, list(self.layout.parameters))

    def __repr__(self) -> str:
        return f"Model({name_of(self.given)}, {', '.join(self.layout.parameters)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)``, that of one state."""
        return (self.layout.size,)

    def constrain(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters by name, ``[B, *shape]`` each, of states x ``[B, n]``; more leading axes are kept.

        Raises TypeError or ValueError for states of another shape.
        """
        if check_states(x).shape[-1] != self.layout.size:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [..., {self.layout.size}]")
        return self.layout.constrain(x)

    def unconstrain(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The states ``[B, n]`` float64 of parameters ``[B, *shape]`` by name, the inverse of :meth:`constrain`.

        Raises TypeError or ValueError for names or shapes that do not fit, and for values outside of their sets.
        """
        return self.layout.unconstrain(values)

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        evaluate, checked = super().bind(x, rows, chains, backend), False

        def check_once(at: torch.Tensor, wanted: bool) -> Evaluated:
            nonlocal checked
            first = at.detach() if self.batched else at[:1].detach()
            if not checked and bool(torch.isfinite(first).all()):
                with in_eval_mode(modules_in(self.given)):
                    self.check(first)
            checked = True
            return evaluate(at, wanted)

        return check_once

    def rebind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        """:meth:`bind` for some rows of a batch that is under way: unchecked, as proposals may be out of range."""
        return super().bind(x, rows, chains, backend)

    def check(self, first: torch.Tensor, more: Mapping[str, torch.Tensor] | None = None) -> None:
        """Call log_prob, the checks of ``torch.distributions`` on, for the first chain of x ``[B, n]`` (batched: all).

        ``more``: further arguments of log_prob by name, one a chain ``[B, ...]``. Raises what log_prob raises, and
        TypeError or ValueError for what it returns.
        """
        values = self.layout.constrain(first) | dict(more or {})
        with _checks(True):
            if self.batched:
                self._of_all(values)
            else:
                self._of_one({name: value[0] for name, value in values.items()})

    def _energy(self, x: torch.Tensor) -> torch.Tensor:
        return self.energy_given(x, {})

    def energy_given(self, x: torch.Tensor, more: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """E(x) ``[B]``, with further arguments of log_prob by name, one a chain ``[B, ...]``."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {self.layout.size}]")
        values, log_det = self.layout.constrain_with_log_det(x)
        values |= more
        with _checks(False):
            log_prob = self._of_all(values) if self.batched else self._of_each(values)
        if x.requires_grad and not log_prob.requires_grad:
            right = "one computed from the parameters by differentiable torch operations"
            raise TypeError(f"log_prob: got a log density without a gradient, expected {right}")
        return -(log_prob + log_det)

    def _of_each(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        try:
            made: torch.Tensor = torch.func.vmap(self._of_one)(values)
        except RuntimeError as error:
            if "data-dependent control flow" in str(error) or ".item()" in str(error):
                right = "torch.where, or batched=True for a function of all chains"
                raise TypeError(f"log_prob: got control flow that depends on a parameter, expected {right}") from error
            raise
        return made

    def _of_one(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        why = ", one number: a sum over what is observed (batched=True for a function of all chains)"
        return checked_float(self.given(**values), (), "log densities", why, "log_prob")

    def _of_all(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        chains = len(next(iter(values.values())))
        return checked_float(self.given(**values), (chains,), "log densities", ", one number a chain", "log_prob")


def check_names(name: str, function: Callable[..., Any], names: list[str]) -> None:
    """Raises TypeError unless it can be called with these names; what has no signature is not looked at.

    ``name``: the function's in errors.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        called = f"{name}({', '.join(f'{one}=...' for one in names)})"
        raise TypeError(f"{name}: got {name_of(function)}{signature}, {error}; expected {called}") from None


@contextmanager
def _checks(wanted: bool) -> Iterator[None]:
    """With or without the checks of ``torch.distributions``, which raise for one chain in place of all.

    ``torch.compile`` turns them off for the whole process.
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(wanted)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
