"""Energy-based models: contrastive divergence with chains that outlive the updates of the parameters.

:func:`density_from_score` goes the other way: from a score to the density, by :mod:`ulam.estimation.line_integrals`.

For maximum likelihood of p(x) = exp(-E(x)) / Z the gradient is E_data[grad_theta E] - E_model[grad_theta E]. The second
term is estimated by MCMC [Hinton 2002], with chains that go on from update to update [Tieleman 2008], except for a
small share that starts anew [Du & Mordatch 2019]::

    chains = PersistentChains(4096, (1, 8, 8), ulam.samplers.ULA(0.02), start=examples)
    for data in loader:
        negatives = chains.sample(energy, batch=len(data), steps=20)
        optimizer.zero_grad()
        ulam.objectives.contrastive_divergence(energy, data, negatives).backward()
        optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import ulam_kernels
import ulam_kernels.mcmc as ops
from ulam_kernels.arguments import described, real, switch, whole
from ulam_kernels.tracing import outside_graphs
from ulam_kernels.validation import check_data

from .arguments import check_shape, per_chain, resolve_device, seed_int64, whole_number
from .estimation.line_integrals import LogRatio as LogRatio
from .estimation.line_integrals import density_from_score as density_from_score
from .evaluation import check_like
from .lazily import suggests
from .mcmc.targets import Energy
from .mcmc.verdicts import diagnosis
from .noise import DRAWS_PER_ROW, FIRST_EXAMPLE, FIRST_STATE, RESTART, example_ids
from .samplers.mcmc.chain_sampler import ChainSampler, select_rows
from .samplers.mcmc.chain_state import ChainState, uniform
from .samplers.mcmc.ula import ULA

ROUNDING_CHECK = 64  # calls between checks of how coarsely the energy is rounded


class PersistentChains:
    """A buffer of ``count`` chains; every call runs the next ``batch`` of them, in turn, for a few steps.

    A chain counts its own steps and draws its own noise, restarts and fresh states from noise-v1: its course depends on
    the energies it met and on (seed, chain), not on the chains beside it.

    Args:
        count: chains in the buffer. shape: of one state.
        sampler: ULA, SGLD (whose steps do not fall here), MALA, HMC, NUTS, MALT or MAMS of :mod:`ulam.samplers`.
        restart: the share of chains, in [0, 1], that a call starts anew before its steps.
        start: where chains start, at first and anew: a tensor of examples ``[N, *shape]``, of which each takes one at
            random; or a function that makes states of standard normal noise ``[B, *shape]``; by default that noise.
        seed: an integer in [-2^63, 2^64).
        chains: ids of the chains, ``count`` different ones; by default those of :func:`ulam.noise.examples`, so that
            the processes of a distributed run share no noise.
        device, backend: see :class:`ulam.Engine`.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.

    Warns:
        RuntimeWarning: once, if an energy is rounded too coarsely for MALA, HMC or NUTS.
    """

    @outside_graphs
    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        sampler: ChainSampler,
        *,
        restart: float = 0.02,
        start: torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None = None,
        seed: int = 0,
        chains: int | range | Sequence[int] | torch.Tensor | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
    ) -> None:
        whole(count, "count", 1, 1 << 32)
        if not isinstance(sampler, ChainSampler) or sampler.has_velocity:
            raise TypeError(
                f"sampler: got {described(sampler)}, expected ULA, MALA, HMC or another that keeps no velocity"
            )
        if sampler.step is None:
            raise ValueError(f"step: got None, expected a step size for {type(sampler).__name__} in persistent chains")
        if sampler.center_of_mass != "free":
            raise ValueError("sampler: got one with center_of_mass='fixed', expected 'free' for persistent chains")
        if not 0 <= real(restart, "restart", "a share in [0, 1]") <= 1:
            raise ValueError(f"restart: got {described(restart)}, expected a share in [0, 1]")
        for name in sampler.per_chain:
            if (value := getattr(sampler, name)) is not None:
                select_rows(name, value, torch.zeros(1, dtype=torch.int64), count)
        self.shape, self.sampler, self.restart = check_shape(shape, least=1), sampler, float(restart)
        sampler.check_states(self.shape)
        self._start, self._backend = _checked_start(start, self.shape), backend
        self._next, self._calls, self._warned = 0, 0, False
        ids, device = example_ids(chains, count), resolve_device(device)
        check_data(ids, "chains")
        if len(set(ids.tolist())) < count:
            raise ValueError(f"chains: got {described(chains)} with an id twice, expected distinct ids")
        self._chain = ids.to(device)
        self._seed = torch.full_like(self._chain, seed_int64(seed))
        self.clock = torch.zeros_like(self._chain)
        self.x = torch.empty(count, *self.shape, device=device)
        self.x.copy_(self._fresh(self._state(self.x, torch.arange(count, device=device))))
        if not bool(torch.isfinite(self.x).all()):
            raise ValueError("start: got states that are not finite, expected finite ones")

    @outside_graphs
    def sample(
        self, energy: Callable[..., Any] | Energy, *, batch: int, steps: int, through_last: bool = False
    ) -> torch.Tensor:
        """Run the next ``batch`` chains for ``steps`` steps; returns a copy of their states ``[batch, *shape]``.

        ``energy`` is a function of x ``[B, *shape]`` to ``[B]``, or an :class:`ulam.Energy`; a module runs in eval
        mode. Chains that left the finite numbers start anew.

        through_last: the states, the same to the bit, carry the gradient of the last step x' = x + step P s(x) + noise
        in the parameters of the energy, x held [Du 2021]: for the term ``kl`` of
        :func:`ulam.objectives.contrastive_divergence`. With ULA or SGLD, where gradients are recorded; none flows where
        a state is clipped.

        Raises TypeError or ValueError as :func:`ulam.mcmc.run`.
        """
        if not isinstance(energy, Energy) and not callable(energy):
            raise TypeError(f"energy: got {described(energy)}, expected a function of x [B, *shape], or an Energy")
        if not 1 <= whole_number("batch", batch) <= len(self.x):
            raise ValueError(f"batch: got {batch}, expected 1 to the {len(self.x)} chains of the buffer")
        whole(steps, "steps", 1, 1 << 40)
        switch(through_last, "through_last")
        if through_last and not isinstance(self.sampler, ULA):
            name = type(self.sampler).__name__
            raise ValueError(
                f"through_last: got True with {name}, expected ULA or SGLD: a Metropolis test has no gradient"
            )
        rows = (torch.arange(batch, device=self.x.device) + self._next) % len(self.x)
        self._next = (self._next + batch) % len(self.x)
        target = energy if isinstance(energy, Energy) else Energy(energy)
        state = self._restarted(rows)
        state.evaluate = target.bind(state.x, rows, len(self.x), self._backend)
        assert self.sampler.step is not None
        one = select_rows("step", self.sampler.step, rows), select_rows("temperature", self.sampler.temperature, rows)
        a, b, c, d = (column.to(state.x.dtype) for column in self.sampler.coefficients(*one, rows, 0))
        state.evaluate_here(self.sampler.adjusted)
        for step in range(steps):
            if through_last and step == steps - 1:
                score = target.score_of_rows(state.x.clone(), rows, len(self.x))
            self.sampler.transition(state, (a, b, c, d))
            state.advance()
        if self.sampler.adjusted and not self._warned and self._calls % ROUNDING_CHECK == 0:
            assert state.energy is not None
            self._warned = diagnosis.warn_of_rounding(state.energy, one[1])
        self._calls += 1
        self.x[rows] = state.x
        self.clock[rows] += steps
        return self._carrying(state, per_chain(a, score) * score) if through_last else state.x

    def _restarted(self, rows: torch.Tensor) -> ChainState:
        """A copy of these chains, some of which start anew: a share of them, and the lost."""
        x = self.x[rows]
        state = self._state(x, rows)
        lost = ~torch.isfinite(x.flatten(1)).all(1)
        log_restart = torch.where(lost, math.inf, math.log(self.restart) if self.restart else -math.inf).double()
        ops.accept(log_restart, [(x, self._fresh(state))], **state.ids(RESTART), backend=self._backend)
        return state

    def _carrying(self, state: ChainState, moved: torch.Tensor) -> torch.Tensor:
        """The states with the gradient of their last move step s(x), times the preconditioner."""
        lo, hi = self.sampler.bounds
        carried = moved - moved.detach()  # 0
        if state.scale is not None:
            carried = carried * state.scale**2
        return state.x + torch.where((state.x > lo) & (state.x < hi), carried, 0.0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the buffer's tensors, to continue from: states, their clocks, ids and seed, whose turn is next."""
        return {
            "x": self.x.clone(),
            "clock": self.clock.clone(),
            "chain": self._chain.clone(),
            "seed": self._seed[0].clone(),
            "next": torch.tensor(self._next),
        }

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Continue from the :meth:`state_dict` of a buffer of the same size, seed and ids, to the bit.

        Raises TypeError or ValueError for another: a buffer keeps the seed and the ids it was made with, so that the
        processes of a distributed run, given one file, cannot end up with the same chains.
        """
        if not isinstance(saved, Mapping):
            raise TypeError(f"saved: got {described(saved)}, expected the state_dict of such chains")
        own = self.state_dict()
        for name, tensor in own.items():
            _check_saved(name, saved.get(name), tensor)
        for name, way in (("seed", "seed=int(saved['seed'])"), ("chain", "chains=saved['chain']")):
            if bool((other := saved[name].to(own[name].device) != own[name]).any()):
                came, kept = int(saved[name].to(other.device)[other][0]), int(own[name][other][0])
                raise ValueError(
                    f"{name}: got {came}, expected {kept} like these chains (made with {way} they take it)"
                )
        if not 0 <= (first := int(saved["next"])) < len(self.x) or bool((saved["clock"] < 0).any()):
            turn = f"{first} and {saved['clock'].tolist()[:8]}"
            raise ValueError(f"next, clock: got {turn}, expected a chain of the buffer and counts of at least 0")
        self.x.copy_(saved["x"])
        self.clock.copy_(saved["clock"])
        self._next = first

    def _state(self, x: torch.Tensor, rows: torch.Tensor) -> ChainState:
        draw = self.clock[rows] * DRAWS_PER_ROW
        return ChainState(
            x,
            _not_bound,
            self._seed[rows],
            self._chain[rows],
            draw,
            self.sampler.scale(x),
            self._backend,
            wants_energy=False,
        )

    def _fresh(self, state: ChainState) -> torch.Tensor:
        """States to start from, of the noise of these chains at their clocks."""
        if isinstance(self._start, torch.Tensor):
            z = torch.empty(len(state.x), 3, dtype=torch.float32, device=state.x.device)
            ids = state.ids(FIRST_EXAMPLE)
            ulam_kernels.fill_normal(
                z, seed=ids["seed"], chain=ids["chain"], draw=ids["draw"], tag=FIRST_EXAMPLE.tag, backend=self._backend
            )
            share = (uniform(z) + 1) / 2
            which = (share * len(self._start)).long().clamp(max=len(self._start) - 1)
            return self._start[which.to(self._start.device)].to(state.x).contiguous()
        z = state.normals(FIRST_STATE)
        x = z if self._start is None else self._start(z)
        x = check_like(x, z.shape, "start", "states", " like the noise")
        if not x.is_floating_point():
            raise TypeError(f"start: got states of {x.dtype}, expected floats")
        return x.detach().to(z).contiguous()


def _checked_start(
    start: object, shape: tuple[int, ...]
) -> torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None:
    if start is None or (callable(start) and not isinstance(start, torch.Tensor)):
        return start
    right = f"examples [N, {', '.join(map(str, shape))}]"
    if not isinstance(start, torch.Tensor):
        raise TypeError(f"start: got {described(start)}, expected {right}, a function of noise, or None")
    check_data(start, "start")
    if not start.is_floating_point() or start.shape[1:] != shape or not len(start):
        raise ValueError(f"start: got {described(start)}, expected floats, {right}")
    if not torch.isfinite(start).all():
        raise ValueError("start: got numbers that are not finite, expected finite ones")
    return start.detach()


def _check_saved(name: str, saved: object, own: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless ``saved`` is a tensor of the dtype and the shape of ``own``."""
    if not isinstance(saved, torch.Tensor) or saved.dtype != own.dtype:
        came = saved.dtype if isinstance(saved, torch.Tensor) else type(saved).__name__
        raise TypeError(f"{name}: got {came}, expected a tensor of {own.dtype}")
    check_data(saved, name)
    if saved.shape != own.shape:
        raise ValueError(f"{name}: got shape {list(saved.shape)}, expected {list(own.shape)}")


def _not_bound(x: torch.Tensor, wanted: bool) -> Any:
    raise RuntimeError("energy: got none for these chains, expected sample() to bind one")


suggests(__name__)
