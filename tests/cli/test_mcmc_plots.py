"""Pictures of `ulam mcmc`: what they show, read back from matplotlib, their files; exact marginals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from ulam import mcmc
from ulam.cli.main import main
from ulam.mcmc.marginals import marginal

pytest.importorskip("matplotlib", reason="plots are matplotlib's")

from ulam.cli import mcmc_plots as plots

SHORT = ["mcmc", "--target", "gaussian", "--chains", "4", "--steps", "60", "--no-verdict"]
DENSITIES = {
    "gaussian": (mcmc.Gaussian([1.0, -1.0, 0.5], [[1.0, 0.6, 0.1], [0.6, 2.0, 0.3], [0.1, 0.3, 0.7]]), (1, 2)),
    "diagonal": (mcmc.Gaussian([1.0, -1.0], [1.0, 4.0]), (1,)),
    "mixture": (mcmc.GaussianMixture([[-2.0, 0.0, 1.0], [2.0, 1.0, 0.0]], [0.5, 0.8], [0.3, 0.7]), (2, 0)),
    "double-well": (mcmc.DoubleWell(3), (2,)),
    "rosenbrock x": (mcmc.Rosenbrock(4), (2,)),
    "rosenbrock y": (mcmc.Rosenbrock(2), (1,)),
    "rosenbrock pair": (mcmc.Rosenbrock(4, 0.5, 0.5), (3, 2)),
    "funnel neck": (mcmc.Funnel(4, 1.5), (0,)),
    "funnel pair": (mcmc.Funnel(4, 1.5), (2, 0)),
    "funnel mouth": (mcmc.Funnel(4, 1.5), (3,)),
    "funnel across": (mcmc.Funnel(4, 1.0), (1, 3)),
    "ring whole": (mcmc.Ring(2), (0, 1)),
    "ring on a line": (mcmc.Ring(2), (1,)),
    "shell on a plane": (mcmc.Ring(3), (2, 0)),
    "shell on a line": (mcmc.Ring(5), (3,)),
    "shell of many": (mcmc.Ring(40, 6.0, 0.8), (3, 7)),
}


@pytest.mark.parametrize("case", DENSITIES)
def test_exact_marginals_are_those_of_exact_draws(case):
    """The share of 100,000 exact draws in each of some boxes, against the integral over the box."""
    density, elements = DENSITIES[case]
    draws, law = density.sample(100_000, seed=3)[:, list(elements)], marginal(density, elements)
    ends = [
        torch.quantile(column, torch.tensor([0.02, 0.2, 0.5, 0.7, 0.97], dtype=torch.float64)) for column in draws.T
    ]
    nodes, weights = np.polynomial.legendre.leggauss(60 if len(elements) == 1 else 28)
    weights = np.ravel(weights if len(elements) == 1 else np.outer(weights, weights)) / 2 ** len(elements)
    for box in np.ndindex(*(len(end) - 1 for end in ends)):
        sides = [(end[i], end[i + 1]) for end, i in zip(ends, box, strict=True)]
        inside = torch.stack([(x > lo) & (x < hi) for x, (lo, hi) in zip(draws.T, sides, strict=True)]).all(0)
        share = float(inside.double().mean())
        at = [lo + (hi - lo) * torch.from_numpy(nodes + 1) / 2 for lo, hi in sides]
        volume = float(np.prod([float(hi - lo) for lo, hi in sides]))
        exact = float(law(torch.cartesian_prod(*at).view(-1, len(sides))).exp() @ torch.from_numpy(weights)) * volume
        assert abs(share - exact) < 4 * (exact / len(draws)) ** 0.5 + 2e-4 * exact, (box, share, exact)


def test_marginals_of_single_elements_integrate_a_pair_out():
    density = mcmc.Rosenbrock(2)
    x = torch.linspace(-25, 27, 40_001, dtype=torch.float64)
    for y in (-0.3, 0.0, 2.0, 30.0):
        pair = density.log_prob(torch.stack([x, torch.full_like(x, y)], 1)).exp()
        alone = marginal(density, (1,))(torch.tensor([[y]], dtype=torch.float64)).exp()
        assert float(alone) == pytest.approx(float(torch.trapezoid(pair, x)), rel=1e-6)


def test_ranks_of_equal_values_are_their_mean():
    values = np.array([[3.0, 1.0, 1.0], [2.0, 1.0, 5.0]])
    assert plots._ranks(values).tolist() == [[5, 2, 2], [4, 2, 6]]


@pytest.fixture(scope="module")
def ran():
    """Half a run of a mixture: chains 10 to 21 of which half never see the second mode."""
    density = mcmc.GaussianMixture([[-3.0, 0.0], [3.0, 1.0]], 0.5)
    start = torch.tensor([[-3.0, 0.0]]).repeat(12, 1)
    return density, mcmc.run(
        density,
        mcmc.MALA(0.05),
        chains=range(10, 22),
        x_init=start,
        seed=1,
        warmup=8,
        steps=400,
        thin=2,
        progress=False,
    )


def test_a_trace_shows_draws_at_their_steps(ran):
    _, chains = ran
    figure = plots.trace(chains)
    assert "8 of 12 chains; 200 draws each" in figure.get_suptitle()
    axis, second = figure.axes
    assert axis.get_ylabel() == "x[0]" and second.get_ylabel() == "x[1]"
    assert second.get_xlabel() == "step after the warm-up"
    assert [line.get_label() for line in axis.lines] == [f"chain {i}" for i in range(10, 18)]
    np.testing.assert_array_equal(second.lines[3].get_ydata(), chains.draws[3, :, 1].double())
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), 2 * np.arange(1, 201))


def test_a_trace_of_one_draw_is_a_point():
    chains = mcmc.run(mcmc.Gaussian([0.0]), mcmc.MALA(0.1), chains=2, steps=1, progress=False)
    (axis,) = plots.trace(chains).axes
    assert [line.get_marker() for line in axis.lines] == [".", "."]
    assert axis.get_xlim()[0] < 1 < axis.get_xlim()[1]


def test_rank_bars_count_ranks_among_all_chains(ran):
    """Against counts of how many draws lie below each; bars end at four times the expected height."""
    _, chains = ran
    figure = plots.rank(chains)
    bars = figure.axes[0].containers
    assert len(bars) == 8 and [len(of_chain) for of_chain in bars] == [20] * 8
    pooled = np.sort(chains.draws[:, :, 0].double().numpy().ravel())
    for row, of_chain in enumerate(bars):
        values = chains.draws[row, :, 0].double().numpy()
        middle = (np.searchsorted(pooled, values, "left") + np.searchsorted(pooled, values, "right") + 1) / 2
        counts = np.array([((middle > 0.5 + 120 * b) & (middle <= 0.5 + 120 * (b + 1))).sum() for b in range(20)])
        heights = np.array([bar.get_height() for bar in of_chain])
        dashed = figure.axes[0].lines[row].get_ydata()[0] - row  # the height of 10 of 200 draws
        np.testing.assert_allclose(heights / dashed * 10, counts.clip(max=40), atol=1.01)
        assert of_chain[0].get_y() == row
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [str(i) for i in range(10, 18)]


def test_exact_marginals_reach_where_no_chain_was(ran):
    density, chains = ran
    figure = plots.marginal(chains, density)
    axis = figure.axes[0]
    (stairs,), (curve,) = axis.patches, axis.lines
    heights, edges, _ = stairs.get_data()
    assert edges[-1] < 0 < 4 < curve.get_xdata()[-1]  # the draws end in one mode, the curve has both
    assert (heights * np.diff(edges)).sum() == pytest.approx(0.99, abs=0.003)
    x, p = curve.get_data()
    assert np.trapezoid(p, x) == pytest.approx(0.99, abs=2e-3)
    expected = 0.5 * sum(np.exp(-((x - m) ** 2) / 0.5) / np.sqrt(0.5 * np.pi) for m in (-3, 3))
    np.testing.assert_allclose(p, expected, rtol=1e-6)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"draws", "exact"}
    assert axis.get_xlabel() == "x[0]" and axis.get_ylabel() == "density"


def test_contours_hold_the_masses_they_say(ran):
    """Exact draws of another seed inside of each, by matplotlib's own paths."""
    density, chains = ran
    figure = plots.plane(chains, density)
    axis = figure.axes[0]
    (contours,) = [found for found in axis.collections if len(found.get_paths()) == 3]
    draws = density.sample(20_000, seed=9).numpy()
    for path, mass in zip(contours.get_paths(), (0.99, 0.9, 0.5), strict=True):
        inside = np.zeros(len(draws), dtype=bool)
        for part in path.to_polygons():
            inside |= type(path)(part).contains_points(draws)
        assert inside.mean() == pytest.approx(mass, abs=0.01)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["draws", "exact, 50% inside", "exact, 90% inside", "exact, 99% inside"]
    assert axis.get_xlim()[1] > 3 and (axis.get_xlabel(), axis.get_ylabel()) == ("x[0]", "x[1]")


