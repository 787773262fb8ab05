"""fuse: interface, state per thread, timesteps per sample, noise, outputs, saving, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from fuse_cases import SHAPE, assert_same_loops, begin, loop, network

import ulam
from ulam import schedules
from ulam.integrations.diffusers import fuse, fused
from ulam.integrations.diffusers.apart import apart
from ulam.integrations.diffusers.fusing import FAMILIES
from ulam.samplers import DDIM, DDPM, DPMSolverPP

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers", "ignore::DeprecationWarning:diffusers")

ALL = sorted(set(FAMILIES) - {"ScoreSdeVeScheduler"})
HISTORY = ["PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]


def make(name: str, **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


# ------------------------------------------------------------------------------------------------ interface


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_rest_is_diffusers_own(name: str) -> None:
    theirs = make(name)
    theirs.set_timesteps(10)
    ours = fuse(theirs)
    assert isinstance(ours, getattr(diffusers, name)) and type(ours) is fused(getattr(diffusers, name))
    assert ours.config == theirs.config and ours.order == theirs.order and ours.compatibles == theirs.compatibles
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert getattr(ours, "init_noise_sigma", 0) == getattr(theirs, "init_noise_sigma", 0)
    for method in ("step", "step_pred", "step_correct", "set_timesteps", "scale_model_input"):
        if hasattr(theirs, method):
            names = [list(inspect.signature(getattr(s, method)).parameters) for s in (ours, theirs)]
            assert names[0] == names[1]


@pytest.mark.parametrize("name", ALL)
def test_the_class_takes_the_place_of_the_original(name: str) -> None:
    runs = [loop(cls(), 10) for cls in (fused(getattr(diffusers, name)), getattr(diffusers, name))]
    assert_same_loops(*runs)


def test_fusing_again_and_copies_give_the_same_loop() -> None:
    scheduler = fuse(diffusers.UniPCMultistepScheduler(solver_order=3))
    scheduler.set_timesteps(10)
    expected = loop(scheduler)
    for other in (fuse(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert type(other) is type(scheduler)
        for mine, theirs in zip(loop(other), expected, strict=True):
            assert torch.equal(mine[0], theirs[0])


def test_saved_schedulers_are_read_by_diffusers(tmp_path: Path) -> None:
    scheduler = fuse(diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, beta_end=0.03))
    scheduler.save_pretrained(tmp_path)
    for cls in (diffusers.EulerDiscreteScheduler, fused(diffusers.EulerDiscreteScheduler), diffusers.DDIMScheduler):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is cls and loaded.config.beta_end == 0.03
    assert '"_class_name": "EulerDiscreteScheduler"' in (tmp_path / "scheduler_config.json").read_text()
    assert fused(diffusers.DDIMScheduler).from_config(scheduler.config).config.beta_end == 0.03


def test_add_noise_knows_the_position_of_the_loop() -> None:
    """Inpainting pipelines call add_noise between steps; some schedulers look at their step index there."""
    theirs = diffusers.DPMSolverMultistepScheduler()
    noised = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(8)
        scheduler.set_begin_index(2)
        x, _ = begin(scheduler)
        for t in scheduler.timesteps[2:5]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        noised.append(scheduler.add_noise(x, torch.ones_like(x), scheduler.timesteps[5:6]))
    torch.testing.assert_close(*noised, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "LCMScheduler", "EulerDiscreteScheduler"])
def test_outputs_are_those_of_diffusers(name: str) -> None:
    theirs = make(name)
    x, _ = begin(theirs)
    outputs = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(4)
        outputs.append(scheduler.step(x, scheduler.timesteps[3], x))  # without noise
        scheduler.set_timesteps(4)
        outputs.append(scheduler.step(x, scheduler.timesteps[3], x, return_dict=False))
    (ours, pair), (expected, tuple_) = outputs[:2], outputs[2:]
    assert isinstance(ours, type(expected)) and list(ours) == list(expected) and len(ours) == len(expected) == 2
    assert isinstance(pair, tuple) and len(pair) == len(tuple_) == 2
    first, second = pair
    for mine, other in ((ours[0], expected[0]), (ours[1], expected[1]), (first, tuple_[0]), (second, tuple_[1])):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert [len(part) for part in (pair[:1], (*pair, 1), ours.to_tuple())] == [1, 3, 2]
    assert dict(ours).keys() == set(expected) and "prev_sample" in ours and ours["prev_sample"] is ours.prev_sample
    assert pickle.loads(pickle.dumps(ours))[1].equal(second) and pickle.loads(pickle.dumps(pair))[1].equal(second)


def test_the_second_output_is_lazy_and_refuses_changed_arguments() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    output = scheduler.step(x, scheduler.timesteps[1], x)
    x.add_(1)
    assert output.prev_sample.shape == x.shape
    with pytest.raises(RuntimeError, match="pred_original_sample must be read before"):
        _ = output.pred_original_sample


def test_arguments_are_left_alone_and_results_are_fresh() -> None:
    for name in ALL:
        scheduler = fuse(make(name))
        scheduler.set_timesteps(4)
        x, _ = begin(scheduler)
        m = torch.tanh(x)
        before, t = (x.clone(), m.clone()), scheduler.timesteps[0]
        results = [scheduler.step(m, t, x).prev_sample]
        results.append(scheduler.step(m, scheduler.timesteps[1], results[0]).prev_sample)
        assert x.equal(before[0]) and m.equal(before[1])
        assert len({tensor.data_ptr() for tensor in (x, m, *results)}) == 4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_dtypes(name: str, dtype: torch.dtype, close: float) -> None:
    """Results in the sample's dtype, near those of diffusers in float64, which has float32 constants."""
    scheduler = make(name)
    scheduler.set_timesteps(6)
    t = scheduler.timesteps[0]
    x = begin(scheduler)[0].to(dtype)
    m = torch.tanh(x)
    ours = fuse(scheduler).step(m, t, x, **seeded(scheduler)).prev_sample
    same = m.dtype == torch.float64 or "generator" not in inspect.signature(scheduler.step).parameters
    if same or name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        scheduler.set_timesteps(6)
        theirs = scheduler.step(m.double(), t, x.double(), **seeded(scheduler)).prev_sample
        assert (ours.double() - theirs).abs().max() <= close * max(1, theirs.abs().max())
    assert ours.dtype == dtype


