"""The Triton backend on a stand-in device: its own code up to the launch of a walk, or of a network alone.

What is launched is work of the stream: Triton's interpreter executes the kernel where kernels are interpreted, and else
the CPU backend executes what it stands for. Everything else that the backend has is one launch of the CPU's.
"""

from __future__ import annotations

import contextlib
import os
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

import ulam_kernels.cpu
from gpu_stand_in_device import Gpu
from gpu_stand_in_tensors import CudaTensor, quietly, unwrapped
from ulam_kernels.triton import walk as backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HOST = torch.device("cpu")


class Launcher:
    """A kernel whose launches go to the stand-in; ``network`` is the one that is under way."""

    network = None

    def __init__(self, kernel, by_cpu):
        self.kernel, self.by_cpu, self.name = kernel, by_cpu, kernel.fn.__name__

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
            if any(not isinstance(x, CudaTensor) for x in tensors):
                raise RuntimeError(f"{self.name}: a tensor on the host, whose address no kernel can read")
            device, network, inner = tensors[0].device.index, Launcher.network, unwrapped(arguments)
            if torch.cuda.current_device() != device:
                raise RuntimeError(f"{self.name}: a launch on another device than that of its tensors")

            def run(_):
                if INTERPRETED:
                    with mock.patch.object(torch.cuda, "is_available", lambda: False):  # or Triton looks for its driver
                        quietly(self.kernel[grid], *inner, **options)
                else:
                    given = dict(zip(self.kernel.arg_names, inner, strict=False))
                    assert torch.equal(given["weights"], backend.packed(network, HOST).weights), "weights of another"
                    quietly(self.by_cpu, network, given)

            Gpu.current.launch(f"triton::{self.name}", device, run)

        return launch


def walk_by_cpu(network, given):
    names = ("state", "coef", "flags", "cursor", "net_in", "seed", "chain", "row_vectors", "chain_vectors",
             "uncond_vectors", "guidance")  # fmt: skip
    state, coef, flags, cursor, *reads = (given[name] for name in names)
    mask = given["mask"]
    if mask is not None:
        one = given["mask_stride"] == 0
        mask = mask.view(torch.bool).view(state.shape[2:] if one else state.shape[1:])
    known = {"fixed": given["known"], "mask": mask}
    ulam_kernels.cpu.bound_walk(state, coef, flags, cursor, network, *reads, **known)(given["steps"])


def call_by_cpu(network, given):
    row = given["row_vector"] if network.row_width else None
    chain = given["chain_vectors"] if network.chain_width else None
    ulam_kernels.cpu.call_network(network, given["x"], row, chain, given["out"], None)


@contextlib.contextmanager
def under_way(network):
    before, Launcher.network = Launcher.network, network
    try:
        yield
    finally:
        Launcher.network = before


def bound_walk(states, coef, flags, cursor, network, *reads, **options):
    run = backend.bound_walk(states, coef, flags, cursor, network, *reads, **options)

    def launch(steps):
        with under_way(network):
            run(steps)

    return launch


def call_network(network, *arguments):
    with under_way(network):
        backend.call_network(network, *arguments)


def patched(monkeypatch, module):
    """``module``, the operations of the CPU as launches, with those of the Triton backend that hold a network."""
    for kernel, by_cpu in ((backend.walk_tiles, walk_by_cpu), (backend.call_tiles, call_by_cpu)):
        monkeypatch.setattr(backend, kernel.fn.__name__, Launcher(kernel, by_cpu))
    module.bound_walk, module.call_network, module.packed = bound_walk, call_network, backend.packed
    return module
