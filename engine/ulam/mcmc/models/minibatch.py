"""The score of a posterior by minibatches: every chain has its own of each step, made of its own noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

import ulam_kernels
from ulam_kernels.arguments import described
from ulam_kernels.validation import check_data

from ...arguments import whole_number
from ...evaluation import in_eval_mode, modules_in
from ...noise import DRAWS_PER_ROW, MINIBATCH
from ...samplers.mcmc.chain_state import ChainState, Evaluated, uniform
from ..targets import Energy, checked_float, name_of
from .model import Model, check_names
from .parameters import Parameter

MOST_OBSERVATIONS = 1 << 24  # finer than the uniforms that choose them


class Minibatch:
    """The posterior of named parameters given N observations, by a score on n of them: for :class:`ulam.mcmc.SGLD`.

    s(x) = grad (log p(theta) + N / n sum_(i in batch) log p(y_i | theta) + log |det dtheta/dx|) [Welling & Teh 2011,
    eq. 4], whose mean over batches is the score of all observations; x and theta as in :class:`ulam.mcmc.Model`. A
    batch is n observations drawn with replacement by noise-v1 of (seed, chain, step): the bits of a chain do not depend
    on others, and ``resume=`` goes on as in one run. Draws of steps that fall are averaged by
    :meth:`ulam.mcmc.Chains.weighted_mean`.

    Both functions are called as a model's ``log_prob``, for one chain and by name, ``log_likelihood`` with the batch
    beside the parameters, tensors ``[n, ...]``: ``log_likelihood(mu=..., y=...)``. It returns ``[n]``, one number an
    observation; ``log_prior(mu=...)`` returns ``[]``.

    Args:
        log_prior, log_likelihood: as above, differentiable in the parameters.
        data: tensors by name, N observations along the first axis of each; floats are given in the dtype of the
            parameters.
        parameters, dtype: see :class:`ulam.mcmc.Model`.
        batch: n, at least 1.

    Raises:
        TypeError, ValueError: arguments that do not fit together, named. In a run, also for numbers of the wrong shape.
    """

    has_energy: ClassVar[bool] = False

    def __init__(
        self,
        log_prior: Callable[..., Any],
        log_likelihood: Callable[..., Any],
        data: Mapping[str, torch.Tensor],
        parameters: Mapping[str, Parameter],
        *,
        batch: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, function in (("log_prior", log_prior), ("log_likelihood", log_likelihood)):
            if not callable(function) or isinstance(function, type):
                raise TypeError(f"{name}: got {described(function)}, expected a function of the parameters by name")
        self.model = Model(self._estimate, parameters, dtype=dtype)
        self.layout, self.dtype = self.model.layout, dtype
        self.data, self.count = _checked_data(data, list(self.layout.parameters))
        self.batch = whole_number("batch", batch)
        if not 1 <= self.batch <= MOST_OBSERVATIONS:
            raise ValueError(f"batch: got {batch}, expected at least 1 and at most 2^24 observations")
        check_names("log_prior", log_prior, [*self.layout.parameters])
        check_names("log_likelihood", log_likelihood, [*self.layout.parameters, *self.data])
        self.log_prior, self.log_likelihood = log_prior, log_likelihood

    def __repr__(self) -> str:
        names = f"{name_of(self.log_prior)}, {name_of(self.log_likelihood)}"
        return f"Minibatch({names}, {self.batch} of {self.count} observations)"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n,)``, that of one state."""
        return self.model.shape

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> DrawnScore:
        return DrawnScore(self, x, backend)

    def _estimate(self, **values: torch.Tensor) -> torch.Tensor:
        """log p(theta) + N / n sum log p(y_i | theta) for one chain and its batch."""
        data = {name: values.pop(name) for name in self.data}
        prior = checked_float(self.log_prior(**values), (), "log densities", ", one number", "log_prior")
        why = ", one number an observation"
        each = self.log_likelihood(**values, **data)
        each = checked_float(each, (self.batch,), "log likelihoods", why, "log_likelihood")
        return prior + self.count * each.mean()


class DrawnScore:
    """The score at states x ``[B, n]``, on batches by the noise of ``state``, which is to be set before it is called.

    The batch of step i is that of the score with which the step begins.
    """

    def __init__(self, target: Minibatch, x: torch.Tensor, backend: str | None) -> None:
        self.state: ChainState | None = None
        self._target, self._backend, self._checked = target, backend, False
        self._drawn: dict[str, torch.Tensor] = {}
        dtype = target.dtype or x.dtype
        self._data = {
            name: values.to(x.device, dtype) if values.is_floating_point() else values.to(x.device)
            for name, values in target.data.items()
        }
        energy = Energy(lambda at: target.model.energy_given(at, self._drawn), dtype=target.dtype)
        self._modules = modules_in((target.log_prior, target.log_likelihood))
        self._evaluate = energy.bind(x, torch.arange(len(x)), len(x), backend)

    def __call__(self, at: torch.Tensor, wanted: bool) -> Evaluated:
        chosen = self._observations()
        self._drawn = {name: values[chosen] for name, values in self._data.items()}
        with in_eval_mode(self._modules):
            if not self._checked:
                self._target.model.check(at[:1].detach(), {name: values[:1] for name, values in self._drawn.items()})
                self._checked = True
            return None, self._evaluate(at, False)[1]

    def _observations(self) -> torch.Tensor:
        """Their numbers ``[B, n]`` int64, uniform on 0 to N - 1, of the step that begins next."""
        state, target = self.state, self._target
        assert state is not None
        z = torch.empty(len(state.chain), 3 * target.batch, dtype=torch.float32, device=state.x.device)
        draw = state.draw + (state.ahead * DRAWS_PER_ROW + MINIBATCH.stage)
        ulam_kernels.fill_normal(
            z, seed=state.seed, chain=state.chain, draw=draw, tag=MINIBATCH.tag, backend=self._backend
        )
        place = (uniform(z.view(-1, 3)) + 1) * (target.count / 2)
        return place.long().clamp(0, target.count - 1).view(-1, target.batch)


def _checked_data(data: object, parameters: list[str]) -> tuple[dict[str, torch.Tensor], int]:
    """The data, and the number of observations."""
    right = 'a dict of tensors by name, such as {"y": y}, observations along their first axes'
    if not isinstance(data, Mapping) or not data:
        raise TypeError(f"data: got {described(data)}, expected {right}")
    count: int | None = None
    for name, values in data.items():
        if not isinstance(name, str) or name in parameters:
            raise ValueError(f"data: got the name {described(name)}, expected one that no parameter has")
        if not isinstance(values, torch.Tensor):
            raise TypeError(f"data[{name!r}]: got {described(values)}, expected a tensor [N, ...]")
        check_data(values, f"data[{name!r}]")
        count = len(values) if count is None and values.dim() else count
        if not values.dim() or len(values) != count or not 1 <= count <= MOST_OBSERVATIONS:
            asked = f"{count} observations" if values.dim() and count else "from 1 to 2^24 observations"
            raise ValueError(f"data[{name!r}]: got shape {list(values.shape)}, expected {asked} along its first axis")
    assert count is not None
    return {name: values.detach() for name, values in data.items()}, count
