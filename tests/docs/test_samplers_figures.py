"""The pictures of errors on docs/samplers.md show what samplers do now, and are measured rightly."""

from __future__ import annotations

import importlib.util
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


def test_errors_fall_with_the_order_and_exact_draws_have_none(figures: ModuleType) -> None:
    euler, heun = (figures.curve(getattr(samplers, name), (36, 72)).errors for name in ("Euler", "Heun"))
    assert 1.6 < euler[0] / euler[1] < 2.4 and heun[0] / heun[1] > 3 and heun[1] < euler[1] / 5
    noisy = figures.curve(samplers.EulerAncestral, (20, 80))
    assert noisy.noisy and noisy.errors[0] / noisy.errors[1] > 2
