"""Networks that take gradients inside, results that carry none, and scores that hide their derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import network_zoo
import ulam
from derivative_cases import close, differences
from engine_cases import SCHEDULE
from network_zoo import HIDING, Hidden
from ulam import Denoiser, NetworkOptions, objectives, sure, tweedie
from ulam.estimation.derivatives import Derivatives
from ulam.estimation.estimator import Estimator
from ulam.gradients import without_graph
from ulam.samplers import DDIM, DDPM, ULA, RePaint

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SHAPE = (6,)
OPTIONS = NetworkOptions(gradients=True)
HINT = r"^net: got one that takes gradients inside \(RuntimeError: .*\), expected options=ulam.NetworkOptions"


class Guided(nn.Module):
    """eps(x) - s grad log p(label | x), the gradient by autograd [Dhariwal & Nichol 2021]."""

    shape = SHAPE

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.eps, self.classifier, self.form = network_zoo.MLP(F.silu), nn.Linear(6, 3), form
        self.modes: set[tuple[bool, bool]] = set()

    def logits(self, x):
        return self.classifier(x.tanh()).log_softmax(1)[:, 0].sum()

    def forward(self, x, t):
        self.modes.add((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        if self.form == "plain":
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(self.logits(x), x)
        elif self.form == "enabled":  # right under no_grad, not under inference_mode
            with torch.enable_grad():
                at = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.logits(at), at)
        else:  # differentiable: what tweedie and sure need
            at = x if x.requires_grad else x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.logits(at), at, create_graph=True)
        return self.eps(x, t) - 0.5 * gradient


class Spelled(Guided):
    """The same by the formula of the gradient."""

    def forward(self, x, t):
        chance = self.classifier(x.tanh()).softmax(1)
        wanted = self.classifier.weight[0] - chance @ self.classifier.weight
        return self.eps(x, t) - 0.5 * wanted * (1 - x.tanh() ** 2)


def draw(net, sampler=DDIM(5), **options):  # noqa: B008
    return ulam.sample(Denoiser(net, SCHEDULE), sampler, SHAPE, 5, seed=3, progress=False, **options)


@pytest.mark.parametrize("form", ["plain", "enabled", "differentiable"])
@pytest.mark.parametrize("sampler", [DDIM(5), DDPM(4)], ids=["ddim", "ddpm"])
def test_a_network_may_take_gradients_with_the_option(form, sampler) -> None:
    net = Guided(form).requires_grad_(form != "enabled")
    x = draw(net, sampler, options=OPTIONS)
    torch.testing.assert_close(x, draw(Spelled(form), sampler), rtol=1e-4, atol=1e-5)
    assert net.modes == {(False, True)} and not x.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    with torch.inference_mode():
        assert torch.equal(draw(net, sampler, options=OPTIONS), x)


@pytest.mark.parametrize("form", ["plain", "enabled", "differentiable"])
def test_without_the_option_one_line_says_what_to_pass(form) -> None:
    with pytest.raises(ulam.NetworkError, match=HINT) as told:
        draw(Guided(form))
    assert "\n" not in str(told.value) and told.value.wants_gradients and "chains 0, 1, 2, 3, 4" in str(told.value)
    engine = ulam.Engine(Denoiser(Guided(form), SCHEDULE), SHAPE, 2)
    engine.submit(DDIM(3), 4)
    with pytest.raises(ulam.NetworkError, match=HINT):
        engine.run()


def test_other_errors_say_nothing_of_gradients() -> None:
    def broken(x, t):
        raise RuntimeError("does not require grad")

    with pytest.raises(ulam.NetworkError, match="does not require grad") as told:
        draw(broken, options=OPTIONS)  # it has them already
    assert not told.value.wants_gradients and "NetworkOptions" not in str(told.value)


@pytest.mark.parametrize("change", [{"doubled": True}, {"channels_last": True}, {"autocast": torch.bfloat16}])
def test_the_option_goes_with_the_others(change) -> None:
    net = Guided("plain")
    options = NetworkOptions(**change, gradients=True)
    by_formula = draw(Spelled("plain"), options=NetworkOptions(**change))
    tolerance = 2e-2 if "autocast" in change else 1e-5
    torch.testing.assert_close(draw(net, options=options), by_formula, rtol=tolerance, atol=tolerance)


def test_guided_chains_and_parts_of_a_batch_have_gradients_too() -> None:
    net = Guided("plain")

    def conditional(x, t, w):
        return net(x, t) * w[:, None]

    kept = {"cond": {"w": torch.ones(5)}, "uncond": {"w": torch.zeros(5)}, "guidance": 2.0}
    x = draw(conditional, options=OPTIONS, **kept)
    torch.testing.assert_close(x, draw(lambda x, t, w: Spelled("")(x, t) * w[:, None], **kept), rtol=1e-4, atol=1e-5)
    engine = ulam.Engine(Denoiser(net, SCHEDULE), SHAPE, 5, options=OPTIONS)
    engine._runner.network.batch = 2  # as after running out of memory
    job = engine.submit(DDIM(5), 5, seed=3)
    torch.testing.assert_close(engine.run()[job], draw(net, options=OPTIONS), rtol=1e-4, atol=1e-5)


def test_the_engines_states_are_its_own() -> None:
    """A network that makes its input require grad, or writes into it, does not reach the engine's states."""
    seen = []

    def keeping(x, t):
        seen.append(x.requires_grad_())
        return torch.autograd.grad((x**3).sum(), x)[0] * 0.01

    engine = ulam.Engine(Denoiser(keeping, SCHEDULE), SHAPE, 2, options=OPTIONS)
    job = engine.submit(DDIM(3), 2)
    engine.run()
    assert not any(buffer.requires_grad for buffer in (engine._runner.buffers.state, engine._runner.buffers.t))
    assert job.program.nfe == len(seen) == 3

    def writing(x, t):
        return x.mul_(2)

    with pytest.raises(ValueError, match="net: got its input x changed in place"):
        draw(writing, options=OPTIONS)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="gradients: got 1, expected True or False"):
        NetworkOptions(gradients=1)


