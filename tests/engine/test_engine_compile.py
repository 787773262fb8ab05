"""What is public in ulam inside of torch.compile: the eager bits, or with fullgraph=True the reason why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_leaves

import ulam
from ulam import bounds, ebm, mcmc, objectives, sure, tweedie, vae
from ulam.estimation import measure as check
from ulam.estimation.likelihood import likelihood
from ulam.samplers import DDIM, DDPM, DPMSolverPP, DynamicThreshold, RePaint
from ulam_kernels.outside import REASON

SCHEDULE = ulam.schedules.vp_linear(1000)
B, N = 2, 4


class Net(torch.nn.Module):
    """In training mode, which sampling leaves and comes back to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(N, N)
        torch.nn.init.eye_(self.linear.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        m = torch.tanh(self.linear(x)) + t[:, None] / 10000
        return m if y is None else m + 0.1 * y[:, None]


NET = Net()
DENOISER = ulam.Denoiser(NET, SCHEDULE)
X = torch.randn(B, N, generator=torch.Generator().manual_seed(0))
LABELS, NULLS = {"y": torch.ones(B)}, {"y": torch.zeros(B)}
GAUSSIAN = mcmc.Gaussian(torch.zeros(N), torch.ones(N))
STEP, TEMPERED = mcmc.ULA(step=0.1), mcmc.ParallelTempering(mcmc.MALA(0.1), (1.0, 2.0))
HMC = mcmc.HMC(0.1, 2)
VAE = vae.GaussianVAE(lambda z: z * 0.5, (N,), lambda x: torch.cat([x, x * 0.1], 1))
Call = Callable[[torch.Tensor], Any]


def sampled(x: torch.Tensor, **options: Any) -> torch.Tensor:
    """With operations before and after, which graphs are made of."""
    return ulam.sample(DENOISER, DDPM(3), (N,), B, 1, x_init=x * 2, progress=False, **options) + 1


def sampled_in_a_loop(x: torch.Tensor) -> torch.Tensor:
    for seed in range(2):
        x = ulam.sample(DENOISER, DDIM(2), (N,), B, seed, x_init=x, progress=False)
    return x


def run_of_jobs(x: torch.Tensor) -> list[torch.Tensor]:
    """Registers, reductions, guidance, known images, a finish and a job that is cancelled."""
    with ulam.Engine(DENOISER, (N,), 3) as engine:
        jobs = [
            engine.submit(DPMSolverPP(3, clip=DynamicThreshold(0.9)), B, 1, LABELS, x_init=x),
            engine.submit(DDIM(2), B, 2, LABELS, 2.0, NULLS, x_init=x, finish=lambda y: y + 1),
            engine.submit(RePaint(2), B, 3, LABELS, x_init=x, known=x, mask=torch.ones(N) * 0.5),
        ]
        last = engine.submit(DDIM(2), B, 4, LABELS, x_init=x)
        if engine.predicted_end(last) is None or engine.cancel(last) != B:
            return []
        results = engine.run()
        return [results[job] * 2 for job in jobs] + [torch.tensor(engine.drop_waiting())]


def streamed(x: torch.Tensor) -> list[torch.Tensor]:
    engine = ulam.Engine(DENOISER, (N,), 2)
    engine.submit(DDPM(3), B, 1, x_init=x * 2)
    results = [result.x for result in engine.stream()]
    return [torch.stack(results) + 1, *(left.x for left in engine.close(drain=True))]


def in_groups(x: torch.Tensor) -> list[torch.Tensor]:
    with ulam.Engine(DENOISER, (N,), 2) as engine:
        engine.submit(DDPM(3), B, 1, x_init=x * 2)
        return [group.states + 1 for group in engine.finished()]


def chains_of(x: torch.Tensor, target: Any, sampler: Any = STEP, **options: Any) -> list[torch.Tensor]:
    made = mcmc.run(target, sampler, x_init=x * 2, chains=B, seed=1, steps=3, progress=False, **options)
    return [made.draws * 2, made.x]


def resumed(x: torch.Tensor) -> torch.Tensor:
    first = mcmc.run(GAUSSIAN, STEP, x_init=x, chains=B, seed=1, steps=3, progress=False)
    return mcmc.run(GAUSSIAN, STEP, resume=first, steps=2, progress=False).x


def persistent(x: torch.Tensor) -> torch.Tensor:
    chains = ebm.PersistentChains(4, (N,), STEP)
    return chains.sample(lambda y: (y * x[:1]).sum(1), batch=2, steps=2) + chains.sample(bowl, batch=2, steps=1)


def bowl(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1) / 2


def cubic(x: torch.Tensor) -> torch.Tensor:
    return -(x**3)


def second_order(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return objectives.second_order_score_matching(
        lambda y, _: y.cos(), lambda y, _: cubic(y), x, sigma, form="diagonal", reduced=True, step=1
    )


class Entry(NamedTuple):
    call: Call
    outside: bool = True  # of graphs; else in them as far as torch goes


ENTRIES = {
    "sample": Entry(sampled),
    "sample, guided": Entry(lambda x: sampled(x, cond=LABELS, uncond=NULLS, guidance=2.0, guidance_rescale=0.5)),
    "sample, noise": Entry(lambda x: sampled(x, noise=lambda row, chains: torch.ones(len(chains), N))),
    "sample in a loop": Entry(sampled_in_a_loop),
    "run": Entry(run_of_jobs),
    "stream": Entry(streamed),
    "finished": Entry(in_groups),
    "mcmc": Entry(lambda x: chains_of(x, GAUSSIAN)),
    "mcmc, energy": Entry(lambda x: chains_of(x, mcmc.Energy(bowl), HMC, warmup=2, adapt=0.8)),
    "mcmc, score": Entry(lambda x: chains_of(x, mcmc.Score(lambda y: -y), thin=2)),
    "mcmc, denoiser": Entry(lambda x: chains_of(x, mcmc.DenoiserScore(DENOISER, 1.0))),
    "mcmc, tempering": Entry(lambda x: chains_of(x, GAUSSIAN, TEMPERED)),
    "mcmc, resumed": Entry(resumed),
    "PersistentChains": Entry(persistent),
    "likelihood": Entry(lambda x: likelihood(DENOISER, x, steps=2).per_chain),
    "vlb": Entry(lambda x: bounds.vlb(DENOISER, x.clamp(-1, 1), timesteps=(0, 5)).per_chain),
    "covariance_product": Entry(lambda x: tweedie.covariance_product(DENOISER, x, 1.0, x + 1)),
    "covariance_diagonal": Entry(lambda x: tweedie.covariance_diagonal(DENOISER, x, 1.0)),
    "covariance_trace": Entry(lambda x: tweedie.covariance_trace(DENOISER, x, 1.0, samples=6).value),
    "eigenpairs": Entry(lambda x: tweedie.eigenpairs(DENOISER, x, 1.0, 2)),
    "covariance": Entry(lambda x: tweedie.covariance(DENOISER, x, 1.0)),
    "cumulant": Entry(lambda x: tweedie.cumulant(DENOISER, x, 1.0, x + 1, order=4)),
    "natural": Entry(lambda x: tweedie.natural(lambda y: -bowl(y), x, log_base=lambda y: -2 * bowl(y), order=2)),
    "robbins": Entry(lambda x: tweedie.robbins(torch.tensor([3, 2, 1]), x.long().clamp(0, 2))),
    "third_cumulant": Entry(lambda x: tweedie.third_cumulant(DENOISER, x, 1.0, x + 1)),
    "sure": Entry(lambda x: sure.estimate(DENOISER, x, 1.0).per_chain),
    "measure": Entry(lambda x: [level.sure.value for level in check.measure(DENOISER, x.repeat(2, 1), [1.0, 2.0])]),
    "mean": Entry(lambda x: tweedie.mean(DENOISER, x, 1.0), outside=False),
    "vae": Entry(lambda x: VAE.sample(2, 1), outside=False),
    "elbo": Entry(lambda x: VAE.elbo(x).value, outside=False),
    "implicit": Entry(lambda x: objectives.implicit_score_matching(cubic, x), outside=False),
    "sliced": Entry(lambda x: objectives.sliced_score_matching(cubic, x, step=0), outside=False),
    "second order": Entry(lambda x: second_order(x, torch.ones(B)), outside=False),
    "contrastive": Entry(lambda x: objectives.contrastive_divergence(bowl, x, x + 1), outside=False),
    "normal": Entry(lambda x: ulam.noise.normal((N,), seed=1, chains=B) + x, outside=False),
    "denoising": Entry(lambda x: objectives.denoising(DENOISER, x, torch.tensor([3, 7]), step=1), outside=False),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():  # torch's own, of what it takes into graphs and what not
        warnings.filterwarnings("ignore", "Dynamo (detected|does not know)")
        yield
    torch._dynamo.reset()


def leaves(tree: Any) -> list[torch.Tensor]:
    return [torch.as_tensor(leaf).clone() for leaf in tree_leaves(tree) if not isinstance(leaf, str)]


@pytest.mark.long
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", ENTRIES)
def test_compiled_calls_give_the_eager_bits(name: str, dynamic: bool | None) -> None:
    """The first call, which is traced, the ones after it, and for another x."""
    call = ENTRIES[name].call
    compiled = torch.compile(call, backend="eager", dynamic=dynamic)
    for x in (X, X, X.flip(0) * 0.5):
        expected, ours = leaves(call(x)), leaves(compiled(x))
        assert expected and len(ours) == len(expected)
        assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))
    assert NET.training


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.outside])
def test_a_full_graph_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported) as raised:
        torch.compile(ENTRIES[name].call, backend="eager", fullgraph=True)(X)
    assert REASON in str(raised.value)
    assert leaves(ENTRIES[name].call(X)), "and leaves nothing behind"


@pytest.mark.parametrize("compiles", [False, True])
def test_warnings_are_of_the_callers_line(compiles: bool) -> None:
    failing = ulam.Denoiser(lambda x, t: x * torch.nan, SCHEDULE)
    flat = mcmc.Energy(lambda x: x.square().sum(1) + 1e9)

    def diverges(x: torch.Tensor) -> torch.Tensor:
        return ulam.sample(failing, DDIM(2), (N,), B, x_init=x, progress=False) * 1

    def repeats(x: torch.Tensor) -> torch.Tensor:
        return mcmc.run(GAUSSIAN, STEP, chains=B, x_init=x, steps=3, progress=False).x * 1

    def rounds(x: torch.Tensor) -> torch.Tensor:
        return mcmc.run(flat, mcmc.MALA(0.1), chains=B, seed=1, x_init=x, steps=3, progress=False).x * 1

    for call, said in ((diverges, "turned NaN"), (repeats, "noise begins anew"), (rounds, "target: energies")):
        run = torch.compile(call, backend="eager") if compiles else call
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(X)
        ours = [w for w in caught if "ynamo" not in str(w.message)]
        assert [w.filename for w in ours] == [__file__] and said in str(ours[0].message)
