"""Programs from files that would give a network times outside its schedule."""

from __future__ import annotations

import json
import re

import pytest

from ulam import Denoiser, Program, sample, samplers, schedules
from ulam.samplers import DDIM


@pytest.mark.parametrize(
    "schedule, time, told",
    [
        (schedules.vp_linear(), "index", -5.0),
        (schedules.vp_linear(), "index", 1000.0),
        (schedules.vp_linear(), "auto", 1e300),
        (schedules.ve(0.01, 50.0), "auto", 1e300),
        (schedules.ve(0.01, 50.0), "auto", -1e-3),
        (schedules.edm(), "auto", 1e39),
        (schedules.flow(), "auto", 1.5),
        (schedules.sub_vp(), "auto", 2.0),
    ],
)
def test_times_that_no_network_of_the_schedule_knows_are_refused(schedule, time, told) -> None:
    program = DDIM(3).program(schedule, "x0")
    data = json.loads(program.to_json())
    data["time"][1] = told
    read = Program.from_json(json.dumps(data))
    denoiser = Denoiser(lambda x, t: x, schedule, "x0", time=time)
    with pytest.raises(
        ValueError, match=rf"^time: got {re.escape(str(told))} at row 1 of DDIM.*, expected 0 to "
    ) as got:
        sample(denoiser, read, chains=1, shape=(2,))
    assert "\n" not in str(got.value)
    assert denoiser.program(program) is program


SCHEDULES = (schedules.vp_linear(), schedules.vp_cosine(), schedules.ve(0.01, 50.0), schedules.edm(), schedules.flow(),
             schedules.sub_vp(), schedules.zero_terminal_snr(schedules.vp_linear()))  # fmt: skip
KINDS = sorted(set(samplers.__all__) - {"DynamicThreshold", "Grid", "GridSampler", "named"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_no_program_of_our_own_is_refused(name: str) -> None:
    """Consistency models are told 250 log sigma, which is below 0 for small sigma."""
    taken = 0
    for schedule in SCHEDULES:
        for predicts in ("eps", "x0", "v", "score", "flow", "raw"):
            for steps in (1, 2, 6, 40):
                try:
                    program = getattr(samplers, name)(steps).program(schedule, predicts)
                except ValueError:  # which the sampler itself has a reason for
                    continue
                second = "r" if program.tells_second else None
                assert Denoiser(lambda x, t: x, schedule, predicts, second_time=second).program(program) is program
                taken += 1
    assert taken >= 20