def test_the_command_has_the_option(tmp_path, capsys, monkeypatch) -> None:
    from ulam.cli import main as cli

    (tmp_path / "guided.py").write_text(
        "import torch\ndef make():\n    def net(x, t):\n        x = x.requires_grad_()\n"
        "        return torch.autograd.grad(x.pow(2).sum() / 2, x)[0]\n    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["sample", "--model", "guided:make", "--shape", "3,4,4", "--chains", "2", "--steps", "2", "--out", "out"]
    assert cli.main(command) != 0 and "NetworkOptions(gradients=True)" in capsys.readouterr().err
    assert cli.main([*command, "--gradients"]) == 0


# ------------------------------------------------------------------------------- outside the engine


def test_what_a_denoiser_knows_of_a_network_with_gradients_inside() -> None:
    net, spelled = Guided("differentiable").double(), Spelled("").double()
    net.load_state_dict(spelled.state_dict())
    y, v = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = Denoiser(net, SCHEDULE), Denoiser(spelled, SCHEDULE)
    for use in (
        lambda d: tweedie.mean(d, y, 0.5),
        lambda d: tweedie.covariance_product(d, y, 0.5, v),
        lambda d: tweedie.third_cumulant(d, y, 0.5, v),
        lambda d: sure.estimate(d, y, 0.5).per_chain,
        lambda d: ulam.bounds.likelihood(d, y, steps=2).log_prob,
        lambda d: ulam.mcmc.run(
            ulam.mcmc.DenoiserScore(d, 0.5), ULA(0.01), chains=4, steps=3, x_init=y, seed=0, progress=False,
            dtype=torch.float64,
        ).x,
    ):  # fmt: skip
        torch.testing.assert_close(use(ours), use(theirs), rtol=1e-9, atol=1e-9)
        with torch.inference_mode():
            torch.testing.assert_close(use(ours), use(theirs), rtol=1e-9, atol=1e-9)
    assert ours.modes == {"first": "reverse", "second": "reverse"}


@pytest.mark.parametrize("form", ["plain", "enabled"])
def test_a_gradient_that_cannot_be_differentiated_is_refused(form) -> None:
    denoiser = Denoiser(Guided(form), SCHEDULE)
    y = torch.randn(4, 6)
    expected = tweedie.mean(Denoiser(Spelled(form), SCHEDULE), y, 0.5)
    torch.testing.assert_close(tweedie.mean(denoiser, y, 0.5), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match=r"net: got Guided, .* create_graph=True where autograd.grad is called"):
        sure.estimate(denoiser, y, 0.5)


def test_the_bound_of_a_network_with_gradients_inside() -> None:
    x = torch.rand(3, 1, 4, 4) * 2 - 1

    def net(x, t):
        x = x.requires_grad_()
        return torch.autograd.grad(x.pow(2).sum() / 2, x)[0]

    ours, theirs = (
        ulam.bounds.vlb(Denoiser(f, SCHEDULE), x, timesteps=[0, 500, 999]) for f in (net, lambda x, t: x * 1.0)
    )
    assert torch.equal(ours.per_chain, theirs.per_chain)


def test_scores_may_take_gradients() -> None:
    def score(x):
        x = x.requires_grad_()
        return torch.autograd.grad(-(x**2).sum() / 2, x)[0]

    run = {"chains": 3, "steps": 4, "shape": (2,), "progress": False}
    ours = ulam.mcmc.run(ulam.mcmc.Score(score), ULA(0.1), **run)
    assert torch.equal(ours.draws, ulam.mcmc.run(ulam.mcmc.Score(lambda x: -x), ULA(0.1), **run).draws)


# ----------------------------------------------------------------------------------- results without a gradient


def wanting(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).requires_grad_()


def identity(x, t, c=None):
    return x if c is None else x + c.view(-1, *[1] * (x.dim() - 1))


MODEL = Denoiser(identity, SCHEDULE)
IMAGE = (3, 1, 4, 4)


@pytest.mark.parametrize("name", ["y", "sigma", "v", "cond['c']"])
def test_inputs_that_require_grad_are_refused_where_no_gradient_flows(name) -> None:
    given = {"y": torch.randn(3, 6), "sigma": torch.full((3,), 0.5), "v": torch.ones(3, 6), "c": torch.zeros(3)}
    given[name if name in given else "c"].requires_grad_()
    y, sigma, v, cond = given["y"], given["sigma"], given["v"], {"c": given["c"]}
    calls = [
        lambda: tweedie.covariance_product(MODEL, y, sigma, v, cond),
        lambda: tweedie.third_cumulant(MODEL, y, sigma, v, cond),
    ]
    if name != "v":
        calls += [
            lambda: sure.estimate(MODEL, y, sigma, cond),
            lambda: tweedie.covariance_diagonal(MODEL, y, sigma, cond),
            lambda: tweedie.covariance_trace(MODEL, y, sigma, cond),
            lambda: tweedie.eigenpairs(MODEL, y, sigma, 1, cond),
        ]
    for call in calls:
        with pytest.raises(RuntimeError) as told:
            call()
        assert str(told.value).startswith(f"{name}: got a tensor that requires grad, but ")
        assert "\n" not in str(told.value)
        with torch.no_grad():
            call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: ulam.bounds.likelihood(MODEL, wanting(3, 6), steps=1)),
        ("cond", lambda: ulam.bounds.likelihood(MODEL, torch.zeros(3, 6), {"c": wanting(3)}, steps=1)),
        ("x_0", lambda: ulam.bounds.vlb(MODEL, wanting(*IMAGE).tanh(), timesteps=[0, 9])),
        ("cond", lambda: ulam.bounds.vlb(MODEL, torch.zeros(IMAGE), {"c": wanting(3)}, timesteps=[0, 9])),
        ("x", lambda: list(ulam.estimation.measure.measure(MODEL, wanting(4, 6), [0.5]))),
        ("x_init", lambda: draw(identity, x_init=wanting(5, 6))),
        ("x_init", lambda: draw(identity, x_init=ulam.shared(wanting(6)))),
        ("cond", lambda: draw(identity, cond={"c": wanting(5)})),
        ("cond", lambda: draw(lambda x, t, c: x + c, cond={"c": ulam.shared(wanting(6))})),
        ("guidance", lambda: draw(identity, guidance=wanting(5), cond={"c": torch.ones(5)}, uncond={})),
        ("known", lambda: draw(identity, RePaint(4, 2, 2), known=wanting(5, 6), mask=torch.ones(5, 6))),
        ("x_init", lambda: ulam.mcmc.run(ulam.Energy(lambda x: x.sum(1)), ULA(0.1), x_init=wanting(4, 2), steps=1)),
    ],
)
def test_what_else_carries_no_gradient_refuses_to_lose_one(name, call) -> None:
    with pytest.raises(RuntimeError) as told:
        call()
    assert str(told.value).startswith(name) and "requires grad, but " in str(told.value)
    assert "expected its .detach(), or a call under torch.no_grad()" in str(told.value)


