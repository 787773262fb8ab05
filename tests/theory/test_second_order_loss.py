"""Second-order denoising score matching on Gaussian data, where the Hessian of the noised density is a constant."""

from __future__ import annotations

import math

import pytest
import torch

from ulam import noise, objectives
from ulam.noise import TRAINING

PRECISION = torch.tensor([[1.3, 0.4, 0.0], [0.4, 0.9, -0.2], [0.0, -0.2, 0.6]], dtype=torch.float64)
LEVEL = 0.4
NOISED = torch.linalg.inv(torch.linalg.inv(PRECISION) + LEVEL**2 * torch.eye(3, dtype=torch.float64))
N, PARTS = 40_000, 40
WRONG = torch.tensor([[0.2, 0.1, -0.3], [0.0, -0.4, 0.2], [0.1, 0.0, 0.3]], dtype=torch.float64)


def data(n: int = N) -> torch.Tensor:
    root = torch.linalg.cholesky(torch.linalg.inv(PRECISION))
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ root.T


def score(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return -y @ NOISED


def second(form: str, W: torch.Tensor):
    """W for every y, in this form; as diag(a) + b b' with a small enough that it has a root."""

    def score2(y, sigma):
        if form == "low-rank":
            least = torch.linalg.eigvalsh(W)[0] - 0.1
            b = torch.linalg.cholesky(W - least * torch.eye(3, dtype=W.dtype))
            return least.expand(len(y), 3), b.expand(len(y), 3, 3)
        return (W if form == "full" else W.diagonal()).expand(len(y), *(W if form == "full" else W[0]).shape)

    return score2


def loss(form, x, W, s=score, step=0, **options):
    sigma = torch.full((len(x),), LEVEL, dtype=x.dtype)
    return objectives.second_order_score_matching(second(form, W), s, x, sigma, form=form, step=step, **options)


def entries(form: str, A: torch.Tensor) -> torch.Tensor:
    return A.diagonal(dim1=-2, dim2=-1) if form == "diagonal" else A.flatten(-2)


@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank"])
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1)])
def test_the_loss_is_its_formula_on_noise_v1(form, shape) -> None:
    x, sigma = data(5).view(5, *shape), torch.full((5,), LEVEL, dtype=torch.float64)
    W = -PRECISION + 0.1
    z = noise.normal((3,), seed=7, chains=[4, 9, 2, 0, 1], row=11, stage=TRAINING.stage).double()

    def psi(y):
        s = score(y, sigma)
        return LEVEL**2 * (W + s[:, :, None] * s[:, None])

    off = torch.eye(3) - z[:, :, None] * z[:, None]
    flat = x.flatten(1)
    plain = entries(form, psi(flat + LEVEL * z) + off).square().sum(1) / 2
    ahead, behind, here = (psi(flat + side * LEVEL * z) for side in (1, -1, 0))
    reduced = (entries(form, ahead).square() + entries(form, behind).square()).sum(1) / 4
    reduced = reduced + (entries(form, off) * entries(form, ahead + behind - 2 * here)).sum(1) / 2
    reduced = reduced + (3 if form == "diagonal" else 6)

    def shaped(y, sigma):
        return score(y.flatten(1), sigma).view(y.shape)

    def score2(y, sigma):
        found = second(form, W)(y, sigma)
        if form == "low-rank":
            return found[0].view(y.shape), found[1]
        return found.view(y.shape) if form == "diagonal" else found

    given = {"form": form, "seed": 7, "step": 11, "chains": torch.tensor([4, 9, 2, 0, 1])}
    for expected, how in ((plain, False), (reduced, True)):
        found = objectives.second_order_score_matching(score2, shaped, x, sigma, reduced=how, **given)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank"])
def test_a_wrong_hessian_costs_its_distance(form) -> None:
    """For the right score the excess over the right Hessian is sigma^4 |W + Q|^2 / 2 in mean; reduced has that mean."""
    x, W = data(), -NOISED + (WRONG + WRONG.T) / 2
    expected = LEVEL**4 * float(entries(form, W + NOISED).square().sum()) / 2
    plain, reduced = (loss(form, x, W, reduced=how) for how in (False, True))
    for how, own in ((False, plain), (True, reduced)):
        excess = own - loss(form, x, -NOISED, reduced=how)
        assert abs(float(excess.mean()) - expected) <= 4 * float(excess.std()) / math.sqrt(N)
    apart = plain - reduced
    assert abs(float(apart.mean())) <= 4 * float(apart.std()) / math.sqrt(N)
    assert reduced.var() < plain.var() / 2


