"""VAEs and hierarchical VAEs over user networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from ulam_kernels.arguments import choice, described, real, switch, whole

from ..arguments import chain_ids, check_plain, check_shape, resolve_device, training_step
from ..engine.arguments import check_slots
from ..evaluation import parameters_reached
from ..noise import MOST_SAMPLES, example_ids
from .activity import active_units
from .ancestral import Ancestral, gaussian_row
from .bound import Elbo, ImportanceWeighted, Posterior, elbo, importance_weighted
from .decoder import Decoder, Scale
from .levels import INFERENCES, Level, Network, check_levels

ChainIds: TypeAlias = "int | range | Sequence[int] | torch.Tensor"


@dataclass(frozen=True, eq=False)
class HierarchicalVAE:
    """z_L -> ... -> z_1 -> x with a network for every conditional; ``levels`` from the top, z_L, down to z_1.

    Networks are called as they are: put modules into eval mode before sampling.

    Args:
        decoder: from z_1 to the mean of x ``[B, *x_shape]``; with scale=None to mean and log standard deviation
            ``[B, 2 C, ...]``.
        scale: the standard deviation of p(x | z_1): a number; a tensor that is learned where it is a parameter, with
            the dimensions of x_shape, or one number; a network of z_1, its output with the dimensions of x.
        inference: the order in which q draws the latents, see :class:`Level`. top-down: q(z_L | x) prod_k
            q(z_k | z_{k+1}, x) [Sonderby 2016]. bottom-up: q(z_1 | x) prod_k q(z_{k+1} | z_k) [Luo 2022, eq. 24].
        bins: x lies on this many levels from -1 to 1, and p(x | z_1) is the probability of x's bin [Ho 2020, eq. 13] in
            place of a density. What is sampled is not rounded.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """

    levels: Sequence[Level]
    decoder: Network
    scale: Scale = 1.0
    inference: str = "top-down"
    bins: int | None = None
    _decoder: Decoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_levels(self.levels))
        choice(self.inference, "inference", INFERENCES)
        object.__setattr__(self, "_decoder", Decoder(self.decoder, self.scale, self.bins))

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of all networks and of ``scale``, each once, for an optimiser.

        Those of modules, and what functions, bound methods and partials refer to: modules and parameters.
        """
        networks = [network for level in self.levels for network in (level.prior, level.posterior)]
        return parameters_reached(*networks, self.decoder, self.scale)

    def sample(
        self,
        chains: ChainIds,
        seed: int = 0,
        *,
        noise: bool = False,
        temperature: float = 1.0,
        slots: int = 256,
        device: torch.device | str = "cpu",
        backend: str | None = None,
    ) -> torch.Tensor:
        """Draw z_L, ..., z_1 and x from the top; ``[chains, *x_shape]``, row i is chain i.

        Each latent is one fused operation z = mean + exp(log std) noise with noise-v1 of (seed, chain, k) for the k-th
        latent from the top. The networks always see ``slots`` chains, so a chain's bits do not depend on how many are
        asked for. noise: draw x from p(x | z_1) in place of its mean E[x | z_1], which averages over all x that share
        z_1 and so is blurred. temperature: scales the noise of the latents, at least 0. device, backend: see
        :class:`ulam.Engine`. Raises TypeError or ValueError naming the argument.
        """
        ids, slots = chain_ids(chains).to(resolve_device(device)), check_slots(slots)
        if (temperature := real(temperature, "temperature")) < 0:
            raise ValueError(f"temperature: got {described(temperature)}, expected at least 0")
        switch(noise, "noise")
        if not len(ids):
            raise ValueError("chains: got none, expected at least 1")
        parts = []
        row = gaussian_row(ids.device)
        draw = Ancestral(self.levels, self._decoder, seed, noise, temperature, backend, row)
        with torch.inference_mode():
            for part in torch.split(ids, slots):
                padded = torch.cat([part, part.new_zeros(slots - len(part))])
                parts.append(draw(padded)[: len(part)].clone())
        return torch.cat(parts)

    def elbo(
        self,
        x: torch.Tensor,
        *,
        samples: int = 1,
        seed: int = 0,
        step: int | None = None,
        chains: ChainIds | None = None,
    ) -> Elbo:
        """The bound of x ``[B, *x_shape]``, from ``samples`` draws of q each (one to train); gradients flow.

            log p(x) >= E_q[log p(x | z_1)] - E_q KL(q(z_L | .) || N(0, I)) - sum_{k < L} KL_k
            top-down    KL_k = E_q KL(q(z_k | z_{k+1}, x) || p(z_k | z_{k+1}))
            bottom-up   KL_k = E_q[log q(z_k | z_{k-1}) - log p(z_k | z_{k+1})],  z_0 = x

        [Kingma & Welling 2014, eq. 3; Sonderby 2016; Luo 2022, eq. 28.] Divergences are exact given the latents
        that q depends on; bottom-up KL_k has the exact entropy of q and p at the draws, so that a column of one draw
        may be negative. :func:`ulam.objectives.elbo` makes a loss of it, with beta and free bits.

        Args:
            seed, step, chains: number the noise; a training loop passes its step. chains: ids of the examples, by
                default those of :func:`ulam.noise.examples`.

        Raises:
            TypeError, ValueError: an invalid argument or network output, named in the message; step=None where the
                result requires grad.
        """
        bound = elbo(self._posterior(x, samples, seed, step, chains), self._decoder)
        _check_step(step, bound.value)
        return bound

    def importance_weighted(
        self,
        x: torch.Tensor,
        *,
        samples: int,
        seed: int = 0,
        step: int | None = None,
        chains: ChainIds | None = None,
    ) -> ImportanceWeighted:
        """E log 1/K sum_k w_k, w_k = p(x, z^k) / q(z^k | x), of K = ``samples`` draws [Burda 2016, eq. 8].

        For K = 1 the ELBO; it increases with K, to log p(x). Arguments, gradients and errors are those of :meth:`elbo`.
        """
        bound = importance_weighted(self._posterior(x, samples, seed, step, chains), self._decoder)
        _check_step(step, bound.value)
        return bound

    def active_units(
        self, x: torch.Tensor, *, threshold: float = 0.01, samples: int = 16, seed: int = 0
    ) -> list[torch.Tensor]:
        """For every latent z_k which elements carry information, ``[*shape]`` bool, top first.

        Active is Var_x E_q[z_k | x] > threshold [Burda 2016, section 5.2], the mean taken over ``samples`` draws (at
        least 2) of the latents that q(z_k | .) depends on, without the variance that their number would add. Top-down,
        an element must also have a KL from its prior above threshold / 2, which at the top follows: one that repeats
        its prior p(z_k | z_{k+1}) says nothing that z_{k+1} did not. A latent whose elements are all inactive has
        collapsed to its prior. x is ``[B, *x_shape]``, B at least 2. Raises TypeError or ValueError naming the argument
        or network.
        """
        threshold = real(threshold, "threshold")
        whole(samples, "samples", 2, MOST_SAMPLES)
        check_examples(x)
        if len(x) < 2:
            raise ValueError(f"x: got {len(x)} examples, expected at least 2 to compare")
        with torch.no_grad():
            return active_units(self._posterior(x, samples, seed, None, torch.zeros(len(x)).long()), threshold)

    def _posterior(
        self, x: torch.Tensor, samples: int, seed: int, step: int | None, chains: ChainIds | None
    ) -> Posterior:
        check_examples(x)
        samples = whole(samples, "samples", 1, MOST_SAMPLES)
        number = 0 if step is None else training_step(step)
        for k, level in enumerate(self.levels):
            if level.posterior is None:
                raise ValueError(f"levels[{k}].posterior: got None, expected a network, which the bound needs")
        ids = None if chains is None else example_ids(chains, len(x))
        return Posterior(self.levels, self.inference, x, samples, seed, number, ids)