def seeded(scheduler: Any) -> dict[str, Any]:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(3)} if takes else {}


def test_strides_do_not_matter() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    t = scheduler.timesteps[1]
    expected = scheduler.step(torch.tanh(x), t, x).prev_sample
    y = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(scheduler.step(torch.tanh(y), t, y).prev_sample, expected, rtol=1e-6, atol=1e-6)


def test_gradients_are_refused() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    x = torch.zeros(SHAPE, requires_grad=True)
    with pytest.raises(RuntimeError, match="step has no gradient"):
        scheduler.step(x, 500, x)
    with torch.no_grad():
        assert not scheduler.step(x, 500, x).prev_sample.requires_grad


# -------------------------------------------------------------------------------------------- rows apart


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("sampler", [DDPM, DDIM])
def test_rows_apart_are_the_same_maps(sampler: Any, clip: Any, predicts: str) -> None:
    """x' of both forms in float64, by DESIGN's row formula, on numbers where every second D is clipped."""
    program = sampler(40, clip=clip).program(schedules.vp_linear(), predicts)
    form = apart(program)
    assert form is not None and form.possible.mean() > 0.9
    x, m, z = 0.37, -0.52, 1.31
    for row in range(len(program)):
        c = program.A[row, 0]
        D = program.kx[row] * x + program.km[row] * m
        D = min(max(D, program.lo[row]), program.hi[row])
        expected = c[0] * x + c[1] * D + c[2] * m + c[3] * z
        if form.possible[row]:
            a, w = form.program.A[row, 0], form.weights[row]
            guided = x + w * (m - x) if form.guided[row] else m
            D = min(max(form.program.kx[row] * z + form.program.km[row] * guided, program.lo[row]), program.hi[row])
            assert a[0] * z + a[1] * D + a[2] * guided + a[3] * x == pytest.approx(expected, rel=1e-8, abs=1e-9)


# ------------------------------------------------------------------------------------------------- position


@pytest.mark.parametrize("name", ALL)
def test_a_loop_begins_anew_without_set_timesteps(name: str) -> None:
    scheduler = fuse(make(name))
    scheduler.set_timesteps(6)
    expected = loop(scheduler)
    x, _ = begin(scheduler, seed=9)
    t = scheduler.timesteps[0]
    scheduler.step(network(x, t), t, x)  # a loop that was given up
    for mine, theirs in zip(loop(scheduler), expected, strict=True):
        assert torch.equal(mine[0], theirs[0])