@pytest.mark.parametrize("reduced", [False, True])
def test_the_gradient_is_0_at_the_hessian_and_only_there(reduced) -> None:
    for W, expected in ((-NOISED, 0 * NOISED), (-NOISED + WRONG, LEVEL**4 * WRONG)):
        found = []
        for k, part in enumerate(data().split(N // PARTS)):
            leaf = W.clone().requires_grad_()
            found.append(torch.autograd.grad(loss("full", part, leaf, step=k, reduced=reduced).mean(), leaf)[0])
        mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(PARTS)
        assert ((mean - expected).abs() <= 4.5 * error).all()


def test_the_best_covariance_is_the_posteriors() -> None:
    """sigma^2 (I + sigma^2 Hess) of the minimiser, which for a linear model is a least-squares fit."""
    x = data()
    sigma = torch.full((N,), LEVEL, dtype=x.dtype)
    W = torch.zeros(3, 3, dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([W], max_iter=20)

    def closure():
        optimiser.zero_grad()
        value = objectives.second_order_score_matching(
            lambda y, _: W.expand(len(y), 3, 3), score, x, sigma, step=0, reduced=True
        ).mean()
        value.backward()
        return value

    optimiser.step(closure)
    eye = torch.eye(3, dtype=x.dtype)
    posterior = torch.linalg.inv(PRECISION + eye / LEVEL**2)
    assert float((LEVEL**2 * (eye + LEVEL**2 * W.detach()) - posterior).abs().max()) < 0.02 * float(posterior.max())


def test_an_example_does_not_depend_on_its_batch_and_gradients_reach_both_networks() -> None:
    x = data(6).float()
    net, other = torch.nn.Linear(3, 9), torch.nn.Linear(3, 3)

    def own(x, chains):
        return objectives.second_order_score_matching(
            lambda y, _: net(y).view(-1, 3, 3), lambda y, _: other(y), x, torch.full((len(x),), 0.3), step=3,
            chains=chains,
        )  # fmt: skip

    together = own(x, range(6))
    torch.testing.assert_close(own(x[2:4], range(2, 4)), together[2:4])
    assert not torch.allclose(own(x[2:4], range(2)), together[2:4])
    together.sum().backward()
    assert net.weight.grad.any() and other.weight.grad.any()


WEIGHTS = {
    "w": torch.randn(9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    "s": torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
}


def of_weights(form: str, reduced: bool):
    def own(weights, x, sigma, chains, step=5):
        score2 = {
            "full": lambda y, _: (y @ weights["w"].T).view(-1, 3, 3),
            "diagonal": lambda y, _: y @ weights["w"][:3],
            "low-rank": lambda y, _: (y @ weights["w"][:3], (y @ weights["w"][:6].T).view(-1, 3, 2)),
        }[form]
        return objectives.second_order_score_matching(
            score2, lambda y, _: -y @ weights["s"], x, sigma, form=form, reduced=reduced, seed=1, step=step,
            chains=chains,
        )  # fmt: skip

    return own


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank"])
def test_the_loss_compiles_in_one_graph_and_goes_through_transforms(form, reduced) -> None:
    own, x, sigma, chains = of_weights(form, reduced), data(4), torch.full((4,), LEVEL).double(), torch.arange(3, 7)
    torch._dynamo.reset()
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
    for step in (5, 6, 7):
        torch.testing.assert_close(compiled(WEIGHTS, x, sigma, chains, step), own(WEIGHTS, x, sigma, chains, step))
    leaves = {name: weight.clone().requires_grad_() for name, weight in WEIGHTS.items()}
    per_example = [
        torch.autograd.grad(one, list(leaves.values()), retain_graph=True) for one in own(leaves, x, sigma, chains)
    ]

    def single(weights, x, sigma, chain):
        return own(weights, x[None], sigma[None], chain[None]).sum()

    found = torch.func.vmap(torch.func.grad(single), (None, 0, 0, 0))(WEIGHTS, x, sigma, chains)
    for name, expected in zip(leaves, zip(*per_example, strict=True), strict=True):
        torch.testing.assert_close(found[name], torch.stack(expected))


def test_the_loss_under_autocast_and_in_bfloat16_is_near_that_in_double() -> None:
    own, sigma = of_weights("low-rank", False), torch.full((64,), LEVEL).double()
    exact = own(WEIGHTS, data(64), sigma, None)
    small = {name: weight.float() for name, weight in WEIGHTS.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = own(small, data(64).float(), sigma.float(), None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0.1, atol=0.1 * float(exact.mean()))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"form": "dense"}, "form: got 'dense', expected one of full, diagonal, low-rank"),
        ({"score2": lambda y, _: y}, r"score2: got shape \[4, 3\], expected \[4, 3, 3\]: the n x n Hessian"),
        (
            {"form": "diagonal", "score2": lambda y, _: y[:, :, None] * y[:, None]},
            r"score2: got shape \[4, 3, 3\], expected \[4, 3\] like its input",
        ),
        ({"form": "low-rank", "score2": lambda y, _: y}, "score2: got a tensor .*, expected a pair"),
        (
            {"form": "low-rank", "score2": lambda y, _: (y, y)},
            r"score2: got factors of shape \[4, 3\], expected \[4, 3, 1\] or of any other rank",
        ),
        ({"score": lambda y, _: y[:1]}, r"score: got shape \[1, 3\], expected \[4, 3\] like its input"),
        ({"sigma": torch.ones(2)}, r"sigma: got shape \[2\], expected \[4\], one an example"),
        ({"sigma": -torch.ones(4)}, "sigma: got -1, expected finite levels of at least 0"),
        ({"sigma": torch.full((4,), torch.nan)}, "sigma: got nan, expected finite levels of at least 0"),
        ({"x": torch.ones(4)}, "x: got .*, expected a float tensor"),
        ({"chains": range(3)}, "chains: got 3 ids, expected 4"),
        ({"reduced": 1}, "reduced: got 1, expected True or False"),
        ({"step": -1}, "step: got -1, expected 0 to"),
    ],
)
def test_bad_input_is_named(given, named: str) -> None:
    valid = {
        "score2": lambda y, _: y[:, :, None] * y[:, None], "score": lambda y, _: -y, "x": torch.ones(4, 3),
        "sigma": torch.ones(4), "step": 0,
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=f"^{named}"):
        objectives.second_order_score_matching(**(valid | given))


def test_a_forgotten_step_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="step"):
        objectives.second_order_score_matching(second("full", NOISED), score, data(2), torch.ones(2))
