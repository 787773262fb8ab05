"""The schedules by name. Each raises TypeError or ValueError naming the argument."""

from __future__ import annotations

import hashlib

import numpy as np

from ulam_kernels.arguments import described

from .arguments import Array, Numbers, number, one_beta, positive, reject, sigma_ends, training_steps, vector
from .kinds import EDM, FlowMatching, SubVP, VarianceExploding, VariancePreserving


def vp_linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VariancePreserving:
    """betas linear from beta_start to beta_end [Ho 2020, section 4]."""
    steps, start, end = training_steps(steps), one_beta("beta_start", beta_start), one_beta("beta_end", beta_end)
    call = _call("vp_linear", steps=steps, beta_start=start, beta_end=end)
    return _from_betas(np.linspace(start, end, steps), call)


def vp_scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> VariancePreserving:
    """sqrt(beta) linear [Rombach 2022, latent diffusion]."""
    steps, start, end = training_steps(steps), one_beta("beta_start", beta_start), one_beta("beta_end", beta_end)
    call = _call("vp_scaled_linear", steps=steps, beta_start=start, beta_end=end)
    return _from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2, call)


def vp_cosine(steps: int = 1000) -> VariancePreserving:
    """abar_t = f(t)/f(0), f(t) = cos^2((t/T + s)/(1 + s) pi/2), s = 0.008, betas at most 0.999
    [Nichol & Dhariwal 2021, eq. 17]."""
    steps = training_steps(steps)
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return _from_betas(np.minimum(1 - f[1:] / f[:-1], 0.999), _call("vp_cosine", steps=steps))


def vp_sigmoid(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VariancePreserving:
    """betas along a sigmoid from -6 to 6, between beta_start and beta_end [Xu 2022, GeoDiff]."""
    steps, start, end = training_steps(steps), one_beta("beta_start", beta_start), one_beta("beta_end", beta_end)
    call = _call("vp_sigmoid", steps=steps, beta_start=start, beta_end=end)
    return _from_betas(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))), call)


def zero_terminal_snr(schedule: VariancePreserving) -> VariancePreserving:
    """`schedule` with sqrt(abar) shifted and scaled so that the last is 0 and the first stays [Lin 2024, alg. 1].

    At the last training step the state is pure noise: predictions v, x0 and flow work there, eps and score do not.
    Raises TypeError for another schedule than a VP one, ValueError for one of a single training step.
    """
    if not isinstance(schedule, VariancePreserving):
        raise TypeError(f"schedule: got {described(schedule)}, expected a VP schedule such as vp_linear(1000)")
    if schedule.steps < 2:
        raise ValueError(f"schedule: got {schedule.steps} training steps, expected at least 2")
    root = np.sqrt(schedule.alphas_cumprod)
    first, last = root[0], root[-1]
    # 1 - abar without cancellation where abar is near 1: the first stays, the others come from differences
    root = (root - last) * (first / (first - last))
    root[0], root[-1] = first, 0.0
    abar = root**2
    before = np.append(1.0, abar[:-1])
    variances = (1 - root) * (1 + root)
    variances[0] = schedule.variances[0]
    betas = (before - abar) / before
    betas[0] = schedule.betas[0]
    return VariancePreserving(f"zero_terminal_snr({schedule!r})", *map(_read_only, (betas, abar, variances)))


def from_betas(betas: Numbers) -> VariancePreserving:
    """A VP schedule from its betas [T], each in (0, 1); the last may be exactly 1 (zero terminal SNR)."""
    beta = vector("betas", betas)
    early = np.arange(len(beta)) < len(beta) - 1
    wrong = (beta <= 0) | (beta > 1) | ((beta == 1) & early)
    reject("betas", beta, wrong, "numbers in (0, 1) (the last may be 1: zero terminal SNR)")
    return _from_betas(beta, f"from_betas({_literal(beta)})")


