"""Write posteriors.npz, the data and truths of `bench.posteriors`: `python -m bench.posterior_numbers INFERENCE_GYM`.

INFERENCE_GYM: the folder of that name in the package from PyPI (Apache-2.0, the TensorFlow Probability authors), e.g.
of `pip install --no-deps --target DIR inference-gym`. Its files of data and ground truths are read by path, as the
package itself needs TensorFlow Probability. The truth of the logistic regression is that of a run,
`python -m bench.ground_truths --truth`, which writes it into the same file.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench.posteriors import NUMBERS, EightSchools, Truth, numbers

Array = npt.NDArray[np.float64]


def eight_schools(points: int = 4001) -> Truth:
    """Exact moments: given tau all is Gaussian, and log tau ~ N(5, 1) is integrated on a grid."""
    y, s = (tensor.numpy() for tensor in (EightSchools.y, EightSchools.s))
    log_tau = np.linspace(-7, 13, points)
    tau2 = np.exp(2 * log_tau)[:, None]
    v = tau2 + s**2
    precision = 1 / 100 + (1 / v).sum(1)
    mu = (y / v).sum(1) / precision
    fit = np.log(v).sum(1) + np.log(precision) + (y**2 / v).sum(1) - precision * mu**2
    weight = normalised(-0.5 * (fit + (log_tau - 5) ** 2))
    theta = (y * tau2 + mu[:, None] * s**2) / v
    spread = tau2 * s**2 / v + (s**2 / v) ** 2 / precision[:, None]
    means = np.column_stack([mu, log_tau, theta])
    variances = np.column_stack([1 / precision, np.zeros(points), spread])
    return moments(weight, means, variances)


def brownian_motion(y: Array, seen: npt.NDArray[np.bool_], points: int = 161) -> Truth:
    """Exact moments: given both scales all is Gaussian, and these are integrated on a grid of their logarithms."""
    log_a, log_b = (grid.ravel() for grid in np.meshgrid(np.linspace(-7, 3, points), np.linspace(-13, 3, points)))
    a2, b2 = np.exp(2 * log_a)[:, None], np.exp(2 * log_b)[:, None]
    t = np.arange(1.0, len(y) + 1)
    walk = np.minimum(t, t[:, None])  # the covariance of the places, for a = 1
    values, vectors = np.linalg.eigh(walk[np.ix_(seen, seen)])
    v = a2 * values + b2  # the variances of what is seen, in these directions
    along, across = vectors.T @ y[seen], walk[:, seen] @ vectors
    fit = np.log(v).sum(1) + (along**2 / v).sum(1)
    weight = normalised(-0.5 * fit - (log_a**2 + log_b**2) / 8)
    means = a2 * (along / v) @ across.T
    variances = a2 * t - a2**2 * (1 / v) @ (across**2).T
    scales = np.column_stack([np.exp(log_a), np.exp(log_b)])
    return moments(weight, np.append(scales, means, 1), np.append(np.zeros_like(scales), variances, 1))


def normalised(log_weight: Array) -> Array:
    weight = np.exp(log_weight - log_weight.max())
    return np.asarray(weight / weight.sum())


def moments(weight: Array, means: Array, variances: Array) -> Truth:
    """Of a mixture with weights ``[m]`` of laws with these means and variances ``[m, p]``."""
    mean = weight @ means
    sd = np.sqrt(weight @ (variances + (means - mean) ** 2))
    return Truth(mean, np.zeros_like(mean), sd, np.zeros_like(sd))


def published(module: dict[str, Any], *parts: str) -> Truth:
    """The ground truth of a file of inference-gym.

    There is none for the error of a standard deviation: it is taken to be that of the mean, as for a kurtosis of 5 (a
    Gaussian's would be 0.71 of it).
    """

    def joined(what: str) -> Array:
        return np.concatenate([np.ravel(module[f"IDENTITY_{part}_{what}"]) for part in parts]).astype(np.float64)

    error = joined("MEAN_STANDARD_ERROR")
    return Truth(joined("MEAN"), error, joined("STANDARD_DEVIATION"), error)


def collected(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays, by name, from the files of inference-gym."""
    truths, data = folder / "targets" / "ground_truth", folder / "internal" / "datasets"

    def read(of: Path, name: str) -> dict[str, Any]:
        return runpy.run_path(str(of / f"{name}.py"))

    walk = "brownian_motion_unknown_scales_missing_middle_observations"
    y = read(data, "brownian_motion_missing_middle_observations")["OBSERVED_LOC"]
    answers = read(data, "synthetic_item_response_theory")
    grids = np.zeros((2, 400, 100), np.uint8)
    place = answers["STUDENT_IDS"], answers["QUESTION_IDS"]
    grids[0][place], grids[1][place] = 1, answers["CORRECT"]
    abilities = "MEAN_STUDENT_ABILITY", "CENTERED_STUDENT_ABILITY", "QUESTION_DIFFICULTY"
    found = {
        "eight_schools": published(read(truths, "eight_schools"), "AVG_EFFECT", "LOG_STDDEV", "SCHOOL_EFFECTS"),
        "eight_schools_exact": eight_schools(),
        "brownian_motion": published(read(truths, walk), "INNOVATION_NOISE_SCALE", "OBSERVATION_NOISE_SCALE", "LOCS"),
        "brownian_motion_exact": brownian_motion(np.float64(y), ~np.isnan(y)),
        "item_response": published(read(truths, "synthetic_item_response_theory"), *abilities),
    }
    arrays = {"brownian_motion/y": np.nan_to_num(y)}
    arrays |= {f"item_response/{name}": np.packbits(grid) for name, grid in zip(("asked", "right"), grids, strict=True)}
    return arrays | {key: array for name, truth in found.items() for key, array in as_arrays(name, truth).items()}


def as_arrays(name: str, truth: Truth) -> dict[str, npt.NDArray[Any]]:
    """A truth as it is stored, in float32 where it has errors, which are far larger than its rounding."""
    dtype = np.float32 if truth.mean_error.any() else np.float64
    return {f"{name}/{field}": value.astype(dtype) for field, value in truth._asdict().items()}


def write(arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Put these arrays into posteriors.npz, beside the others."""
    kept = numbers() if NUMBERS.exists() else {}
    np.savez_compressed(NUMBERS, **{**kept, **arrays})
    numbers.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.posterior_numbers", description=__doc__)
    parser.add_argument("folder", type=Path, help="inference_gym, as unpacked from PyPI")
    write(collected(parser.parse_args().folder))
    print(f"{NUMBERS}: {NUMBERS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
