"""Schedules against their papers' formulas, in float64 and in exact rationals, and every bad argument."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from scipy.integrate import solve_ivp

from ulam import schedules
from ulam.schedules import EDM, FlowMatching, VariancePreserving

VP = {
    "linear": schedules.vp_linear(),
    "scaled_linear": schedules.vp_scaled_linear(1000, 0.00085, 0.012),
    "squaredcos_cap_v2": schedules.vp_cosine(1000),
    "sigmoid": schedules.vp_sigmoid(),
}
CONTINUOUS = (schedules.flow(), schedules.ve(0.01, 50), schedules.edm(), schedules.sub_vp())


@pytest.mark.parametrize("name", VP)
def test_vp_betas_and_alphas_cumprod_equal_diffusers_up_to_its_float32(name: str) -> None:
    ends = {} if name != "scaled_linear" else {"beta_start": 0.00085, "beta_end": 0.012}
    theirs = DDPMScheduler(beta_schedule=name, **ends)
    np.testing.assert_allclose(VP[name].betas, theirs.betas, rtol=2e-4 if "cos" in name else 2e-5)
    np.testing.assert_allclose(VP[name].alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4)


def test_linear_betas_are_ho_2020() -> None:
    schedule = schedules.vp_linear(1000)
    assert schedule.betas[0] == 1e-4 and schedule.betas[-1] == 0.02
    np.testing.assert_allclose(np.diff(schedule.betas), (0.02 - 1e-4) / 999, rtol=1e-9)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-14)


def test_cosine_is_nichol_dhariwal_2021_and_only_its_end_is_clipped() -> None:
    steps, s = 1000, 0.008
    schedule = schedules.vp_cosine(steps)
    f = [math.cos((t / steps + s) / (1 + s) * math.pi / 2) ** 2 for t in range(steps + 1)]
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1], np.array(f[1:-1]) / f[0], rtol=1e-11)
    assert schedule.betas[-1] == 0.999 and (schedule.betas[:-1] < 0.999).all()


def test_variance_near_the_data_has_no_cancellation() -> None:
    betas = [1e-9, 2e-9, 3e-9, 0.5]
    product, exact = Fraction(1), []
    for beta in betas:
        product *= 1 - Fraction(beta)
        exact.append(float(1 - product))
    schedule = schedules.from_betas(betas)
    np.testing.assert_allclose(schedule.sigma([0, 1, 2, 3]) ** 2, exact, rtol=1e-15)


def test_betas_and_alphas_cumprod_describe_the_same_schedule() -> None:
    one = schedules.vp_linear()
    other = schedules.from_alphas_cumprod(one.alphas_cumprod)
    np.testing.assert_allclose(other.betas, one.betas, rtol=1e-11)
    np.testing.assert_allclose(other.sigma(np.arange(1000)), one.sigma(np.arange(1000)), rtol=1e-11)


@pytest.mark.parametrize("name", VP)
def test_fractional_timesteps_interpolate_sigma_over_alpha_as_diffusers(name: str) -> None:
    schedule = VP[name]
    theirs = EulerDiscreteScheduler(trained_betas=schedule.betas, timestep_spacing="linspace")
    theirs.set_timesteps(17)
    times = np.linspace(0, 999, 17)[::-1]
    alpha, sigma = schedule.levels(times)
    np.testing.assert_allclose(sigma / alpha, theirs.sigmas[:-1], rtol=2e-3 if "cos" in name else 1e-4)
    low, high = schedule.levels([400, 401])
    ratio = 0.75 * high[0] / low[0] + 0.25 * high[1] / low[1]
    np.testing.assert_allclose(schedule.sigma(400.25) / schedule.alpha(400.25), ratio, rtol=1e-14)


@pytest.mark.parametrize("schedule", [*VP.values(), *CONTINUOUS])
def test_t_of_sigma_inverts_the_ratio(schedule: schedules.Schedule) -> None:
    top = 999 if schedule.kind == "vp" else 0.99
    t = np.random.default_rng(0).uniform(0.01, top, size=(5, 7))
    alpha, sigma = schedule.levels(t)
    np.testing.assert_allclose(schedule.t_of_sigma(sigma / alpha), t, rtol=1e-12)
    if schedule.kind == "vp":
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-15)


def test_whole_timesteps_are_read_from_the_table_exactly() -> None:
    schedule = schedules.vp_linear()
    mixed = schedule.alpha([0, 17.5, 999])
    assert mixed[0] == math.sqrt(schedule.alphas_cumprod[0]) and mixed[2] == math.sqrt(schedule.alphas_cumprod[-1])
    assert schedule.alpha(torch.tensor([0, 999])).tolist() == [mixed[0], mixed[2]]


TENSORS = {
    "vp": (schedules.vp_linear(), torch.rand(40, generator=torch.Generator().manual_seed(0)).double() * 998),
    "vp, whole": (schedules.vp_linear(), torch.tensor([[0, 17], [250, 999]])),
    "zero terminal SNR": (schedules.zero_terminal_snr(schedules.vp_cosine(20)), torch.tensor([0, 1.5, 17.5, 18, 19])),
    "one step": (schedules.vp_linear(1), torch.zeros(3)),
    "a number": (schedules.vp_linear(), torch.tensor(3.25)),
    "ve": (schedules.ve(0.01, 50), torch.tensor([0.0, 0.3, 70.0])),
    "flow": (schedules.flow(), torch.tensor([0.0, 0.3, 1.0])),
    "subvp": (schedules.sub_vp(), torch.rand(300, generator=torch.Generator().manual_seed(1)).double()),
}


@pytest.mark.parametrize("name", TENSORS)
def test_levels_of_tensors_are_those_of_numpy_and_have_gradients(name: str) -> None:
    schedule, t = TENSORS[name]
    expected = torch.stack([torch.from_numpy(np.asarray(level)) for level in schedule.levels(t.numpy())])
    recorded = t.double().clone().requires_grad_()
    assert torch.equal(torch.stack(schedule.levels(t)), expected)
    assert torch.equal(torch.stack(schedule.levels(recorded)), expected)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: torch.stack(schedule.levels(t)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(t), expected, rtol=1e-14, atol=0)
    each = torch.func.vmap(lambda t: torch.stack(schedule.levels(t)))(t.flatten())
    torch.testing.assert_close(each.T.reshape(expected.shape), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["vp", "ve", "flow", "subvp"])
def test_derivatives_of_levels_in_t_are_those_of_differences(name: str) -> None:
    schedule, h = TENSORS[name][0], 1e-6
    t = TENSORS[name][1].double() * 0.99 + 2 * h
    if name == "vp":
        t = t.floor() + 0.5
    for level in (schedule.alpha, schedule.sigma):
        differences = (level(t + h) - level(t - h)) / (2 * h)
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(level))(t), differences, rtol=1e-6, atol=1e-9)
        tangent = torch.func.jvp(level, (t,), (torch.ones_like(t),))[1]
        torch.testing.assert_close(tangent, differences, rtol=1e-6, atol=1e-9)


def test_derivatives_at_training_steps_are_those_to_the_right() -> None:
    schedule, h = schedules.vp_linear(), 1e-5
    t = torch.tensor([3.0, 400.0, 999.0], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    side = torch.tensor([h, h, -h], dtype=torch.float64)  # there is nothing to the right of the last
    differences = (schedule.alpha(t.detach() + side) - schedule.alpha(t.detach())) / side
    torch.testing.assert_close(found, differences, rtol=1e-5, atol=0)


def test_times_out_of_range_are_nan_where_the_host_does_not_look() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, t: s.alpha(t), fullgraph=True, backend="aot_eager")
    t = torch.tensor([-1.0, 0.5, 2000.0])
    for schedule in (schedules.vp_linear(), schedules.flow(), schedules.sub_vp(), schedules.vp_cosine()):
        assert compiled(schedule, t).isnan().tolist() == [True, False, True]
        assert float(compiled(schedule, t)[1]) == pytest.approx(float(schedule.alpha(0.5)), rel=1e-14)
        with pytest.raises(ValueError, match=r"^t: got -1\.0, expected numbers in"):
            schedule.alpha(t)


def test_zero_terminal_snr() -> None:
    schedule = schedules.from_betas([0.1, 0.2, 1.0])
    assert schedule.levels(2) == (0.0, 1.0)
    assert schedule.t_of_sigma(np.inf) == 2
    assert schedules.from_alphas_cumprod([0.9, 0.5, 0.0]).betas[-1] == 1
    with pytest.raises(ValueError, match=r"t: got 1.5, expected whole numbers above 1"):
        schedule.alpha(1.5)
    np.testing.assert_allclose(schedule.alpha(0.5) ** 2 + schedule.sigma(0.5) ** 2, 1)


@pytest.mark.parametrize("name", VP)
def test_rescaling_to_zero_terminal_snr_equals_diffusers(name: str) -> None:
    """[Lin 2024, alg. 1], in float64: sqrt(abar) is an affine map of what it was, from its first value to 0."""
    schedule = schedules.zero_terminal_snr(VP[name])
    betas = rescale_zero_terminal_snr(torch.from_numpy(VP[name].betas.copy())).numpy()
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1], np.cumprod(1 - betas)[:-1], rtol=1e-9)
    before, after = np.sqrt(VP[name].alphas_cumprod), np.sqrt(schedule.alphas_cumprod)
    slope, start = np.polyfit(before, after, 1)
    np.testing.assert_allclose(slope * before + start, after, atol=1e-13)
    assert schedule.levels(999) == (0, 1) and schedule.ratios[-1] == np.inf
    assert schedule.levels(0) == VP[name].levels(0) and schedule.betas[-1] == 1
    np.testing.assert_allclose(schedule.alphas_cumprod + schedule.variances, 1, rtol=1e-15)
    assert schedule.t_of_sigma(np.inf) == 999 and (np.diff(schedule.ratios[:-1]) > 0).all()


def test_sub_vp_levels_are_the_moments_of_its_sde() -> None:
    """dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 int beta))) dw [Song 2021b, eq. 14]: mean and variance integrated."""
    schedule = schedules.sub_vp(0.1, 20.0)

    def beta(t: float) -> float:
        return 0.1 + t * 19.9

    def moments(t: float, y: np.ndarray) -> list[float]:
        diffusion = beta(t) * (1 - math.exp(-2 * (0.1 * t + 9.95 * t**2)))
        return [-beta(t) / 2 * y[0], -beta(t) * y[1] + diffusion]

    times = np.array([0.0, 0.01, 0.2, 0.5, 0.9, 1.0])
    solved = solve_ivp(moments, (0, 1), [1.0, 0.0], t_eval=times, rtol=1e-11, atol=1e-14, method="DOP853").y
    alpha, sigma = schedule.levels(times)
    np.testing.assert_allclose(alpha, solved[0], rtol=1e-8)
    np.testing.assert_allclose(sigma**2, solved[1], rtol=1e-7, atol=1e-13)
    assert schedule.levels(0) == (1, 0) and schedule.init_scale(1.0) == 1
    np.testing.assert_array_equal(schedules.sub_vp(t_min=0.1).grid(4), [1, 0.7, 0.4, 0.1])


def test_sub_vp_time_of_tiny_and_largest_noise() -> None:
    schedule = schedules.sub_vp()
    t = np.array([0.0, 1e-9, 1e-5, 0.3, 1.0])
    alpha, sigma = schedule.levels(t)
    np.testing.assert_allclose(schedule.t_of_sigma(sigma / alpha), t, rtol=1e-13)


def test_edm_grid_is_karras_2022_eq_5() -> None:
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, rho=7)
    theirs.set_timesteps(18)
    np.testing.assert_allclose(schedules.edm().grid(18), theirs.sigmas[:-1], rtol=1e-5)
    assert schedules.edm().grid(1).tolist() == [80]
    assert schedules.edm().grid(18)[-1] == pytest.approx(0.002, rel=1e-13)


def test_ve_grid_is_geometric_and_flow_grid_is_shifted() -> None:
    np.testing.assert_allclose(schedules.ve(0.01, 100).grid(5), [100, 10, 1, 0.1, 0.01], rtol=1e-13)
    np.testing.assert_allclose(schedules.flow().grid(4), [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(schedules.flow(3.0).grid(4), [1, 0.9, 0.75, 0.5])


def test_levels_of_continuous_schedules() -> None:
    assert schedules.flow().levels(0.25) == (0.75, 0.25)
    assert schedules.edm().levels(80) == schedules.ve(0.01, 80).levels(80) == (1.0, 80.0)


def test_repr_is_the_constructor_call_and_equality_follows_it() -> None:
    names = vars(schedules)
    for schedule in (
        *VP.values(),
        schedules.edm(rho=5),
        schedules.ve(0.01, 50),
        schedules.flow(3),
        schedules.sub_vp(0.2, 15),
        schedules.zero_terminal_snr(schedules.vp_linear(50)),
        schedules.from_betas([0.1, 0.2]),
        schedules.from_alphas_cumprod([0.9, 0.5]),
    ):
        again = eval(repr(schedule), dict(names))
        assert again == schedule and hash(again) == hash(schedule)
    a, b = np.linspace(0.1, 0.2, 50), np.linspace(0.1, 0.2, 50)
    b[30] += 1e-16
    assert schedules.from_betas(a) == schedules.from_betas(torch.from_numpy(a)) == schedules.from_betas(list(a))
    assert schedules.from_betas(a) != schedules.from_betas(b)
    assert schedules.vp_linear(10) != schedules.vp_linear(11) and schedules.ve(1, 2) != schedules.edm(1, 2)


def test_schedules_are_immutable_and_do_not_alias_their_input() -> None:
    betas = np.array([0.1, 0.2])
    schedule = schedules.from_betas(betas)
    betas[0] = 0.7
    assert schedule.betas[0] == 0.1
    for array in (schedule.betas, schedule.alphas_cumprod, schedule.variances):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.5
    with pytest.raises(AttributeError):
        schedule.betas = betas  # type: ignore[misc]
    assert isinstance(schedules.edm(), EDM) and isinstance(schedules.flow(), FlowMatching)
    assert isinstance(schedule, VariancePreserving) and schedule.steps == 2 and schedules.edm().steps is None


def test_bfloat16_and_integer_tensors_are_accepted() -> None:
    assert schedules.from_betas(torch.tensor([0.25, 0.5], dtype=torch.bfloat16)).betas.tolist() == [0.25, 0.5]


BAD_VALUES = {
    "betas: got nan at index 1, expected finite numbers": lambda: schedules.from_betas([0.1, math.nan]),
    "betas: got inf at index 0, expected finite numbers": lambda: schedules.from_betas([math.inf]),
    "betas: got 0.0 at index 0, expected numbers in .0, 1": lambda: schedules.from_betas([0.0, 0.1]),
    "betas: got -0.1 at index 1, expected numbers in .0, 1": lambda: schedules.from_betas([0.1, -0.1]),
    "betas: got 1.5 at index 0, expected numbers in .0, 1": lambda: schedules.from_betas([1.5]),
    "betas: got 1.0 at index 0, expected numbers in .0, 1": lambda: schedules.from_betas([1.0, 0.1]),
    "betas: got shape .2, 1., expected one dimension, not empty": lambda: schedules.from_betas([[0.1], [0.2]]),
    "betas: got shape .0., expected one dimension, not empty": lambda: schedules.from_betas([]),
    "betas: got shape .., expected one dimension, not empty": lambda: schedules.from_betas(0.1),
    "betas: got an alphas_cumprod that underflows to 0 at index 537, expected it above 0": lambda: schedules.from_betas(
        [0.75] * 600
    ),
    "alphas_cumprod: got 0.9 at index 1, expected strictly decreasing": lambda: schedules.from_alphas_cumprod(
        [0.9, 0.9]
    ),
    "alphas_cumprod: got 1.1 at index 0, expected numbers in .0, 1": lambda: schedules.from_alphas_cumprod([1.1, 0.9]),
    "alphas_cumprod: got 0.0 at index 0, expected numbers in .0, 1": lambda: schedules.from_alphas_cumprod([0.0, -0.5]),
    "alphas_cumprod: got .*, expected finite numbers": lambda: schedules.from_alphas_cumprod([0.9, math.nan]),
    "steps: got 0, expected 1 to 10": lambda: schedules.vp_linear(0),
    "steps: got -5, expected 1 to 10": lambda: schedules.vp_cosine(-5),
    "beta_start: got 0, expected a number in .0, 1.": lambda: schedules.vp_linear(10, beta_start=0),
    "beta_end: got 2, expected a number in .0, 1.": lambda: schedules.vp_scaled_linear(10, beta_end=2),
    "beta_end: got nan, expected a finite number": lambda: schedules.vp_linear(10, beta_end=math.nan),
    "sigma_min: got 0, expected a number above 0": lambda: schedules.ve(0, 1),
    "sigma_min, sigma_max: got 2.0 and 1.0, expected sigma_min < sigma_max": lambda: schedules.edm(2, 1),
    "rho: got -1, expected a number above 0": lambda: schedules.edm(rho=-1),
    "sigma_data: got inf, expected a finite number": lambda: schedules.edm(sigma_data=math.inf),
    "beta_min, beta_max: got 3.0 and 2.0, expected beta_min < beta_max": lambda: schedules.sub_vp(3, 2),
    "t_min: got 1.0, expected a number in .0, 1.": lambda: schedules.sub_vp(t_min=1),
    "beta_end: got 1, expected a number in .0, 1.": lambda: schedules.vp_sigmoid(10, beta_end=1),
    "schedule: got 1 training steps, expected at least 2": lambda: schedules.zero_terminal_snr(schedules.vp_linear(1)),
    "t: got -0.1, expected numbers in .0, 1.: sub-VP": lambda: schedules.sub_vp().alpha(-0.1),
    "sigma: got 1000000000.0, expected numbers in .0,": lambda: schedules.sub_vp().t_of_sigma(1e9),
    "shift: got 0, expected a number above 0": lambda: schedules.flow(0),
    "t: got 1000.0, expected numbers in .0, 999.: this schedule has 1000 training steps": lambda: (
        schedules.vp_linear().alpha(1000)
    ),
    "t: got -1.0, expected numbers in .0, 999.": lambda: schedules.vp_linear().sigma([3, -1]),
    "t: got nan, expected numbers in .0, 999.": lambda: schedules.vp_linear().sigma(math.nan),
    "t: got 1.5, expected numbers in .0, 1.": lambda: schedules.flow().alpha(1.5),
    "t: got inf, expected numbers in .0, inf.": lambda: schedules.edm().alpha(math.inf),
    "sigma: got 0.001, expected numbers in": lambda: schedules.vp_linear().t_of_sigma(0.001),
    "sigma: got -1.0, expected numbers in": lambda: schedules.flow().t_of_sigma(-1),
}
BAD_TYPES = {
    "steps: got True, expected an integer": lambda: schedules.vp_linear(True),
    "steps: got 10.0, expected an integer": lambda: schedules.vp_cosine(10.0),
    "steps: got '10', expected an integer": lambda: schedules.vp_linear("10"),
    "beta_start: got '1e-4', expected a number": lambda: schedules.vp_linear(10, beta_start="1e-4"),
    "betas: got str of dtype .*, expected numbers": lambda: schedules.from_betas("0.1"),
    "betas: got list of dtype bool, expected numbers": lambda: schedules.from_betas([True, False]),
    "betas: got NoneType of dtype object, expected numbers": lambda: schedules.from_betas(None),
    "betas: got .*, expected numbers in a regular array": lambda: schedules.from_betas([[0.1], [0.1, 0.2]]),
    "shift: got True, expected a number": lambda: schedules.flow(True),
    "sigma_max: got None, expected a number": lambda: schedules.ve(0.1, None),
    "schedule: got FlowMatching, expected a VP schedule such as vp_linear.1000.": lambda: schedules.zero_terminal_snr(
        schedules.flow()
    ),
    "schedule: got 'linear', expected a VP schedule": lambda: schedules.zero_terminal_snr("linear"),
    "t: got str of dtype .*, expected numbers": lambda: schedules.vp_linear().alpha("3"),
}


@pytest.mark.parametrize("message", BAD_VALUES)
def test_bad_values(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD_VALUES[message]()


@pytest.mark.parametrize("message", BAD_TYPES)
def test_bad_types(message: str) -> None:
    with pytest.raises(TypeError, match=message):
        BAD_TYPES[message]()