@pytest.mark.parametrize("name", ALL)
def test_a_timestep_for_every_sample(name: str) -> None:
    """The samples run through the loop one call behind the other; each is what it is in a batch of its own."""
    config = {"shift": 2.0} if name.startswith("Flow") else {}
    scheduler, steps = fuse(make(name, **config), noise="noise-v1", seed=5), 6
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    x, _ = begin(scheduler)
    expected = []
    for chain in range(len(x)):
        alone = fuse(make(name, **config), noise="noise-v1", seed=5, chains=[chain])
        alone.set_timesteps(steps)
        y, outputs = x[chain : chain + 1], []
        for t in times:
            scaled = alone.scale_model_input(y, t) if hasattr(alone, "scale_model_input") else y
            y = alone.step(network(scaled, t), t, y).prev_sample
            outputs.append(y)
        expected.append(outputs)
    for call in range(len(times) - 2):
        t = torch.stack([times[call], times[max(0, call - 1)], times[max(0, call - 2)]])
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x).prev_sample
        if call < 2:  # the samples that have not begun stay
            x = torch.stack([x[c] if c <= call else begin(scheduler)[0][c] for c in range(3)])
        for chain in range(min(call + 1, 3)):
            assert torch.equal(x[chain], expected[chain][call - chain][0])


def test_timesteps_of_the_wrong_count() -> None:
    scheduler = fuse(diffusers.DDPMScheduler())
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"timestep must be a number or \[3\], got shape \[2\]"):
        scheduler.step(x, torch.tensor([3, 4]), x)
    with pytest.raises(ValueError, match=r"timestep must be one of scheduler\.timesteps, got 3\.5"):
        scheduler.step(x, 3.5, x)


