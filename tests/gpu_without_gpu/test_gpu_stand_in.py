"""The stand-in for CUDA keeps torch's rules: what raises, what is left behind, what waits, what comes too early."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

import ulam_kernels
from gpu_stand_in_waits import WAITS, with_event
from ulam_kernels import Table

pytest_plugins = "gpu_stand_in"
pytestmark = pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")

DEVICE = "cuda:0"


def captured(work, pool=None, **how):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, **how):
        work()
    return graph


def spoilt(work, **how):
    """A capture that a forbidden call has spoilt, as a caller sees it who catches what is raised."""
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(torch.AcceleratorError, match="previous error during capture"), torch.cuda.graph(graph, **how):
        work()
    return graph


# ------------------------------------------------------------------------------------------------ tensors


def test_torch_sees_two_devices_and_its_own_context_managers(gpu):
    assert torch.cuda.is_available() and torch.cuda.device_count() == 2 and torch.cuda.current_device() == 0
    assert torch.cuda.graph.__module__ == "torch.cuda.graphs" and torch.cuda.stream(None).__module__ == "torch.cuda"
    with torch.cuda.device(1):
        assert torch.zeros(1, device="cuda").device.index == 1
    assert torch.zeros(1, device="cuda").device.index == 0


def test_operations_have_the_results_of_the_cpu(gpu):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(72, 4)
    )
    x = torch.randn(2, 3, 5, 5)
    with torch.inference_mode():
        wanted = net(x)
        there = net.to(DEVICE)(x.to(DEVICE))
    assert there.device == torch.device(DEVICE) and torch.equal(there.cpu(), wanted)
    y, z = torch.arange(12.0).view(3, 4), torch.arange(12.0, device=DEVICE).view(3, 4)
    for a in (y, z):
        a[0] = 5.0
        a[:, 1].mul_(2.0)
        a[a > 9] = 0.5
        a[torch.tensor([1, 2], device=a.device), 0] = -1.0
    assert torch.equal(z.cpu(), y) and z[1, 1].item() == y[1, 1]
    assert torch.equal(torch.eye(3, device=DEVICE).cpu(), torch.eye(3))
    assert torch.tensor([[1, 2]], device=DEVICE).tolist() == [[1, 2]]


@pytest.mark.parametrize("inference", [False, True])
def test_views_share_memory_and_versions(gpu, inference):
    x = torch.zeros(4, 3, device=DEVICE)
    with torch.inference_mode(inference):
        row, before = x[1], x._version
        assert row.add_(1) is row and x._version == before + 1
        assert row.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert row.data_ptr() == x.data_ptr() + 12
        assert (x + 1).is_inference() == inference
    assert x.cpu()[1].tolist() == [1, 1, 1]


def test_tensors_of_two_devices_do_not_mix(gpu):
    x, y = torch.zeros(3, device="cuda:0"), torch.zeros(3, device="cuda:1")
    for other in (y, torch.zeros(3)):
        with pytest.raises(RuntimeError, match="found at least two devices"):
            x + other
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    assert (x + torch.tensor(2.0)).tolist() == [2, 2, 2], "a number of the host goes along as an argument"
    assert x.add_(1).to("cuda:1").add_(y).tolist() == [1, 1, 1]


def test_fused_operations_are_one_launch_and_refuse_the_host(gpu):
    x, ones = torch.full((2, 3), 2.0), torch.ones(2)
    wanted = ulam_kernels.affine(x, x, ones, ones)
    there = x.to(DEVICE), x.to(DEVICE), ones.to(DEVICE), ones.to(DEVICE)
    gpu.forget()
    out = ulam_kernels.affine(*there)
    assert [name for name, *_ in gpu.launches] == ["ulam::affine"] and torch.equal(out.cpu(), wanted)
    with pytest.raises(ValueError, match="got a tensor on cpu, expected one on cuda:0"):
        ulam_kernels.affine(there[0], there[1], ones, there[3])
    table = Table(torch.zeros(1, 11, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE), 1)
    row = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    ulam_kernels.step(there[0][None], table, row)
    assert torch.equal(there[0].cpu(), x), "an idle row"


# ------------------------------------------------------------------------------------------------ captures


def test_a_capture_executes_nothing_and_a_replay_all_of_it_where_it_was(gpu):
    x, weight = torch.zeros(3, device=DEVICE), torch.full((3,), 2.0, device=DEVICE)
    outs = []
    graph = captured(lambda: outs.append(x.add_(1) * weight))
    assert x.tolist() == [0, 0, 0]
    graph.replay()
    graph.replay()
    weight.fill_(5.0)
    graph.replay()
    assert x.tolist() == [3, 3, 3] and outs[0].tolist() == [15, 15, 15]
    (record,) = gpu.records
    assert record.names == ["aten::add_", "aten::mul"] and record.replays == 3


def test_a_replay_reads_what_was_captured_where_it_was_even_if_it_is_gone(gpu):
    weights, x = [torch.full((3,), 2.0, device=DEVICE)], torch.ones(3, device=DEVICE)
    graph = captured(lambda: x.mul_(weights[0]))
    weights[0] = torch.full((3,), 7.0, device=DEVICE)  # the memory of the first is anyone's now
    graph.replay()
    assert x.isnan().all()


def test_a_pool_whose_graphs_are_gone_cannot_be_opened_again(gpu):
    x = torch.zeros(3, device=DEVICE)
    graphs = [captured(lambda: x.add_(1))]
    graphs.append(captured(lambda: x.add_(2), graphs[0].pool()))
    pool = graphs[0].pool()
    graphs[0].reset()
    graphs[0] = captured(lambda: x.add_(3), pool)  # the second still uses it
    graphs.clear()
    gc.collect()
    with pytest.raises(RuntimeError, match="use_count > 0 INTERNAL ASSERT FAILED"):
        captured(lambda: x.add_(1), pool)


def test_a_spoilt_capture_leaves_stream_generator_and_allocator_in_it(gpu):
    generator, stream, pool = (
        torch.cuda.default_generators[0],
        torch.cuda.current_stream(),
        torch.cuda.graph_pool_handle(),
    )
    x, before = torch.zeros(3, device=DEVICE), generator.clone_state()
    spoilt(lambda: x.sum().item(), pool=pool)
    assert torch.cuda.current_stream() == torch.cuda.graph.default_capture_stream != stream
    assert not torch.cuda.is_current_stream_capturing()
    with pytest.raises(RuntimeError, match="Offset increment outside graph capture"):
        torch.randn(3, device=DEVICE)
    torch.cuda.set_stream(stream)
    torch.cuda.set_rng_state(torch.cuda.get_rng_state(0), 0)
    with pytest.raises(RuntimeError, match="Offset increment outside graph capture"):
        torch.randn(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="already recording to mempool_id"):
        captured(lambda: x.add_(1), pool)
    torch.cuda.set_stream(stream)
    generator.graphsafe_set_state(before)
    torch.randn(3, device=DEVICE)
    assert gpu.devices[0].underway == [pool]
    torch._C._cuda_endAllocateToPool(0, pool)
    with pytest.raises(RuntimeError, match="already recording to pool_id"):  # the allocator of pinned memory
        captured(lambda: x.add_(1), pool)


def test_a_graph_of_before_cannot_be_replayed_while_its_generator_is_stuck(gpu):
    generator, x = torch.cuda.default_generators[0], torch.zeros(3, device=DEVICE)
    graph, stream = captured(lambda: x.add_(1)), torch.cuda.current_stream()
    kept = generator.graphsafe_get_state()
    spoilt(lambda: x.sum().item())
    torch.cuda.set_stream(stream)
    generator.graphsafe_set_state(kept.clone_state())
    torch.randn(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="Offset increment outside graph capture"):
        graph.replay()  # it has the state of then, which is capturing still


def test_an_exception_of_python_alone_ends_a_capture_well(gpu):
    stream, x = torch.cuda.current_stream(), torch.zeros(3, device=DEVICE)
    for work in (lambda: [][0], lambda: x.cpu(), lambda: x.add_(torch.ones(3).to(DEVICE))):
        with pytest.raises((IndexError, RuntimeError), match=r"out of range|Cannot copy between CPU and CUDA"):
            captured(work)
        assert torch.cuda.current_stream() == stream and not gpu.devices[0].underway
        torch.randn(3, device=DEVICE)


@pytest.mark.parametrize("kind", WAITS)
@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_what_a_capture_forbids_raises_and_spoils_it(gpu, kind, mode):
    x = with_event(torch.zeros(3, device=DEVICE))

    def work():
        with pytest.raises(torch.AcceleratorError, match="not permitted when stream is capturing"):
            WAITS[kind](x)
        with pytest.raises(torch.AcceleratorError, match="previous error during capture"):
            x.add_(1)

    spoilt(work, capture_error_mode=mode)


@pytest.mark.parametrize("kind", ["item", "device", "pinned memory", "memory"])
@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_another_thread_spoils_a_global_capture_and_any_by_a_wait_for_the_device(gpu, kind, mode):
    """As an H200 has it, CUDA 13.0."""
    x = with_event(torch.zeros(3, device=DEVICE))
    failures = []

    def other():
        try:
            torch.zeros(3, device=DEVICE) if kind == "memory" else WAITS[kind](x)
        except torch.AcceleratorError as error:
            failures.append(error)

    def work():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    spoils = mode == "global" or kind == "device"
    (spoilt if spoils else captured)(work, capture_error_mode=mode)
    assert len(failures) == spoils


def test_the_default_capture_stream_belongs_to_the_first_device(gpu):
    """A capture on another device holds nothing: what it launches runs at once, on that device's own stream."""
    x, y = torch.zeros(3, device="cuda:0"), torch.zeros(3, device="cuda:1")
    captured(lambda: x.add_(1))
    with torch.cuda.device(1), pytest.warns(UserWarning, match="The CUDA Graph is empty"):
        graph = captured(lambda: y.add_(1))
    assert gpu.records[1].device == 0 and y.tolist() == [1, 1, 1]
    graph.replay()
    assert y.tolist() == [1, 1, 1]
    with torch.cuda.device(1):
        graph = captured(lambda: y.add_(1), stream=torch.cuda.Stream("cuda:1"))
    graph.replay()
    assert y.tolist() == [2, 2, 2]


