"""Weights of another kind than the network's are refused: a copy would lose an imaginary part or a fraction."""

from __future__ import annotations

import re

import diffusers
import pytest
import safetensors.torch
import torch
from torch import nn

import ulam
from ulam.models.weights import load_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.real, self.phase = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))


def saved(path, **change: torch.Tensor):
    safetensors.torch.save_file({**Net().state_dict(), **change}, path / "net.safetensors")
    return path / "net.safetensors"


@pytest.mark.parametrize(
    ("key", "dtype"),
    [
        ("real", torch.complex64),
        ("real", torch.int8),
        ("real", torch.bool),
        ("phase", torch.float32),
        ("count", torch.float32),
        ("mask", torch.float32),
        ("mask", torch.int64),
    ],
)
def test_another_kind_of_number_is_refused(key, dtype, tmp_path) -> None:
    net = Net()
    own = net.state_dict()[key]
    path = saved(tmp_path, **{key: torch.ones(own.shape, dtype=dtype)})
    message = f"weights: got {dtype} as {key} in {path}, expected {own.dtype} or another type of its kind"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(net, path)
    assert not any(tensor.any() for tensor in net.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_width_is_loaded(dtype, tmp_path) -> None:
    net = Net()
    load_weights(net, saved(tmp_path, real=torch.tensor([1.0, -2.0, 0.5], dtype=dtype), phase=torch.tensor([1j, 2, 3])))
    assert net.real.tolist() == [1.0, -2.0, 0.5] and net.phase.tolist() == [1j, 2, 3]


@pytest.mark.parametrize("sharded", [False, True])
def test_complex_weights_of_diffusers_are_refused(sharded, tmp_path) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    if sharded:
        (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
        unet.save_pretrained(tmp_path / "unet", max_shard_size="10KB")
    assert ulam.Denoiser.from_diffusers(tmp_path).predicts == "eps"
    path = sorted((tmp_path / "unet").glob("*.safetensors"))[-1]
    tensors = safetensors.torch.load_file(path)
    name = sorted(tensors)[0]
    safetensors.torch.save_file({**tensors, name: tensors[name] * 1j}, path)
    message = f"source: got complex weights {name} in {path}, expected real ones like the model's"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ulam.Denoiser.from_diffusers(tmp_path)