def test_a_picture_says_which_elements_it_shows():
    chains = mcmc.run(
        mcmc.Energy(lambda x: x.square().flatten(1).sum(1)), mcmc.MALA(0.1), shape=(6, 5), steps=20, progress=False
    )
    for plot in (plots.trace, plots.rank, plots.marginal):
        figure = plot(chains)
        assert "10 evenly spaced ones of 30 elements" in figure.get_suptitle()
        assert len(figure.axes) == 10
    labels = [axis.get_ylabel() for axis in plots.trace(chains).axes]
    assert labels[0] == "x[0, 0]" and labels[-1] == "x[5, 4]" and len({*labels}) == 10
    assert "the first two of 30 elements" in plots.plane(chains).get_suptitle()


def test_chains_that_left_the_finite_numbers_are_left_out_and_counted():
    start = torch.tensor([[0.0], [0.1], [50.0]])
    with pytest.warns(RuntimeWarning, match="left the finite numbers"):
        chains = mcmc.run(mcmc.DoubleWell(1), mcmc.ULA(0.1), chains=3, x_init=start, seed=0, steps=50, progress=False)
    figure = plots.trace(chains)
    assert "1 chains that left the finite numbers left out" in figure.get_suptitle()
    assert len(figure.axes[0].lines) == 2 and figure.axes[0].get_ylabel() == "x[0]"