def test_streams_join_a_capture_by_events_and_have_to_be_joined_again(gpu):
    x, y, side = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE), torch.cuda.Stream()

    def fork(join):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            y.add_(1)
        if join:
            torch.cuda.current_stream().wait_stream(side)
        x.add_(y)

    captured(lambda: fork(True)).replay()
    torch.cuda.synchronize()
    assert x.tolist() == [2, 2, 2]
    with pytest.raises(torch.AcceleratorError, match="unjoined work"):
        captured(lambda: fork(False))
    torch.cuda.set_stream(torch.cuda.default_stream())
    with pytest.raises(torch.AcceleratorError, match="previous error"):
        captured(lambda: _isolated(torch.cuda.default_stream().record_event()))


def _isolated(event):
    with pytest.raises(torch.AcceleratorError, match="dependency created on uncaptured work"):
        torch.cuda.current_stream().wait_event(event)


def test_random_numbers_follow_the_generator_also_in_replays(gpu):
    torch.cuda.manual_seed(3)
    a, b = torch.randn(4, device=DEVICE), torch.randn(4, device=DEVICE)
    torch.cuda.manual_seed(3)
    out = torch.zeros(4, device=DEVICE)
    graph = captured(lambda: out.normal_())
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append(out.cpu())
    assert torch.equal(seen[0], a.cpu()) and torch.equal(seen[1], b.cpu()) and not torch.equal(*seen)
    state = torch.cuda.get_rng_state(0)
    c = torch.rand(4, device=DEVICE).cpu()
    torch.cuda.set_rng_state(state, 0)
    assert torch.equal(torch.rand(4, device=DEVICE).cpu(), c)


def test_nothing_is_left_when_it_is_over():
    assert not torch.cuda.is_available() and not torch.zeros(1).is_pinned()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")
    assert ulam_kernels.dispatch.load("cuda") is not None and torch.cuda.graph.default_capture_stream is None
