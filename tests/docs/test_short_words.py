"""What a REPL shows of results, chains, denoisers and trajectories fits ten lines, and says what they are."""

from __future__ import annotations

import pytest
import torch

import ulam
from ulam import mcmc, rollouts, sure
from ulam.models import load_digits

LINES, WIDTH = 10, 130


def digits() -> ulam.Denoiser:
    return ulam.Denoiser(load_digits(), ulam.schedules.vp_linear(1000))


def objects() -> dict[str, object]:
    """Everything that calls return, by what its words must contain."""
    labels = torch.arange(4)
    denoiser, engine = digits(), ulam.Engine(digits(), (1, 28, 28), slots=4)
    previews: list[ulam.Preview] = []
    guided = {"cond": {"y": labels}, "uncond": {"y": labels * 0 + 10}, "guidance": 2.0}
    job = engine.submit(
        ulam.samplers.DDPM(steps=3, spacing="trailing"), 4, seed=0, x_init=torch.zeros(4, 1, 28, 28),
        callback=previews.append, **guided,
    )  # fmt: skip
    result = next(iter(engine.stream()))
    energy = ulam.Energy(lambda x: x.pow(2).sum(1))
    settings = {"chains": 64, "steps": 20, "shape": (9,), "progress": False}
    chains = mcmc.run(energy, ulam.samplers.MALA(step=0.1), warmup=5, **settings)
    sampler = ulam.samplers.DDPM(steps=3, spacing="trailing")
    trajectory = rollouts.sample(denoiser, sampler, (1, 28, 28), 4, cond={"y": labels})
    risk = sure.estimate(denoiser, torch.randn(4, 1, 28, 28), sigma=0.5, cond={"y": labels})
    return {
        "<DigitsUNet of 822,049 parameters>": denoiser,
        "x_init=float32 [4, 1, 28, 28]": job,
        "x=float32 [1, 28, 28]": result,
        "x0=float32 [4, 1, 28, 28]": previews[0],
        "draws=float32 [64, 20, 9]": chains,
        "x=float32 [64, 9]": chains.position,
        "4 chains of [1, 28, 28]": trajectory,
        "per_chain=float64 [4]": risk,
        "float32 [100, 3]": ulam.shared(torch.zeros(100, 3)),
        "backend='cpu'": engine.report,
    }


def test_every_result_is_short_and_says_its_shapes() -> None:
    for contains, value in objects().items():
        words = repr(value)
        lines = words.splitlines()
        assert len(lines) <= LINES and max(map(len, lines)) <= 4 * WIDTH, words
        assert contains in words, words
        assert "tensor(" not in words, words


def test_a_long_program_prints_its_beginning_and_its_end() -> None:
    schedule = ulam.schedules.vp_linear(1000)
    whole, long = (str(ulam.samplers.DDIM(steps).program(schedule)).splitlines() for steps in (40, 500))
    assert len(whole) == 40 + 3
    assert len(long) == 12 + 6 + 1 + 3 and long[-1].split()[0] == "499" and "482 more" in long[15]


def test_ulam_shows_its_public_names() -> None:
    assert {"Denoiser", "sample", "models", "samplers", "throughput"} <= {*dir(ulam)} == {*ulam.__all__}
    assert ulam.models.load_digits is load_digits


@pytest.mark.parametrize("module", ["gather", "index_select", "lookup", "embedding"])
def test_a_network_that_looks_up_its_time_is_told_of_time_index(module: str) -> None:
    """Whatever torch says of floats where it takes whole numbers."""
    table = torch.linspace(0, 1, 1000)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found = {
            "gather": lambda: table.gather(0, t),
            "index_select": lambda: table.index_select(0, t),
            "lookup": lambda: table[t],
            "embedding": lambda: torch.nn.functional.embedding(t, table[:, None])[:, 0],
        }[module]()
        return x * found[:, None]

    sampler = ulam.samplers.DDIM(3, spacing="trailing")
    right = r"expected time='index' \(--time index\), whole training steps"
    with pytest.raises(ulam.NetworkError, match=right) as said:
        ulam.sample(ulam.Denoiser(net, ulam.schedules.vp_linear(1000)), sampler, (4,), 2, progress=False)
    assert "while checking" not in str(said.value)  # cut in the middle of what torch remarks on its own inside
    told = ulam.Denoiser(net, ulam.schedules.vp_linear(1000), time="index")
    assert ulam.sample(told, sampler, (4,), 2, progress=False).isfinite().all()


def test_an_error_is_cut_between_words() -> None:
    said = str(ulam.NetworkError(IndexError("for index " + "word " * 60), {}, way_out="a network"))
    assert said.startswith("net: got an error (IndexError: for index word") and " word...), expected a n" in said


def test_a_network_without_time_is_told_how_it_is_called() -> None:
    denoiser = ulam.Denoiser(torch.nn.Linear(2, 2), ulam.schedules.vp_linear(1000))
    with pytest.raises(
        ulam.NetworkError, match=r"expected a network that takes \(x, t, \*\*cond\), such as lambda x, t"
    ):
        ulam.sample(denoiser, ulam.samplers.DDPM(3, spacing="trailing"), (2,), 2, progress=False)