def test_what_is_no_conditioning_is_refused_for_its_type() -> None:
    """Also where it requires grad: to detach it would not help."""
    wrong = wanting(3)
    with pytest.raises(TypeError, match=r"^cond: got .*, expected a dict of tensors"):
        ulam.sample(MODEL, DDIM(2), SHAPE, 3, 0, cond=wrong)
    with pytest.raises(TypeError, match=r"^cond: got .*, expected tensors by name"):
        tweedie.mean(MODEL, torch.ones(3, 6), 0.5, wrong)


def test_parameters_that_require_grad_are_no_reason_to_refuse() -> None:
    net = network_zoo.MLP(F.silu)
    y = torch.randn(3, 6)
    assert not sure.estimate(Denoiser(net, SCHEDULE), y, 0.5).per_chain.requires_grad
    assert not draw(net).requires_grad


def test_the_posterior_mean_is_differentiable_in_y() -> None:
    net = network_zoo.MLP(F.silu).double()
    y = torch.randn(3, 6, dtype=torch.float64)
    denoiser = Denoiser(net, SCHEDULE)
    assert not tweedie.mean(denoiser, y, 0.5).requires_grad
    y.requires_grad_()
    mean, v = tweedie.mean(denoiser, y, 0.5), torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(mean, tweedie.mean(denoiser, y.detach(), 0.5))
    (gradient,) = torch.autograd.grad(mean, y, v, retain_graph=True)
    image = Derivatives(Estimator(Denoiser(net, SCHEDULE, derivatives="reverse"), y, 0.5), y).image(v)
    torch.testing.assert_close(gradient, image, rtol=1e-12, atol=1e-14)
    mean.sum().backward()
    assert net.last.weight.grad.any()
    with torch.no_grad():
        assert not tweedie.mean(denoiser, y, 0.5).requires_grad


