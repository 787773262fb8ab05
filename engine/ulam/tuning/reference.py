"""What candidates are measured against: eager code's samples, and its outputs on the states of their trajectory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from ..engine.errors import NetworkError
from ..engine.tuned import Candidate
from ..files import one_line
from .trial import Call, Failed, Recorder, Setting, Trial

ROWS = 4  # of the trajectory, whose outputs are compared
WIDE_CHAINS = 8  # that are also evaluated in float64
ROUNDING = 3.0  # times eager's own error, which accuracy "fp32" allows


@dataclass(frozen=True)
class Reference:
    """Eager code's results, all on the CPU. calls come in pairs where there is guidance. wide: outputs in float64 of
    the first chains of each call, and eager's largest error against them; None where nobody asks.
    """

    calls: list[Call]
    outputs: list[torch.Tensor]
    samples: torch.Tensor
    wide: tuple[list[torch.Tensor], float] | None

    def row_error(self, outputs: list[torch.Tensor]) -> float:
        """The worst relative error of the calls' outputs against eager's."""
        return max(relative(ours, eager) for ours, eager in zip(outputs, self.outputs, strict=True))

    def sample_error(self, samples: torch.Tensor) -> float:
        """The root mean square difference from eager's samples, as a fraction of their range; NaN is infinite."""
        span = float(self.samples.max() - self.samples.min()) or 1.0
        found = float((samples.double() - self.samples.double()).square().mean().sqrt()) / span
        return found if found == found else float("inf")

    def unlike(self, accuracy: str | float, outputs: list[torch.Tensor]) -> str:
        """Why outputs are not of the accuracy; empty if they are. Numbers are of the samples, not of outputs."""
        if accuracy == "exact":
            same = all(torch.equal(ours, eager) for ours, eager in zip(outputs, self.outputs, strict=True))
            return "" if same else "other bits than eager"
        if self.wide is None:
            return ""
        worst = max(relative(ours[: len(wide)], wide) for ours, wide in zip(outputs, self.wide[0], strict=True))
        allowed = ROUNDING * self.wide[1]
        return "" if worst <= allowed else f"error {worst:.1e} against float64, of which {allowed:.1e} is allowed"


def reference(setting: Setting, eager: Candidate, guided: bool, wide: bool) -> Reference:
    """Run the setting eagerly.

    Raises ValueError where ``wide`` is asked for and the network does not run in float64, Failed where it does not
    run at all.
    """
    evaluations = len(setting.program.evaluating)
    rows = {round(k * (evaluations - 1) / max(1, ROWS - 1)) for k in range(ROWS)}
    branches = 2 if guided and not eager.options.doubled and setting.denoiser.guide is None else 1
    wanted = {branches * row + branch for row in rows for branch in range(branches)}
    recorder = Recorder(setting.denoiser.net, wanted)
    samples = Trial(setting, replace(eager, graphs=False), recorder).samples()
    calls = recorder.calls
    outputs = outputs_of(Trial(setting, eager), calls)
    return Reference(calls, outputs, samples, _in_float64(setting, eager, calls, outputs) if wide else None)


def outputs_of(trial: Trial, calls: list[Call]) -> list[torch.Tensor]:
    """A trial's outputs for these calls."""
    return [trial.output(call).cpu() for call in calls]


def relative(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference, relative to the other's; NaN is infinitely wrong."""
    difference = (ours.double() - other.double()).square().mean().sqrt()
    found = float(difference / other.double().square().mean().sqrt().clamp_min(1e-300))
    return found if found == found else float("inf")


def _in_float64(
    setting: Setting, eager: Candidate, calls: list[Call], outputs: list[torch.Tensor]
) -> tuple[list[torch.Tensor], float]:
    net = setting.denoiser.net
    if not isinstance(net, torch.nn.Module):
        raise ValueError("accuracy: got 'fp32' for a network that is no torch.nn.Module, expected 'exact' or a number")
    alone = replace(setting, denoiser=replace(setting.denoiser, guide=None))
    few = replace(eager, slots=min(WIDE_CHAINS, eager.slots), graphs=False)
    try:
        found = outputs_of(Trial(alone, few, copy.deepcopy(net).double()), [_wide(call) for call in calls])
    except (Failed, NetworkError) as error:
        raise ValueError(
            f"accuracy: got 'fp32' for a network that does not run in float64 ({one_line(error.__cause__ or error)}), "
            "expected 'exact' or a number"
        ) from None
    return found, max(relative(eager[: len(wide)], wide) for eager, wide in zip(outputs, found, strict=True))


def _wide(call: Call) -> Call:
    x, t, *inputs = (v.double() if v.is_floating_point() else v for v in (call.x, call.t, *call.inputs.values()))
    return Call(x, t, dict(zip(call.inputs, inputs, strict=True)))
