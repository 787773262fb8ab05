"""What a network predicts, and the linear algebra between predictions.

Everything here is linear: the estimate of x_0 is D = kx x + km m, that of the noise is eps = ex x + em m,
for the state x = alpha x_0 + sigma eps and the network's output m. `combine` folds D and eps terms into x and m.
"""

from __future__ import annotations

import numpy as np

from ulam_kernels.arguments import described

from ..schedules import EDM, Array, Schedule

PREDICTIONS = ("eps", "x0", "v", "score", "flow", "raw")


def x0_coefficients(predicts: str, alpha: Array, sigma: Array, sigma_data: float = 0.5) -> tuple[Array, Array, Array]:
    """(kx, km, c_in), each shaped like `alpha`: D = kx x + km m, and the network reads c_in x.

    | predicts | the output m is | D |
    |---|---|---|
    | eps | eps | (x - sigma m) / alpha [Ho 2020, eq. 15] |
    | x0 | x_0 | m |
    | v | alpha eps - sigma x_0 | (alpha x - sigma m) / (alpha^2 + sigma^2) [Salimans & Ho 2022, app. D] |
    | score | -eps / sigma | (x + sigma^2 m) / alpha [Tweedie] |
    | flow | eps - x_0 | (x - sigma m) / (alpha + sigma) [Lipman 2023] |
    | raw | F(c_in x) | c_skip x + c_out m, alpha = 1 [Karras 2022, table 1] |

    Raises ValueError for eps and score where alpha = 0 (zero terminal SNR): D is undefined; for raw where alpha != 1.
    """
    check_predicts(predicts)
    alpha, sigma = np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    one, zero = np.ones_like(alpha + sigma), np.zeros_like(alpha + sigma)
    if predicts in ("eps", "score") and (alpha == 0).any():
        raise ValueError(
            f"predicts: got {predicts!r}, which says nothing about x_0 where alpha is 0 (zero terminal SNR), "
            "expected 'v', 'x0' or 'flow', or a start at a smaller t"
        )
    if predicts == "eps":
        return one / alpha, -sigma / alpha, one
    if predicts == "x0":
        return zero, one, one
    if predicts == "v":
        power = alpha**2 + sigma**2
        return alpha / power, -sigma / power, one
    if predicts == "score":
        return one / alpha, sigma**2 / alpha, one
    if predicts == "flow":
        return one / (alpha + sigma), -sigma / (alpha + sigma), one
    _check_unit_alpha(alpha)
    power = sigma**2 + sigma_data**2
    return sigma_data**2 / power, sigma * sigma_data / np.sqrt(power), 1 / np.sqrt(power)


def eps_coefficients(predicts: str, alpha: Array, sigma: Array, sigma_data: float = 0.5) -> tuple[Array, Array]:
    """(ex, em), each shaped like `alpha`: eps = (x - alpha D) / sigma = ex x + em m, free of cancellation.

    Raises ValueError where sigma = 0 leaves eps undefined (x0 alone divides by it).
    """
    check_predicts(predicts)
    alpha, sigma = np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    one, zero = np.ones_like(alpha + sigma), np.zeros_like(alpha + sigma)
    if predicts == "x0" and (sigma == 0).any():
        raise ValueError("predicts: got 'x0', which says nothing about eps where sigma is 0, expected a larger t")
    if predicts == "eps":
        return zero, one
    if predicts == "x0":
        return one / sigma, -alpha / sigma
    if predicts == "v":
        power = alpha**2 + sigma**2
        return sigma / power, alpha / power
    if predicts == "score":
        return zero, -sigma * one
    if predicts == "flow":
        return one / (alpha + sigma), alpha / (alpha + sigma)
    _check_unit_alpha(alpha)
    power = sigma**2 + sigma_data**2
    return sigma / power, -sigma_data / np.sqrt(power)


def combine(
    predicts: str,
    alpha: Array,
    sigma: Array,
    sigma_data: float = 0.5,
    *,
    D: Array | float | None = None,
    eps: Array | float | None = None,
) -> tuple[Array, Array]:
    """(on x, on m): the coefficients of `D` times the x_0 estimate plus `eps` times the noise estimate."""
    on_x = on_m = np.zeros_like(np.asarray(alpha + sigma, dtype=np.float64))
    if D is not None:
        kx, km, _ = x0_coefficients(predicts, alpha, sigma, sigma_data)
        on_x, on_m = on_x + D * kx, on_m + D * km
    if eps is not None:
        ex, em = eps_coefficients(predicts, alpha, sigma, sigma_data)
        on_x, on_m = on_x + eps * ex, on_m + eps * em
    return on_x, on_m


def sigma_data_of(schedule: Schedule, predicts: str) -> float:
    """The schedule's sigma_data. Raises ValueError for predicts="raw" without an EDM schedule."""
    if isinstance(schedule, EDM):
        return schedule.sigma_data
    if predicts == "raw":
        raise ValueError(f"schedule: got {schedule!r} under predicts='raw' (EDM preconditioning), expected edm(...)")
    return 0.5


def check_predicts(predicts: str) -> None:
    """Raises ValueError for an unknown prediction."""
    if not isinstance(predicts, str) or predicts not in PREDICTIONS:
        raise ValueError(f"predicts: got {described(predicts)}, expected one of {', '.join(PREDICTIONS)}")


def _check_unit_alpha(alpha: Array) -> None:
    if (alpha != 1).any():
        raise ValueError("predicts: got 'raw' (EDM preconditioning) where alpha is not 1, expected schedule=edm(...)")
