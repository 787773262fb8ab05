"""The CUDA graph path without a GPU: a stub records what a capture would hold, and replays it.

Shown here is that a whole tick goes into one graph and that replaying what was captured, on the same buffers, gives the
bits of the eager run. That CUDA captures and replays it is shown where there is a GPU.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from engine_cases import SCHEDULE, SHAPE, WHOLE, net
from torch.utils._python_dispatch import TorchDispatchMode

import ulam
import ulam.guard
import ulam_kernels
from ulam.graphs import TickGraphs
from ulam.samplers import DDIM, DDPM, PredictorCorrector

KERNELS = ("step", "reduce", "blend")


class StubGraph:
    """The operations of a capture, in order, with the very tensors that they read and write."""

    def __init__(self):
        self.calls, self.replays = [], 0

    @property
    def names(self):
        return [name for name, *_ in self.calls]

    def replay(self):
        self.replays += 1
        for _, function, arguments, named, outputs in self.calls:
            results = torch.utils._pytree.tree_leaves(function(*arguments, **named))
            for result, output in zip(results, outputs, strict=True):
                own = isinstance(output, torch.Tensor) and result.data_ptr() != output.data_ptr()
                if own:  # in a graph's memory pool an output has one place
                    output.copy_(result)

    def pool(self):
        return "pool"


class Recorder(TorchDispatchMode):
    """Writes every operation into the graph under capture; fused operations go in whole."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.inside = graph, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.inside:
            self.graph.calls.append((func._schema.name, func, args, kwargs, torch.utils._pytree.tree_leaves(out)))
        return out

    def fused(self, name, function):
        def call(*arguments, **named):
            self.inside = True
            try:
                function(*arguments, **named)
            finally:
                self.inside = False
            self.graph.calls.append((f"ulam::{name}", function, arguments, named, [None]))

        return call


@pytest.fixture
def captured(monkeypatch):
    """Engines on the CPU that take the GPU's path over the stub; the list of graphs, and of pools asked for."""
    graphs, pools, buffers = [], [], []

    def new_graph():
        graphs.append(StubGraph())
        return graphs[-1]

    @contextlib.contextmanager
    def capture(graph, pool=None):
        pools.append(pool)
        recorder, before = Recorder(graph), [(buffer, buffer.clone()) for buffer in buffers[-1]()]
        with monkeypatch.context() as patch, recorder:
            for name in KERNELS:
                patch.setattr(ulam_kernels, name, recorder.fused(name, getattr(ulam_kernels, name)))
            yield
        for buffer, values in before:  # a capture executes nothing
            buffer.copy_(values)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(ulam.guard, "_sum_is_finite", lambda m: False)  # the CPU's shortcut reads a value

    def engine(network=net, slots=4, **options):
        made = ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, slots, **options)
        runner = made._runner
        runner.graphs = TickGraphs(torch.device("cpu"), made.report)
        buffers.append(
            lambda: [b for b in (runner.state, runner.net_in, runner.t, *runner.slots._live) if b is not None]
        )
        return made

    return engine, graphs, pools


def test_the_whole_tick_is_one_graph_and_replays_to_the_same_bits(captured):
    make, graphs, _ = captured
    engine = make()
    job = engine.submit(DDPM(steps=11), 12, seed=5)
    assert torch.equal(engine.run()[job], WHOLE[:12])
    (graph,) = graphs
    assert graph.replays == engine.report.ticks - 1, "the first tick warms up, the second is captured and replayed"
    names = graph.names
    order = ["aten::index_select", "aten::tanh", "aten::isfinite", "aten::masked_fill_", "ulam::step", "aten::add_"]
    places = [names.index(name) for name in order]
    assert places == sorted(places), "times, network, check, fused step, cursor"
    assert names[-1] == "aten::add_" and names.count("ulam::step") == 1


def test_each_kind_of_tick_has_its_graph_in_one_pool(captured):
    make, graphs, pools = captured
    engine = make()
    y, null = {"y": torch.arange(6.0)}, {"y": torch.full((6,), 10.0)}
    engine.submit(DDIM(steps=9), 4, 5, cond={"y": torch.arange(4.0)})
    engine.submit(DDIM(steps=9), 6, 5, cond=y, uncond=null, guidance=2.0)
    engine.submit(DDIM(steps=9), 6, 5, cond=y, uncond=null, guidance=2.0, guidance_interval=(200.0, 600.0))
    engine.submit(PredictorCorrector(steps=4), 6, 5, cond=y)
    results = engine.run()
    plain = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, 4)
    for job in results:
        again = plain.submit(
            _Compiled(job.program), len(job.chains), 5, job.cond, job.guidance, job.uncond or None,
            guidance_interval=job.interval,
        )  # fmt: skip
        assert torch.equal(plain.run()[again], results[job])
    assert len(graphs) >= 4 and set(pools[1:]) == {"pool"} and pools[0] is None
    assert sum("ulam::reduce" in graph.names for graph in graphs) >= 1
    assert not engine.report.fallbacks


class _Compiled:
    def __init__(self, program):
        self.compiled = program

    def program(self, schedule, predicts="eps"):
        return self.compiled


def test_chains_that_fail_are_caught_inside_the_graph(captured):
    make, graphs, _ = captured
    time = float(DDPM(steps=11).program(SCHEDULE, "eps").time[6])

    def network(x, t, y):
        bad = (y == 1) & (t == time)
        return net(x, t).masked_fill(bad.view(-1, 1, 1, 1), float("nan"))

    engine = make(network)
    engine.submit(DDPM(steps=11), 4, seed=5, cond={"y": torch.arange(4)})
    results = {r.chain: r for r in engine.stream()}
    assert graphs[0].replays == 10
    assert [results[c].failed for c in range(4)] == [None, 6, None, None]
    assert all(torch.equal(results[c].x, WHOLE[c]) for c in (0, 2, 3))


def test_a_capture_that_fails_is_told_once_and_runs_eagerly(captured, monkeypatch):
    make, graphs, _ = captured

    @contextlib.contextmanager
    def refuse(graph, pool=None):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    engine = make()
    job = engine.submit(DDPM(steps=11), 12, seed=5)
    assert torch.equal(engine.run()[job], WHOLE[:12]) and graphs[0].replays == 0
    assert engine.report.fallbacks == (
        "no CUDA graph, ticks run eagerly: RuntimeError: operation not permitted when stream is capturing",
    )


def test_another_program_makes_the_graphs_anew(captured):
    """Loading moves the tables, so what was captured is dropped."""
    make, graphs, _ = captured
    engine = make()
    engine.submit(DDPM(steps=11), 4, seed=5)
    engine.run()
    job = engine.submit(DDPM(steps=7), 4, seed=5)
    again = engine.submit(DDPM(steps=11), 4, seed=5)
    results = engine.run()
    assert len(graphs) == 2 and torch.equal(results[again], WHOLE[:4])
    plain = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, 4)
    alone = plain.submit(DDPM(steps=7), 4, seed=5)
    assert torch.equal(results[job], plain.run()[alone])


def test_previews_and_noise_of_the_caller_run_eagerly(captured):
    make, graphs, _ = captured
    engine = make()

    def noise(row, chains):
        return ulam.noise.normal(SHAPE, seed=5, chains=chains, row=row)

    seen = []
    job = engine.submit(DDPM(steps=11), 4, seed=5, noise=noise)
    other = engine.submit(DDPM(steps=11), 4, seed=5, callback=seen.append)
    results = engine.run()
    assert torch.equal(results[job], WHOLE[:4]) and torch.equal(results[other], WHOLE[:4])
    assert len(seen) == 11 and not graphs
