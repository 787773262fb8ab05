"""Energy-based models: contrastive divergence with chains that outlive the updates of the parameters.

For maximum likelihood of p(x) = exp(-E(x)) / Z the gradient is E_data[grad_theta E] - E_model[grad_theta E]. The second
term is estimated by MCMC [Hinton 2002], with chains that go on from update to update [Tieleman 2008], except for a
small share that starts anew [Du & Mordatch 2019]::

    chains = PersistentChains(4096, (1, 8, 8), ulam.samplers.ULA(0.02))
    for data in loader:
        negatives = chains.sample(energy, batch=len(data), steps=20)
        optimizer.zero_grad()
        ulam.objectives.contrastive_divergence(energy, data, negatives).backward()
        optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import ulam_kernels.mcmc as ops
from ulam_kernels.arguments import described, real, whole
from ulam_kernels.tracing import outside_graphs

from .arguments import check_shape, resolve_device, seed_int64, whole_number
from .evaluation import check_like
from .mcmc import diagnosis
from .mcmc.targets import Energy
from .noise import DRAWS_PER_ROW, FIRST_STATE, RESTART
from .samplers.mcmc.chain_sampler import ChainSampler, select_rows
from .samplers.mcmc.chain_state import ChainState

ROUNDING_CHECK = 64  # calls between checks of how coarsely the energy is rounded


class PersistentChains:
    """A buffer of ``count`` chains; every call runs the next ``batch`` of them, in turn, for a few steps.

    A chain counts its own steps and draws its own noise, restarts and fresh states from noise-v1: its course depends on
    the energies it met and on (seed, chain), not on the chains beside it.

    Args:
        count: chains in the buffer. shape: of one state.
        sampler: ULA, SGLD (whose steps do not fall here), MALA or HMC of :mod:`ulam.samplers`.
        restart: the share of chains, in [0, 1], that a call starts anew before its steps.
        start: makes states of standard normal noise ``[B, *shape]``; by default the states are that noise.
        seed: an integer in [-2^63, 2^64). device, backend: see :class:`ulam.Engine`.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.

    Warns:
        RuntimeWarning: once, if an energy is rounded too coarsely for MALA or HMC (:mod:`ulam.mcmc.diagnosis`).
    """

    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        sampler: ChainSampler,
        *,
        restart: float = 0.02,
        start: Callable[[torch.Tensor], torch.Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        backend: str | None = None,
    ) -> None:
        whole(count, "count", 1, 1 << 40)
        if start is not None and not callable(start):
            raise TypeError(f"start: got {described(start)}, expected a function of noise, or None")
        if not isinstance(sampler, ChainSampler) or sampler.has_velocity:
            raise TypeError(f"sampler: got {type(sampler).__name__}, expected ULA, SGLD, MALA or HMC")
        if not 0 <= real(restart, "restart", "a share in [0, 1]") <= 1:
            raise ValueError(f"restart: got {described(restart)}, expected a share in [0, 1]")
        for name in sampler.per_chain:
            if (value := getattr(sampler, name)) is not None:
                select_rows(name, value, torch.zeros(1, dtype=torch.int64), count)
        self.shape, self.sampler, self.restart = check_shape(shape, least=1), sampler, float(restart)
        self._start, self._backend, self._next, self._calls, self._warned = start, backend, 0, 0, False
        device = resolve_device(device)
        self._chain = torch.arange(count, device=device)
        self._seed = torch.full_like(self._chain, seed_int64(seed))
        self.clock = torch.zeros_like(self._chain)
        self.x = torch.empty(count, *self.shape, device=device)
        self.x.copy_(self._fresh(self._state(self.x, self._chain)))

    @outside_graphs
    def sample(self, energy: Callable[..., Any] | Energy, *, batch: int, steps: int) -> torch.Tensor:
        """Run the next ``batch`` chains for ``steps`` steps; returns a copy of their states ``[batch, *shape]``.

        ``energy`` is a function of x ``[B, *shape]`` to ``[B]``, or an :class:`ulam.Energy`; a module runs in eval
        mode. Chains that left the finite numbers start anew. Raises TypeError or ValueError as :func:`ulam.mcmc.run`.
        """
        if not isinstance(energy, Energy) and not callable(energy):
            raise TypeError(f"energy: got {described(energy)}, expected a function of x [B, *shape], or an Energy")
        if not 1 <= whole_number("batch", batch) <= len(self.x):
            raise ValueError(f"batch: got {batch}, expected 1 to the {len(self.x)} chains of the buffer")
        whole(steps, "steps", 1, 1 << 40)
        rows = (torch.arange(batch, device=self.x.device) + self._next) % len(self.x)
        self._next = (self._next + batch) % len(self.x)
        x = self.x[rows]
        state, target = self._state(x, rows), energy if isinstance(energy, Energy) else Energy(energy)
        fresh = self._fresh(state)
        lost = ~torch.isfinite(x.flatten(1)).all(1)
        log_restart = torch.where(lost, math.inf, math.log(self.restart) if self.restart else -math.inf).double()
        ops.accept(log_restart, [(x, fresh)], **state.ids(RESTART), backend=self._backend)
        state.evaluate = target.bind(x, rows, len(self.x), self._backend)
        one = select_rows("step", self.sampler.step, rows), select_rows("temperature", self.sampler.temperature, rows)
        a, b, c, d = (column.to(x.dtype) for column in self.sampler.coefficients(*one, rows, 0))
        state.evaluate_here(self.sampler.adjusted)
        for _ in range(steps):
            self.sampler.transition(state, (a, b, c, d))
            state.advance()
        if self.sampler.adjusted and not self._warned and self._calls % ROUNDING_CHECK == 0:
            assert state.energy is not None
            self._warned = diagnosis.warn_of_rounding(state.energy, one[1])
        self._calls += 1
        self.x[rows] = state.x
        self.clock[rows] += steps
        return state.x

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the buffer's tensors, to continue from."""
        return {"x": self.x.clone(), "clock": self.clock.clone(), "next": torch.tensor(self._next)}

    def load_state_dict(self, saved: dict[str, torch.Tensor]) -> None:
        """Continue from the :meth:`state_dict` of a buffer of the same size, else raise TypeError or ValueError."""
        for name, own in self.state_dict().items():
            tensor = saved.get(name)
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != own.dtype:
                came = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise TypeError(f"{name}: got {came}, expected a tensor of {own.dtype}")
            if tensor.shape != own.shape:
                raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(own.shape)}")
        if not 0 <= (first := int(saved["next"])) < len(self.x) or bool((saved["clock"] < 0).any()):
            came = f"{first} and {saved['clock'].tolist()[:8]}"
            raise ValueError(f"next, clock: got {came}, expected a chain of the buffer and counts of at least 0")
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
        z = state.normals(FIRST_STATE)
        x = z if self._start is None else self._start(z)
        x = check_like(x, z.shape, "start", "states", " like the noise")
        if not x.is_floating_point():
            raise TypeError(f"start: got states of {x.dtype}, expected floats")
        return x.detach().to(z).contiguous()


def _not_bound(x: torch.Tensor, wanted: bool) -> Any:
    raise RuntimeError("energy: got none for these chains, expected sample() to bind one")
