"""The pictures of errors on docs/samplers.md show what samplers do now, and are measured rightly."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ulam import samplers
from ulam.cli.samplers_page import FIGURES

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = (6, 18)  # of the evaluations in the pictures


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("samplers_figures", DOCS / "samplers_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("section", FIGURES)
def test_a_picture_shows_every_sampler_of_its_section_as_it_is_now(figures: ModuleType, section: str) -> None:
    """Measured again at two numbers of evaluations; after a change: `python docs/samplers_figures.py`."""
    text = (DOCS / FIGURES[section]).read_text()
    shown = {
        name: dict(re.findall(r"(\d+):(\S+)", points)) for name, points in re.findall(r"<title>(\w+) (.*)</t", text)
    }
    classes = {name: cls for name, cls in samplers.catalogue().items() if cls.section == section}
    assert list(shown) == list(classes) and len(text) < 60_000
    for name, cls in classes.items():
        now = figures.curve(cls, AGAIN)
        assert now.evaluations
        for evaluations, error in zip(now.evaluations, now.errors, strict=True):
            assert float(shown[name][str(evaluations)]) == pytest.approx(error, rel=2e-3), name


def test_the_network_and_the_map_are_exact(figures: ModuleType) -> None:
    """D = x + sigma^2 d log p / dx [Tweedie], p and its quantiles by the normal density; the ODE keeps quantiles."""
    u = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    for sigma in (0.1, 1.0, 20.0):
        x = figures.quantiles(u, sigma)
        std = (figures.STDS**2 + sigma**2).sqrt()

        def log_density(y: torch.Tensor, std: torch.Tensor = std) -> torch.Tensor:
            normal = torch.exp(-((y[:, None] - figures.MEANS) ** 2) / (2 * std**2)) / std
            return (figures.WEIGHTS * normal).sum(-1).log()

        h = 1e-5 * sigma
        slope = (log_density(x + h) - log_density(x - h)) / (2 * h)
        D = figures.ideal(x[None], torch.tensor([sigma]))[0]
        np.testing.assert_allclose(D, x + sigma**2 * slope, atol=1e-5)
        mass = torch.distributions.Normal(figures.MEANS, std).cdf(x[:, None])
        np.testing.assert_allclose((figures.WEIGHTS * mass).sum(-1), u, rtol=1e-12)


def test_errors_are_those_of_the_formulas_and_fall_with_the_order(figures: ModuleType) -> None:
    """Euler's and Heun's method by hand [Karras 2022, algorithm 1], on levels by the caption's formula, to the data."""
    found = {}
    for name in ("Euler", "Heun"):
        curve = figures.curve(getattr(samplers, name), (36, 72, 144))
        assert not curve.noisy
        for evaluations, error in zip(curve.evaluations, curve.errors, strict=True):
            n = evaluations if name == "Euler" else (evaluations + 1) // 2
            ends = figures.LARGEST ** (1 / 7), figures.SMALLEST ** (1 / 7)
            levels = [*(torch.linspace(*ends, n, dtype=torch.float64) ** 7).tolist(), 0.0]
            x = figures.middles(figures.POINTS, figures.LARGEST)
            for sigma, lower in itertools.pairwise(levels):
                slope = (x - D(figures, x, sigma)) / sigma
                ahead = x + (lower - sigma) * slope
                if name == "Heun" and lower > 0:
                    ahead = x + (lower - sigma) * (slope + (ahead - D(figures, ahead, lower)) / lower) / 2
                x = ahead
            by_hand = (x - figures.middles(figures.POINTS, 0.0)).square().mean().sqrt()
            assert error == pytest.approx(float(by_hand), rel=1e-9), (name, evaluations)
        found[name] = curve.errors
    euler, heun = found["Euler"], found["Heun"]
    assert 1.9 < euler[1] / euler[2] < 2.1 and 3.6 < heun[1] / heun[2] < 4.6 and heun[2] < euler[2] / 5


def test_draws_from_the_data_have_the_error_of_the_dotted_line(figures: ModuleType) -> None:
    """In the mean of 20; and a first-order sampler's excess over it falls with its steps."""
    generator = np.random.default_rng(0)
    exact = figures.middles(figures.DRAWS, 0.0).numpy()
    errors = []
    for _ in range(20):
        of = generator.choice(3, figures.DRAWS, p=figures.WEIGHTS.numpy())
        x = figures.MEANS.numpy()[of] + figures.STDS.numpy()[of] * generator.standard_normal(figures.DRAWS)
        errors.append(np.abs(np.sort(x) - exact).mean())
    assert np.mean(errors) == pytest.approx(figures.floor(), abs=5 * np.std(errors) / 20**0.5)
    noisy = figures.curve(samplers.EulerAncestral, (20, 80))
    assert noisy.noisy and noisy.errors[0] / noisy.errors[1] > 2 and noisy.errors[1] > figures.floor()


def D(figures: ModuleType, x: torch.Tensor, sigma: float) -> torch.Tensor:
    return figures.ideal(x[None], torch.tensor([sigma], dtype=torch.float64))[0]


def test_names_beside_a_picture_do_not_overlap(figures: ModuleType) -> None:
    assert figures.apart([10.0, 11.0, 50.0], 16, 100) == [10.0, 26.0, 50.0]
    assert figures.apart([10.0, 95.0, 99.0], 16, 100) == [10.0, 84.0, 100]
    for name in FIGURES.values():
        heights = [float(y) for y in re.findall(r'y="([\d.]+)" fill="#[^5]', (DOCS / name).read_text())]
        assert len(heights) >= 2 and np.diff(sorted(heights)).min() > 15
