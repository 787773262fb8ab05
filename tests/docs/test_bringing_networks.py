"""The commands of docs/network.md that bring a network run as they stand, where what they name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import safetensors.torch
import torch

from archives import arrays
from ulam.cli.main import main

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from pages import DOCS  # noqa: E402
from pipeline_cases import unet_2d  # noqa: E402

COMMANDS = re.findall(r"^(ulam (?:sample|convert) .*)$", (DOCS / "network.md").read_text(), flags=re.MULTILINE)
NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x, t):
        return self.scale * x

make = Net
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module, its weights and the pipeline that the commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "nets.py").write_text(NETS)
    weights = {"scale": torch.full((3, 1, 1), 0.5)}
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    both = {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in weights.items()}
    torch.save({"state_dict": both, "epoch": 3}, tmp_path / "last.ckpt")
    diffusers.DDPMPipeline(unet_2d(), diffusers.DDPMScheduler()).save_pretrained("ddpm-cifar10")
    return tmp_path


def test_there_is_a_command_for_a_module_and_one_for_a_folder() -> None:
    models = {command.split("--model ")[1].split()[0] for command in COMMANDS if "--model " in command}
    assert models >= {"mypackage.nets:make", "ddpm-cifar10"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_brings_a_network_runs(command: str, there: Path) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    assert main(arguments) == 0
    if arguments[0] == "convert":
        assert list(safetensors.torch.load_file(there / "weights.safetensors")) == ["scale"]
    else:
        assert len(arrays(there / "samples" / "samples.npz")["arr_0"]) == 64