def from_alphas_cumprod(alphas_cumprod: Numbers) -> VariancePreserving:
    """A VP schedule from abar [T], strictly decreasing in (0, 1]; the last may be 0 (zero terminal SNR)."""
    abar = vector("alphas_cumprod", alphas_cumprod)
    early = np.arange(len(abar)) < len(abar) - 1
    wrong = (abar < 0) | (abar > 1) | ((abar == 0) & early)
    reject("alphas_cumprod", abar, wrong, "numbers in (0, 1] (the last may be 0: zero terminal SNR)")
    reject("alphas_cumprod", abar, np.append(False, abar[1:] >= abar[:-1]), "strictly decreasing numbers")
    before = np.append(1.0, abar[:-1])
    betas = (before - abar) / before
    return VariancePreserving(f"from_alphas_cumprod({_literal(abar)})", *map(_read_only, (betas, abar, 1 - abar)))


def ve(sigma_min: float, sigma_max: float) -> VarianceExploding:
    """Variance exploding between two noise levels, 0 < sigma_min < sigma_max [Song 2021b]."""
    low, high = sigma_ends(sigma_min, sigma_max)
    return VarianceExploding(_call("ve", sigma_min=low, sigma_max=high), low, high)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5, rho: float = 7.0) -> EDM:
    """The schedule of Karras et al. 2022 (table 1), on which `predicts="raw"` means their preconditioning.

    Its grid has sigma^(1/rho) uniform from sigma_max to sigma_min [eq. 5]. Raises TypeError, ValueError for others than
    0 < sigma_min < sigma_max, and numbers that are not above 0.
    """
    low, high = sigma_ends(sigma_min, sigma_max)
    data, power = positive("sigma_data", sigma_data), positive("rho", rho)
    return EDM(_call("edm", sigma_min=low, sigma_max=high, sigma_data=data, rho=power), low, high, data, power)


def flow(shift: float = 1.0) -> FlowMatching:
    """Straight paths from data (t = 0) to noise (t = 1) [Lipman 2023; Liu 2023]: alpha = 1 - t, sigma = t.

    `shift` > 1 puts more of the grid near the noise [Esser 2024, eq. 23]. Raises TypeError, ValueError unless it is a
    number above 0.
    """
    shift = positive("shift", shift)
    return FlowMatching(_call("flow", shift=shift), shift)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> SubVP:
    """The sub-VP SDE, told t in [0, 1]; sampling ends at t_min [Song 2021b, app. B and C].

    Raises TypeError, ValueError for others than 0 < beta_min < beta_max and 0 < t_min < 1.
    """
    low, high = positive("beta_min", beta_min), positive("beta_max", beta_max)
    if low >= high:
        raise ValueError(f"beta_min, beta_max: got {low!r} and {high!r}, expected beta_min < beta_max")
    end = number("t_min", t_min)
    if not 0 < end < 1:
        raise ValueError(f"t_min: got {end!r}, expected a number in (0, 1)")
    return SubVP(_call("sub_vp", beta_min=low, beta_max=high, t_min=end), low, high, end)


def _from_betas(betas: Array, constructor: str) -> VariancePreserving:
    """1 - abar_t is the sum of beta_i abar_{i-1}, all positive: no cancellation where abar_t is near 1."""
    abar = np.cumprod(1 - betas)
    if (abar[:-1] == 0).any():
        raise ValueError(
            f"betas: got an alphas_cumprod that underflows to 0 at index {int(np.argmin(abar > 0))}, expected it above "
            "0 before the last step"
        )
    variances = np.minimum(np.cumsum(betas * np.append(1.0, abar[:-1])), 1.0)
    return VariancePreserving(constructor, *map(_read_only, (betas, abar, variances)))


def _call(name: str, **arguments: float) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _literal(values: Array) -> str:
    """The values if there are few, else their count and digest, so that the repr still identifies them."""
    if len(values) <= 8:
        return repr(values.tolist())
    return f"<{len(values)} values, sha256 {hashlib.sha256(values.tobytes()).hexdigest()[:16]}>"


def _read_only(values: Array) -> Array:
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values