class GaussianVAE(HierarchicalVAE):
    """One latent z ~ N(0, I) of ``latent_shape``: decoder z -> x, encoder x -> mean and log std of q(z | x).

    [Kingma & Welling 2014.] scale, bins, and errors: see :class:`HierarchicalVAE`.
    """

    def __init__(
        self,
        decoder: Network,
        latent_shape: Sequence[int],
        encoder: Network | None = None,
        scale: Scale = 1.0,
        bins: int | None = None,
    ) -> None:
        if encoder is not None and not callable(encoder):
            raise TypeError(f"encoder: got {described(encoder)}, expected a network, or None")
        level = Level(check_shape(latent_shape, "latent_shape", 1), None, encoder)
        super().__init__([level], decoder, scale, bins=bins)


def check_examples(x: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless x is a float tensor [B, *x_shape], not empty."""
    check_plain(x, "x")
    if not x.is_floating_point() or x.dim() < 2 or not x.numel():
        raise ValueError(f"x: got {described(x)}, expected a float tensor [B, *shape], not empty")


def _check_step(step: int | None, value: torch.Tensor) -> None:
    """A loop that trains must number its steps, or every step has the noise of the first."""
    if step is None and value.requires_grad:
        raise TypeError(
            "step: got None where the result requires grad, expected the training step, which numbers its noise (or "
            "a call under torch.no_grad())"
        )