@pytest.mark.parametrize("name", ["plane.pdf", "rank.png"])
def test_the_ending_says_the_format(name, tmp_path, capsys):
    assert main([*SHORT, "--dimension", "3", "--out", str(tmp_path / "a"), "--plots", f"{name},trace.pdf"]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        ["draws.npz", "report.json", "trace.pdf", name]
    )
    data = (tmp_path / "a" / name).read_bytes()
    assert data.startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG")
    assert name.endswith("png") or not re.search(rb"/CreationDate|/Type3", data)
    assert f"{name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plots", "trace.svg"], "plots: got 'trace.svg', expected names among trace, rank, marginal, plane"),
        (["--plots", "histogram.png"], "plots: got 'histogram.png', expected names among"),
        (["--plots", "rank.png,rank.png"], "plots: got 'rank.png', expected names among"),
        (["--plots", "rank"], "plots: got 'rank', expected"),
        (["--plots", "rank.png", "--no-plots"], "plots: got some beside --no-plots, expected one of the two"),
        (
            ["--plots", "plane.pdf", "--dimension", "1"],
            "plots: got 'plane.pdf', expected states of at least 2 elements",
        ),
    ],
)
def test_other_names_are_one_line(words, message, tmp_path, capsys):
    assert main(["mcmc", "--target", "double-well", *words, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


def test_one_element_has_no_plane(tmp_path):
    assert main([*SHORT, "--dimension", "1", "--out", str(tmp_path / "a")]) == 0
    found = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert found == ["draws.npz", "marginal.png", "rank.png", "report.json", "trace.png"]
