"""What a network predicts, and the linear algebra between predictions.

Everything here is linear: the estimate of x_0 is D = kx x + km m, that of the noise is eps = ex x + em m,
for the state x = alpha x_0 + sigma eps and the network's output m. `combine` folds D and eps terms into x and m.
`schedule`, the one that the network was trained on, is read where the prediction depends on more than alpha and sigma:
raw needs its sigma_data, mean its training steps.
"""

from __future__ import annotations

import numpy as np

from ulam_kernels.arguments import described, one_of

from ..schedules import EDM, Array, Schedule, VariancePreserving, before, posterior

PREDICTIONS = ("eps", "x0", "v", "score", "flow", "raw", "mean")
ROUNDING = 1e-12  # relative: a noise level this close to that of a training step is that one


def x0_coefficients(
    predicts: str, alpha: Array, sigma: Array, schedule: Schedule | None = None
) -> tuple[Array, Array, Array]:
    """(kx, km, c_in), each shaped like `alpha`: D = kx x + km m, and the network reads c_in x.

    | predicts | the output m is | D |
    |---|---|---|
    | eps | eps | (x - sigma m) / alpha [Ho 2020, eq. 15] |
    | x0 | x_0 | m |
    | v | alpha eps - sigma x_0 | (alpha x - sigma m) / (alpha^2 + sigma^2) [Salimans & Ho 2022, app. D] |
    | score | -eps / sigma | (x + sigma^2 m) / alpha [Tweedie] |
    | flow | eps - x_0 | (x - sigma m) / (alpha + sigma) [Lipman 2023] |
    | raw | F(c_in x) | c_skip x + c_out m, alpha = 1 [Karras 2022, table 1] |
    | mean | mu~ = on_x x + on_D x_0, the mean one training step back | (m - on_x x) / on_D, see `step_back` [Ho 2020] |

    Raises ValueError for eps and score where alpha = 0 (zero terminal SNR): D is undefined; for raw where alpha != 1;
    for mean where (alpha, sigma) are not the levels of a training step of `schedule`.
    """
    check_predicts(predicts, schedule)
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
    if predicts == "mean":
        on_x, on_D, _ = step_back(schedule, alpha, sigma)
        return -on_x / on_D, 1 / on_D, one
    _check_unit_alpha(alpha)
    sigma_data = _sigma_data(schedule)
    power = sigma**2 + sigma_data**2
    return sigma_data**2 / power, sigma * sigma_data / np.sqrt(power), 1 / np.sqrt(power)


def eps_coefficients(
    predicts: str, alpha: Array, sigma: Array, schedule: Schedule | None = None
) -> tuple[Array, Array]:
    """(ex, em), each shaped like `alpha`: eps = (x - alpha D) / sigma = ex x + em m, free of cancellation.

    Raises ValueError where sigma = 0 leaves eps undefined (x0 and mean alone divide by it), and as `x0_coefficients`.
    """
    check_predicts(predicts, schedule)
    alpha, sigma = np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    one, zero = np.ones_like(alpha + sigma), np.zeros_like(alpha + sigma)
    if predicts in ("x0", "mean") and (sigma == 0).any():
        raise ValueError(
            f"predicts: got {predicts!r}, which says nothing about eps where sigma is 0, expected a larger t"
        )
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
    if predicts == "mean":
        _, on_D, alpha_s = step_back(schedule, alpha, sigma)
        return alpha_s / (sigma * on_D), -alpha / (sigma * on_D)  # x - alpha D = (alpha_s x - alpha m) / on_D
    _check_unit_alpha(alpha)
    sigma_data = _sigma_data(schedule)
    power = sigma**2 + sigma_data**2
    return sigma / power, -sigma_data / np.sqrt(power)