@pytest.mark.parametrize("name", ["DDPMScheduler", *HISTORY, "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("own_steps", [False, True])
def test_threads_do_not_disturb_one_another(name: str, own_steps: bool) -> None:
    """Four threads go through loops of one scheduler, call by call in turn, also of different lengths."""
    scheduler = fuse(make(name))
    scheduler.set_timesteps(9)
    counts = [9, 10, 11, 12] if own_steps else [9] * 4
    expected = [loop(fuse(make(name)), count, seed=thread) for thread, count in enumerate(counts)]
    turn, results = threading.Barrier(4), {}

    def run(thread: int) -> None:
        if own_steps:
            scheduler.set_timesteps(counts[thread])
        turn.wait(30)
        x, generator = begin(scheduler, seed=thread)
        takes = "generator" in inspect.signature(scheduler.step).parameters
        calls = []
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(scaled, t), t, x, **({"generator": generator} if takes else {})).prev_sample
            calls.append(x)
            if not own_steps:
                turn.wait(30)
        results[thread] = calls

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for thread, calls in enumerate(expected):
        for mine, theirs in zip(results[thread], calls, strict=True):
            assert torch.equal(mine, theirs[0])


# ---------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_generators(name: str) -> None:
    """No generator is torch's own; a list has one for every sample."""
    theirs = make(name)
    samples = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(4)
        x, _ = begin(scheduler)
        t = scheduler.timesteps[1]
        torch.manual_seed(11)
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, t), t, x).prev_sample
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        t = scheduler.timesteps[2]
        samples.append((x, scheduler.step(network(x, t), t, x, generator=generators).prev_sample))
    for mine, other in zip(*samples, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", ALL)
def test_generators_are_left_where_diffusers_leaves_them(name: str) -> None:
    theirs = make(name)
    if "generator" in inspect.signature(theirs.step).parameters:
        states = []
        for scheduler in (fuse(theirs), theirs):
            generator = torch.Generator().manual_seed(1)
            scheduler.set_timesteps(5)
            x, _ = begin(scheduler)
            for t in scheduler.timesteps:
                x = scheduler.step(torch.tanh(x), t, x, generator=generator).prev_sample
            states.append(generator.get_state())
        assert torch.equal(*states)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("DDPMScheduler", DDPM(12, clip=(-1, 1))),
        ("DPMSolverMultistepScheduler", DPMSolverPP(12, sde=True)),
    ],
)
def test_noise_v1_gives_the_numbers_of_ulam_sample(name: str, sampler: Any) -> None:
    """Coefficients come from float32 alphas_cumprod here, so that the numbers differ in the last digits."""
    config = {} if name == "DDPMScheduler" else {"algorithm_type": "sde-dpmsolver++"}
    scheduler = fuse(make(name, **config), noise="noise-v1", seed=7, chains=[4, 2, 9])
    scheduler.set_timesteps(12)
    x = ulam.noise.normal(SHAPE[1:], seed=7, chains=[4, 2, 9], tag=1)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x, generator=None).prev_sample
    denoiser = ulam.Denoiser(lambda x, t: torch.tanh(x), schedules.vp_linear(), predicts="eps")
    expected = ulam.sample(denoiser, sampler, shape=SHAPE[1:], chains=[4, 2, 9], seed=7, progress=False)
    assert (x - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_noise_v1_of_the_score_sde() -> None:
    """The predictor's noise is that of its row, stage 0; the corrector's is of the stages before it."""
    scheduler = fuse(diffusers.ScoreSdeVeScheduler(num_train_timesteps=8), noise="noise-v1", seed=3)
    x, zero = torch.zeros(SHAPE), torch.zeros(SHAPE)
    for row, i in enumerate(range(7, 4, -1)):
        for stage in (1, 2):
            z = ulam.noise.normal(SHAPE[1:], seed=3, chains=3, row=row, stage=stage)
            moved = scheduler.step_correct(z, zero).prev_sample
            torch.testing.assert_close(moved, (2 * 0.15**2 + 2 * 0.15) * z, rtol=1e-5, atol=1e-6)
        g = (scheduler.discrete_sigmas[i] ** 2 - scheduler.discrete_sigmas[i - 1] ** 2) ** 0.5
        x = scheduler.step_pred(zero, scheduler.timesteps[row], zero).prev_sample
        torch.testing.assert_close(x, g * ulam.noise.normal(SHAPE[1:], seed=3, chains=3, row=row), rtol=1e-5, atol=1e-5)


def test_chains_must_be_as_many_as_samples() -> None:
    scheduler = fuse(diffusers.DDPMScheduler(), noise="noise-v1", chains=2)
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="chains must have one id a sample of the batch, got 2 for 3 samples"):
        scheduler.step(x, 500, x)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("DDPMScheduler", {"variance_type": "other"}, "variance_type='other' of the scheduler is not supported"),
        ("LCMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0, "sample_max_value": 2}, "_ratio=0 of"),
        ("DDIMScheduler", {"prediction_type": "flow"}, "prediction_type='flow' of the scheduler is not supported"),
        ("KDPM2DiscreteScheduler", {"prediction_type": "flow"}, "prediction_type='flow'"),
        ("PNDMScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "needs use_flow_sigmas=True"),
        ("UniPCMultistepScheduler", {"solver_p": diffusers.DDIMScheduler()}, "solver_p='DDIMScheduler'"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
    ],
)
def test_unsupported_options_are_named(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(make(name, **config))


def test_other_arguments_are_refused() -> None:
    class OwnStep(diffusers.DDIMScheduler):
        def step(self, *args: Any, **kwargs: Any) -> Any: ...

    with pytest.raises(TypeError, match="scheduler must have the step of diffusers, OwnStep has one of its own"):
        fuse(OwnStep())
    with pytest.raises(TypeError, match="scheduler must be of one of the classes DDPMScheduler"):
        fuse(diffusers.IPNDMScheduler())
    with pytest.raises(TypeError, match="scheduler must be a scheduler of diffusers, got DDIM"):
        fuse(DDIM(10))
    with pytest.raises(ValueError, match="noise must be one of torch, noise-v1, got 'gpu'"):
        fuse(diffusers.DDIMScheduler(), noise="gpu")
    with pytest.raises(ValueError, match="Number of inference steps is 'None'"):
        fuse(diffusers.DDIMScheduler()).step(torch.zeros(SHAPE), 5, torch.zeros(SHAPE))


def test_a_class_that_leaves_step_as_it_is_can_be_fused() -> None:
    class Named(diffusers.DDIMScheduler):
        pass

    assert isinstance(fuse(Named()), Named)
    assert_same_loops(loop(fuse(Named()), 10), loop(diffusers.DDIMScheduler(), 10))


def test_learned_variance_needs_twice_the_channels() -> None:
    scheduler = fuse(diffusers.DDPMScheduler(variance_type="learned_range"))
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="model_output must have 6 channels"):
        scheduler.step(x, 500, x)


def test_nan_variances_of_diffusers_are_right_here() -> None:
    """fixed_large_log is beta's standard deviation; diffusers takes the root of its logarithm."""
    x = torch.ones(SHAPE)
    samples = []
    for variance in ("fixed_large", "fixed_large_log"):
        scheduler = fuse(diffusers.DDPMScheduler(variance_type=variance))
        samples.append(scheduler.step(x, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample)
    assert torch.equal(*samples)


def test_ulam_imports_without_diffusers() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None; import ulam, ulam.integrations.diffusers as bridge\n"
        "try: bridge.fuse\nexcept ImportError as error: assert \"pip install 'ulam[diffusers]'\" in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
