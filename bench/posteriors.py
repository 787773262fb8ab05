"""Posteriors whose means and standard deviations are known: what samplers are held to, and timed on.

Models and data are those of inference-gym, a package of the TensorFlow Probability authors (Apache-2.0), but for the
logistic regression, on scikit-learn's breast cancer data. Each is a log-density of unconstrained x ``[chains, n]``,
written so that its prior, or x itself, is of order one, and a map from x to the parameters whose law is known.
`python -m bench.posterior_numbers` wrote posteriors.npz, the numbers that do not follow from a formula here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ulam import mcmc

NUMBERS = Path(__file__).with_name("posteriors.npz")
Tensor = torch.Tensor


class Truth(NamedTuple):
    """Mean and standard deviation of every parameter, with the standard errors of both: ``[parameters]`` float64."""

    mean: np.ndarray
    mean_error: np.ndarray
    sd: np.ndarray
    sd_error: np.ndarray


class Posterior(ABC):
    """A log-density of x ``[chains, dimension]`` and the parameters that are functions of x.

    Attributes:
        labels: of the parameters. dimension: of x.
        step: a leapfrog step with which NUTS with the mass 1 accepts about 0.8.
    """

    name: ClassVar[str]
    step: ClassVar[float]
    dimension: int
    labels: list[str]

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) ``[chains]`` of x ``[chains, dimension]``, but for a constant."""

    def energy(self, x: Tensor) -> Tensor:
        """-log p(x) ``[chains]``."""
        return -self.log_prob(x)

    def parameters(self, x: Tensor) -> Tensor:
        """The parameters ``[..., p]`` of x ``[..., dimension]``."""
        return x

    def target(self) -> Any:
        """What `ulam.mcmc.run` takes."""
        return mcmc.Energy(self.energy)

    @property
    @abstractmethod
    def truths(self) -> dict[str, Truth]:
        """What is known of the parameters, by where it comes from."""


class EightSchools(Posterior):
    """Effects of coaching in eight schools [Rubin 1981], not centred: the prior of x is N(0, I).

    mu = 10 x_0, log tau = 5 + x_1, theta_i = mu + tau x_(2 + i), y_i ~ N(theta_i, s_i^2).
    """

    name, step, dimension = "eight schools", 0.35, 10
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
    s = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)

    def __init__(self) -> None:
        self.labels = ["mu", "log tau", *(f"theta[{i}]" for i in range(8))]
        self.constants = in_dtype(self.y, self.s)

    def parameters(self, x: Tensor) -> Tensor:
        mu, log_tau = 10 * x[..., :1], 5 + x[..., 1:2]
        return torch.cat([mu, log_tau, mu + log_tau.exp() * x[..., 2:]], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        y, s = self.constants(x)
        error = (self.parameters(x)[..., 2:] - y) / s
        return -0.5 * (x.square().sum(-1) + error.square().sum(-1))

    @property
    def truths(self) -> dict[str, Truth]:
        return {"inference-gym": stored("eight_schools"), "quadrature": stored("eight_schools_exact")}


class BrownianMotion(Posterior):
    """A Brownian motion of 30 steps, seen with noise but for the middle ten; the scales of both are unknown.

    log a = x_0 and log b = x_1 ~ N(0, 2^2), l_0 ~ N(0, a^2), l_t ~ N(l_(t-1), a^2), y_t ~ N(l_t, b^2). Where a place
    is seen x has (l_t - y_t) / b in place of l_t, held by little noise to a narrow strip; elsewhere l_t / 0.15.
    In l itself the strip is a funnel, in which the ground truth of inference-gym (a run of Stan, centred) missed by up
    to 18 of its errors what integrals over a and b say, which are the truth here.
    """

    name, step, dimension, unseen = "brownian motion", 0.25, 32, slice(10, 20)

    def __init__(self) -> None:
        self.labels = ["a", "b", *(f"l[{t}]" for t in range(30))]
        self.y = torch.from_numpy(numbers()["brownian_motion/y"]).double()
        self.seen = torch.ones(30, dtype=torch.bool)
        self.seen[self.unseen] = False
        self.constants = in_dtype(torch.where(self.seen, self.y, 0.0))

    def _places(self, x: Tensor) -> Tensor:
        (y,) = self.constants(x)
        scale = torch.where(self.seen, x[..., 1:2].exp(), 0.15)
        return y + scale * x[..., 2:]

    def parameters(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :2].exp(), self._places(x)], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        log_a, log_b, places = x[..., 0], x[..., 1], self._places(x)
        moves = places[..., 0].square() + places.diff(dim=-1).square().sum(-1)
        noise = torch.where(self.seen, x[..., 2:], 0.0).square().sum(-1)
        prior = -(log_a.square() + log_b.square()) / 8
        return prior - 30 * log_a - 0.5 * (-2 * log_a).exp() * moves - 0.5 * noise

    @property
    def truths(self) -> dict[str, Truth]:
        return {"quadrature": stored("brownian_motion_exact")}


