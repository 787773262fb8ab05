"""A small network at the states of many chains in one call: its output, and its energy where it has one."""

from __future__ import annotations

import torch

from ulam_kernels.arguments import described
from ulam_kernels.autograd import check_no_gradient
from ulam_kernels.dispatch import select_for_networks
from ulam_kernels.networks import Network
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import check, check_tensor


@outside_graphs
def evaluate_network(
    network: Network, x: torch.Tensor, *, row_vector: torch.Tensor | None = None,
    chain_vectors: torch.Tensor | None = None, backend: str | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor]:  # fmt: skip
    """The energies ``[B]`` of a network that has them, else None, and its output at ``x``, with the bits of a walk.

    A chain's bits depend on its own numbers alone, not on the batch, its order or the count of threads.

    Args:
        network: of n inputs.
        x: ``[B, *shape]`` states of n elements, float32 (float64: reference backend), contiguous.
        row_vector: ``[network.row_width]``, what the network reads of a row, for all chains; None where the width is 0.
        chain_vectors: ``[B, network.chain_width]``, what it reads of each chain; None where the width is 0.
        backend: "cpu", "triton" (without energies and their gradients) or "reference"; others do not have this
            operation.

    Returns:
        The energies, and the output like x (``[B, 2 n]`` of a network with learned variances).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or layout.
        RuntimeError: an argument requires grad while gradients are recorded, or torch records or transforms the call.
    """
    check_no_gradient("evaluate_network", x=x, row_vector=row_vector, chain_vectors=chain_vectors)
    check_not_recorded("evaluate_network", x, row_vector, chain_vectors)
    if not isinstance(network, Network):
        raise TypeError(f"network: got {described(network)}, expected an ulam_kernels.networks.Network")
    check_tensor(x, "x")
    if x.dtype not in (torch.float32, torch.float64) or x.dim() < 2:
        raise TypeError(f"x: got {described(x)}, expected a float32 tensor [B, *shape]")
    check(x, "x", x.dtype, x.device, x.shape)
    if x.device.type not in ("cpu", "cuda"):
        raise ValueError(f"x: got a tensor on {x.device}, expected one on cpu or cuda")
    if x.shape[1:].numel() != network.inputs:
        raise ValueError(f"x: got shape {list(x.shape)}, expected {network.inputs} elements a chain")
    for name, vectors, shape in (
        ("row_vector", row_vector, (network.row_width,)),
        ("chain_vectors", chain_vectors, (len(x), network.chain_width)),
    ):
        if vectors is not None:
            check(vectors, name, x.dtype, x.device, shape)
        elif shape[-1]:
            raise ValueError(f"{name}: got None, expected a tensor {list(shape)}, which the network reads")
    module = select_for_networks(backend, x.device.type, x.dtype)
    out = x.new_empty((len(x), 2 * network.inputs) if network.learned else x.shape)
    energy = None if network.energy is None else x.new_empty(len(x))
    if len(x):
        module.call_network(network, x, row_vector, chain_vectors, out, energy)
    return energy, out
