"""A network in training mode is evaluated in eval mode and goes back, however a function hides the module."""

from __future__ import annotations

import functools

import pytest
import torch

import ulam
from ulam.samplers import DDPM

SCHEDULE = ulam.schedules.vp_linear(10)
Y = torch.ones(4, 3)


class Net(torch.nn.Module):
    """Tells whether any part of it is in training mode when it is called."""

    def __init__(self):
        super().__init__()
        self.dropout, self.seen = torch.nn.Dropout(0.5), set()

    def forward(self, x, *_, **__):
        self.seen.add(self.training or self.dropout.training)
        return self.dropout(x) * 0.5

    def energy(self, x, *_, **__):
        return (self(x) * x).sum(1)


class Holder:
    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments, **named):
        return self.function(*arguments, **named)


class Plain:
    """Not callable itself."""

    def __init__(self, function):
        self.function = function

    def call(self, *arguments, **named):
        return self.function(*arguments, **named)


GLOBAL = Net()
HIDDEN = {
    "as it is": lambda function: function,
    "lambda": lambda function: lambda *arguments, **named: function(*arguments, **named),
    "partial": lambda function: functools.partial(function),
    "object": Holder,
    "method": lambda function: Plain(function).call,
    "default": lambda function: lambda x, *rest, f=function, **named: f(x, *rest, **named),
    "twice": lambda function: Holder(functools.partial(lambda *arguments, **named: function(*arguments, **named))),
}
STEPS = {"x_init": Y, "steps": 2, "seed": 1}
USES = {
    "sample": lambda f, energy: ulam.sample(ulam.Denoiser(f, SCHEDULE), DDPM(), (3,), 4, progress=False),
    "energy": lambda f, energy: ulam.mcmc.run(ulam.Energy(energy), ulam.mcmc.ULA(0.1), **STEPS),
    "score": lambda f, energy: ulam.mcmc.run(ulam.mcmc.Score(f), ulam.mcmc.ULA(0.1), **STEPS),
    "its score": lambda f, energy: ulam.mcmc.run(
        ulam.Energy(lambda x: x.square().sum(1), score=f), ulam.mcmc.MALA(0.1), **STEPS
    ),
    "Tweedie": lambda f, energy: ulam.tweedie.mean(ulam.Denoiser(f, SCHEDULE), Y, sigma=0.2),
    "SURE": lambda f, energy: ulam.sure.estimate(f, Y, sigma=0.2),
    "bound": lambda f, energy: ulam.bounds.vlb(ulam.Denoiser(f, SCHEDULE), Y),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_it_is_evaluated_in_eval_mode_and_goes_back(hidden, use):
    net = Net().train()
    hide = HIDDEN[hidden]
    USES[use](hide(net), hide(net.energy))
    assert net.seen == {False}
    assert net.training and net.dropout.training


def test_a_module_of_the_functions_globals_too():
    GLOBAL.train()
    USES["sample"](lambda x, t: GLOBAL(x), None)
    assert GLOBAL.seen == {False} and GLOBAL.training


def test_a_frozen_script_which_knows_no_mode_is_called_as_it_is():
    frozen = torch.jit.freeze(torch.jit.script(torch.nn.Linear(3, 3).eval()))
    x = ulam.sample(ulam.Denoiser(lambda x, t: frozen(x), SCHEDULE), DDPM(), (3,), 4, progress=False)
    assert x.isfinite().all()