# -------------------------------------------------------------------------------------- score matching


LOSSES = {
    "implicit": objectives.implicit_score_matching,
    "sliced": lambda score, x: objectives.sliced_score_matching(score, x, step=0),
}


@pytest.mark.parametrize("how", HIDING)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_score_that_hides_its_derivative_is_refused(how, loss) -> None:
    torch.manual_seed(0)
    for whole in (True, False):
        net = Hidden(HIDING[how], 1.0, whole)
        with pytest.raises(TypeError, match=r"^score: got <lambda>, whose derivative in x .* off finite") as told:
            LOSSES[loss](lambda x, net=net: net(x, None), torch.randn(20, 6))
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_score_is_looked_into_once_and_nothing_is_disturbed(loss) -> None:
    torch.manual_seed(0)
    calls: list[tuple[int, bool]] = []

    class Score(nn.Sequential):
        def forward(self, x):
            calls.append((len(x), self.training))
            return super().forward(x)

    net = Score(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 6))
    x = torch.randn(20, 6)
    drawn, before = torch.get_rng_state(), net[1].running_mean.clone()
    for _ in range(2):
        torch.set_rng_state(drawn)
        net[1].running_mean.copy_(before)
        value, moved = LOSSES[loss](lambda x: net(x), x), net[1].running_mean.clone()
        if len(calls) > 1:  # the first time
            first = value
            assert calls[-1] == (20, True) and all(call == (8, False) for call in calls[:-1])
        calls.clear()
    assert torch.equal(value, first)
    plain = 0.9 * before + 0.1 * net[0](x).mean(0)
    torch.testing.assert_close(moved, plain.detach())  # one step of its statistics


def test_a_score_that_is_0_until_it_is_trained_is_looked_into_again() -> None:
    net = nn.Linear(6, 6)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    hiding = lambda x: net(x.detach())  # noqa: E731
    assert not objectives.sliced_score_matching(hiding, torch.randn(20, 6), step=0).any()
    nn.init.eye_(net.weight)
    with pytest.raises(TypeError, match="score: got <lambda>"):
        objectives.sliced_score_matching(hiding, torch.randn(20, 6), step=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_score_matching_gives_no_gradient_in_x(loss) -> None:
    with pytest.raises(RuntimeError, match=r"^x: got a tensor that requires grad, but score matching in x"):
        LOSSES[loss](lambda x: -x, torch.randn(4, 2, requires_grad=True))


def test_right_derivatives_of_a_guided_network_are_those_of_differences() -> None:
    net = Guided("differentiable").double()
    y, v = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    estimator = Estimator(Denoiser(net, SCHEDULE), y, 0.5)
    first, second = differences(lambda at: without_graph(estimator, at), y, v)
    derivatives = Derivatives(estimator, y)
    close(derivatives.product(v), first, 1e-7)
    close(derivatives.second(v), second, 1e-5)