def combine(
    predicts: str,
    alpha: Array,
    sigma: Array,
    schedule: Schedule | None = None,
    *,
    D: Array | float | None = None,
    eps: Array | float | None = None,
) -> tuple[Array, Array]:
    """(on x, on m): the coefficients of `D` times the x_0 estimate plus `eps` times the noise estimate."""
    on_x = on_m = np.zeros_like(np.asarray(alpha + sigma, dtype=np.float64))
    if D is not None:
        kx, km, _ = x0_coefficients(predicts, alpha, sigma, schedule)
        on_x, on_m = on_x + D * kx, on_m + D * km
    if eps is not None:
        ex, em = eps_coefficients(predicts, alpha, sigma, schedule)
        on_x, on_m = on_x + eps * ex, on_m + eps * em
    return on_x, on_m


def step_back(schedule: Schedule | None, alpha: Array, sigma: Array) -> tuple[Array, Array, Array]:
    """(on_x, on_D, alpha_s), each shaped like `alpha`: mu~ = on_x x + on_D x_0 of q(x_s | x, x_0), s = t - 1.

    That is the mean one step of the training chain back from its step t, whose levels alpha and sigma are [Ho 2020,
    eq. 7]; before step 0 come the data, so that mu~ = x_0 there. alpha_s = on_D + alpha on_x. Raises ValueError unless
    the schedule is vp and the levels are those of its training steps, which add noise.
    """
    if not isinstance(schedule, VariancePreserving):
        raise ValueError(f"schedule: got {schedule!r} under predicts='mean', expected a vp schedule: x_(t-1) is a step")
    with np.errstate(divide="ignore"):
        ratio, known = np.asarray(sigma / alpha), schedule.ratios
    t = np.searchsorted(known, ratio * (1 - ROUNDING))
    count = np.searchsorted(known, ratio * (1 + ROUNDING), side="right") - t  # of the training steps at this level
    if (count == 0).any():
        finite = known[np.isfinite(known)]
        between = np.interp(ratio[count == 0].flat[0], finite, np.arange(len(finite)))
        raise ValueError(
            f"predicts: got 'mean' at t = {between:.6g}, expected whole training steps: it is the mean of one of them"
        )
    if (count > 1).any():
        still = t[count > 1].flat[0] + 1
        raise ValueError(f"predicts: got 'mean' at t = {still}, a step that adds no noise, expected one that does")
    alpha_s, sigma_s = before(schedule, t.astype(np.float64))
    on_x, on_D, _ = posterior(alpha, np.where(t == 0, 1.0, sigma), alpha_s, sigma_s)  # sigma_0 may be 0, as sigma_s is
    return on_x, on_D, alpha_s


def check_predicts(predicts: str, schedule: Schedule | None = None) -> None:
    """Raises ValueError for an unknown prediction, or one that `schedule` has no meaning for."""
    if not isinstance(predicts, str) or predicts not in PREDICTIONS:
        raise ValueError(f"predicts: got {described(predicts)}, expected {one_of(predicts, PREDICTIONS)}")
    if schedule is None:
        return
    if predicts == "raw" and not isinstance(schedule, EDM):
        raise ValueError(f"schedule: got {schedule!r} under predicts='raw' (EDM preconditioning), expected edm(...)")
    if predicts == "mean" and not isinstance(schedule, VariancePreserving):
        raise ValueError(f"schedule: got {schedule!r} under predicts='mean', expected a vp schedule, which has steps")


def told_steps(predicts: str, time: str = "index") -> str:
    """The argument by which a network is told whole training steps only; empty where it takes any time."""
    return "predicts='mean'" if predicts == "mean" else "time='index'" if time == "index" else ""


def _sigma_data(schedule: Schedule | None) -> float:
    """The schedule's sigma_data."""
    assert isinstance(schedule, EDM), "the prediction was checked"
    return schedule.sigma_data


def _check_unit_alpha(alpha: Array) -> None:
    if (alpha != 1).any():
        raise ValueError("predicts: got 'raw' (EDM preconditioning) where alpha is not 1, expected schedule=edm(...)")