class ItemResponse(Posterior):
    """400 students answer 30,012 of 400 x 100 questions [item response theory with one parameter].

    The mean ability 0.75 + x_0, abilities a_i, difficulties d_j: all x ~ N(0, I); the log-odds of a right answer are
    mean + a_i - d_j.
    """

    name, step, dimension, students, questions = "item response", 0.1, 501, 400, 100

    def __init__(self) -> None:
        self.labels = ["mean", *(f"a[{i}]" for i in range(self.students)), *(f"d[{j}]" for j in range(self.questions))]
        size = self.students * self.questions
        bits = (numbers()[f"item_response/{name}"] for name in ("asked", "right"))
        asked, right = (torch.from_numpy(np.unpackbits(b, count=size).astype(np.float64)) for b in bits)
        self.asked, self.right = asked, right.view(self.students, self.questions)
        counts = torch.cat([self.right.sum()[None], self.right.sum(1), -self.right.sum(0)])  # y . log-odds, by element
        self.constants = in_dtype(asked, counts)

    def parameters(self, x: Tensor) -> Tensor:
        return torch.cat([0.75 + x[..., :1], x[..., 1:]], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        asked, counts = self.constants(x)
        ability = 0.75 + x[..., :1] + x[..., 1 : 1 + self.students]
        odds = ability[..., :, None] - x[..., None, 1 + self.students :]
        return -0.5 * x.square().sum(-1) + x @ counts - F.softplus(odds).flatten(-2) @ asked

    @property
    def truths(self) -> dict[str, Truth]:
        return {"inference-gym": stored("item_response")}


class Banana(Posterior):
    """x_0 ~ N(0, 10^2), x_1 ~ N(0.03 (x_0^2 - 100), 1) [Haario 1999]."""

    name, step, dimension = "banana", 0.3, 2

    def __init__(self) -> None:
        self.labels = ["x[0]", "x[1]"]

    def log_prob(self, x: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        return -0.5 * ((first / 10).square() + (second - 0.03 * (first.square() - 100)).square())

    @property
    def truths(self) -> dict[str, Truth]:
        return {"closed form": exactly([0.0, 0.0], [10.0, math.sqrt(1 + 2 * (0.03 * 100) ** 2)])}


class IllConditioned(Posterior):
    """N(0, Q diag(v) Q^T) in 100 dimensions, Q a rotation, v from 10^-2 to 10^2: the condition number is 10^4."""

    name, step, dimension = "ill-conditioned gaussian", 0.1, 100

    def __init__(self) -> None:
        self.labels = [f"x[{i}]" for i in range(self.dimension)]
        q, r = np.linalg.qr(np.random.RandomState(10).standard_normal((self.dimension, self.dimension)))
        q = torch.from_numpy(q * np.sign(np.diag(r)))
        self.variances = torch.logspace(-2, 2, self.dimension, dtype=torch.float64)
        self.covariance = (q * self.variances) @ q.T
        self.constants = in_dtype(q / self.variances.sqrt())

    def log_prob(self, x: Tensor) -> Tensor:
        (half,) = self.constants(x)
        return -0.5 * (x @ half).square().sum(-1)

    @property
    def truths(self) -> dict[str, Truth]:
        return {"closed form": exactly(torch.zeros(self.dimension), self.covariance.diagonal().sqrt())}


class Funnel(Posterior):
    """x_0 ~ N(0, 3^2), x_i ~ N(0, exp(x_0)), i = 1 ... 9 [Neal 2003]. The parameters are x_0 and x_i exp(-x_0 / 2).

    The standard deviation of x_i itself, exp(9 / 4), is no measure: of draws of x_i^2 a variance exists, but the
    kurtosis is 3 exp(9), and the mean of any number of draws that is affordable lies below the truth most often.
    """

    name, step, dimension = "funnel", 0.1, 10

    def __init__(self) -> None:
        self.labels = ["x[0]", *(f"z[{i}]" for i in range(1, 10))]

    def parameters(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x[..., 1:] * (-x[..., :1] / 2).exp()], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        first = x[..., 0]
        return -0.5 * ((first / 3).square() + (-first).exp() * x[..., 1:].square().sum(-1)) - 4.5 * first

    @property
    def truths(self) -> dict[str, Truth]:
        return {"closed form": exactly(torch.zeros(10), [3.0] + 9 * [1.0])}


class Logistic(Posterior):
    """Malignant or benign, by 30 features of 569 tumours (scaled to mean 0 and variance 1) and a constant: w ~ N(0, I).

    The data are scikit-learn's `load_breast_cancer`. Raises ImportError without scikit-learn.
    """

    name, step, dimension = "logistic regression", 0.15, 31

    def __init__(self) -> None:
        from sklearn.datasets import load_breast_cancer

        features, labels = load_breast_cancer(return_X_y=True)
        features = (features - features.mean(0)) / features.std(0)
        self.labels = [*(f"w[{i}]" for i in range(30)), "constant"]
        self.features = torch.from_numpy(np.append(features, np.ones((len(features), 1)), 1))
        self.classes = torch.from_numpy(labels).double()
        self.constants = in_dtype(self.features.T.contiguous(), self.features.T @ self.classes)

    def log_prob(self, x: Tensor) -> Tensor:
        features, sums = self.constants(x)
        return -0.5 * x.square().sum(-1) + x @ sums - F.softplus(x @ features).sum(-1)

    @property
    def truths(self) -> dict[str, Truth]:
        return {"long float64 run": stored("logistic")}


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    kind.name: kind for kind in (EightSchools, BrownianMotion, ItemResponse, Banana, IllConditioned, Funnel, Logistic)
}


def exactly(mean: Any, sd: Any) -> Truth:
    """A truth without errors."""
    mean, sd = (np.asarray(value, dtype=np.float64) for value in (mean, sd))
    return Truth(mean, np.zeros_like(mean), sd, np.zeros_like(sd))


def stored(name: str) -> Truth:
    """The truth kept under this name."""
    return Truth(*(numbers()[f"{name}/{field}"].astype(np.float64) for field in Truth._fields))


@cache
def numbers() -> dict[str, np.ndarray]:
    """The arrays of posteriors.npz."""
    with np.load(NUMBERS) as archive:
        return dict(archive)


def in_dtype(*tensors: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function that gives float64 ``tensors`` in the dtype of x, made once for each."""
    kept: dict[torch.dtype, tuple[Tensor, ...]] = {}

    def like(x: Tensor) -> tuple[Tensor, ...]:
        if x.dtype not in kept:
            kept[x.dtype] = tuple(tensor.to(x.dtype) for tensor in tensors)
        return kept[x.dtype]

    return like
