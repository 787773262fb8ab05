"""Names from elsewhere on the command line and in TOML files of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ulam import samplers
from ulam.jobs.models import load_model
from ulam.jobs.tables import make_sampler, read_jobs, samplers_by_name
from ulam.samplers import named


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("dpmpp_2m_sde_heun", {"steps": 20, "sigmas": "karras"}, named("dpmpp_2m_sde_heun", 20, sigmas="karras")),
        ("DPM++ 2M Karras", {}, named("DPM++ 2M Karras", 50)),
        ("DPM++ 2M", {"steps": 9, "sigmas": "SGM Uniform"}, named("DPM++ 2M", 9, sigmas="sgm_uniform")),
        ("euler_ancestral", {"steps": 9, "eta": 0.5}, samplers.EulerAncestral(9, eta=0.5)),
        ("res_multistep", {"sigmas": [3.0, 1.0, 0.0]}, samplers.RESMultistep(sigmas=(3.0, 1.0, 0.0))),
        ("uni_pc", {"timesteps": [900, 300]}, samplers.UniPC(timesteps=(900, 300), order=3, variant="bh1", final=1e-3)),
        ("dpmpp_2m", {"steps": 9, "sigmas": "beta"}, named("dpmpp_2m", 9, sigmas="beta-time")),
        # exactly ComfyUI's names are ComfyUI's, and then come the classes
        ("euler", {"steps": 9, "sigmas": "beta"}, samplers.Euler(9, sigmas="beta-time")),
        ("Euler", {"steps": 9, "sigmas": "beta"}, samplers.Euler(9, sigmas="beta")),
        ("DEIS", {"steps": 9}, samplers.DEIS(9)),
        ("deis", {"steps": 9}, samplers.LMS(9, order=3, polynomial="vp-time")),
        ("sample_deis", {"steps": 9}, named("deis", 9)),
        ("DDIM", {"steps": 9}, samplers.DDIM(9)),
        (
            "dpmpp_3m_sde_gpu",
            {"steps": 9, "threshold": 0.9},
            named("dpmpp_3m_sde", 9, clip=samplers.DynamicThreshold(0.9)),
        ),
    ],
)
def test_a_job_takes_names_from_elsewhere(name: str, arguments: dict[str, object], expected: object) -> None:
    assert make_sampler(name, arguments) == expected


def test_a_file_of_jobs_takes_them_too(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(
        '[[job]]\nsampler = "DPM++ 2M SDE Karras"\nsteps = 7\nchains = 2\n'
        '[[job]]\nsampler = "seeds_2"\nsigmas = "exponential"\nsteps = 5\nchains = 2\n'
    )
    specs = read_jobs(tmp_path / "jobs.toml", {}, load_model("digits"), torch.device("cpu"))
    assert [spec.sampler for spec in specs] == [
        named("DPM++ 2M SDE Karras", 7), samplers.SEEDS(5, sigmas="exponential")
    ]  # fmt: skip


def test_a_name_that_is_not_known_gets_the_three_nearest() -> None:
    for name, near in (("dpmpp_2m_sd", "dpmpp_2m_sde"), ("eulerancestrl", "eulerancestral"), ("unipcc", "unipc")):
        with pytest.raises(
            ValueError, match=rf"^sampler: got '{name}', expected a known sampler, such as \S"
        ) as caught:
            make_sampler(name, {"steps": 5})
        assert near in str(caught.value) and str(caught.value).count(",") >= 2 and " or " in str(caught.value)
    with pytest.raises(ValueError, match=r"^sampler: got 'dpm_adaptive', expected dpm_fast"):
        make_sampler("dpm_adaptive", {"steps": 5})
    with pytest.raises(ValueError, match=r"^sigmas: got 'karas', expected one of .* mean karras"):
        make_sampler("dpmpp_2m", {"sigmas": "karas"})
    with pytest.raises(
        ValueError, match=r"^churns: got 1, expected an argument of the sampler sample_heun: .* mean churn"
    ):
        make_sampler("sample_heun", {"churns": 1})
    assert all(type(make_sampler(name, {"steps": 2})).__name__.lower() == name for name in ("euler", "heun", "lms"))
    assert "dpmpp_2m" not in samplers_by_name()
