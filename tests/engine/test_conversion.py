"""Checkpoints as people save them become safetensors that load; what is no checkpoint is refused in one line."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import ulam
from ulam.cli import main as cli
from ulam.models.conversion import convert
from ulam.models.weights import load_weights


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
        self.register_buffer("count", torch.tensor(seed))


class Outer(nn.Module):
    """As a LightningModule holds its network, an average of it and a loss with weights of its own."""

    def __init__(self, *, loss: bool = False, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        if loss:
            self.loss = nn.Linear(1, 1)


def lightning(module: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.0)
    sum(p.sum() for p in module.parameters() if p.requires_grad).backward()
    optimizer.step()
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"lr": 1e-3, "weights": torch.ones(2)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.1), "dirpath": "here"}},
        "loops": {"fit_loop": {"state_dict": {"total": torch.tensor(3)}}},
    }


def with_optimizer(net: nn.Module) -> dict[str, Any]:
    found = lightning(net)
    return {
        "model": found["state_dict"],
        "optimizer": found["optimizer_states"][0],
        "step": 7,
        "rng": torch.get_rng_state(),
    }


def average(net: nn.Module) -> AveragedModel:
    return AveragedModel(net, use_buffers=True)


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net)


def compiled_inside(net: Net) -> Net:
    net.last = torch.compile(net.last)
    return net


# What is saved of a network, and the prefix that chooses it where several fit.
SAVED: dict[str, tuple[Callable[[Net], Any], str | None]] = {
    "state_dict": (lambda net: net.state_dict(), None),
    "parameters": (lambda net: {name: nn.Parameter(v) if v.is_floating_point() else v
                                for name, v in net.state_dict().items()}, None),
    "AveragedModel": (lambda net: average(net).state_dict(), None),
    "DataParallel": (lambda net: nn.DataParallel(net).state_dict(), None),
    "compiled": (lambda net: compiled(net).state_dict(), None),
    "compiled in part": (lambda net: compiled_inside(net).state_dict(), None),
    "compiled, then DataParallel": (lambda net: nn.DataParallel(compiled(net)).state_dict(), None),
    "average of a compiled one": (lambda net: average(compiled(net)).state_dict(), None),
    "beside its optimizer": (with_optimizer, None),
    "Lightning": (lambda net: lightning(Outer(model=net)), None),
    "Lightning, compiled": (lambda net: lightning(Outer(model=compiled(net))), None),
    "Lightning with a loss": (lambda net: lightning(Outer(model=net, loss=True)), "model"),
    "Lightning with an average": (lambda net: lightning(Outer(model=Net(9), ema=average(net))), "ema"),
    "Lightning with an average, by its full name": (
        lambda net: lightning(Outer(model=Net(9), ema_model=net)), "state_dict.ema_model."),
    "averages in one dict": (lambda net: Outer(online_model=Net(9), ema_model=net).state_dict(), "ema_model"),
    "model and ema": (lambda net: {"model": Net(9).state_dict(), "ema": net.state_dict()}, "ema"),
    "ema with its decay": (
        lambda net: {"ema": {"decay": 0.9, "ema": average(net).state_dict()}, "a": Net(9).state_dict()}, "ema.ema"),
    "tied tensors": (lambda net: {**net.state_dict(), "last.1.bias": net.state_dict()["last.1.bias"][:]}, None),
    "transposed": (lambda net: {name: v.t().contiguous().t() if v.dim() == 2 else v
                                for name, v in net.state_dict().items()}, None),
}  # fmt: skip


def same(net: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_converted_loads_into_the_bare_network(name: str, zipped: bool, tmp_path: Path) -> None:
    make, prefix = SAVED[name]
    source, target = tmp_path / "net.pt", tmp_path / "net.safetensors"
    torch.save(make(Net(1)), source, _use_new_zipfile_serialization=zipped)
    if prefix is not None and "loss" not in name:
        with pytest.raises(ValueError, match=r"^in: got .* with several weights, expected --prefix") as several:
            convert(source, target)
        assert re.search(rf"'[\w.]*{prefix.rstrip('.').split('.')[-1]}' \(\d+ tensors\)", str(several.value))
        assert not target.exists()
    found = convert(source, target, prefix)
    assert found.tensors == len(safetensors.torch.load_file(target)) == len(Net().state_dict())
    net = Net(2)
    load_weights(net, target)
    assert same(net, Net(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt", "net.safetensors"]


def test_safetensors_convert_too_and_an_empty_prefix_keeps_every_name(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "third"))
    names = Outer(model=Net(1)).state_dict()
    safetensors.torch.save_file(names, first)
    assert convert(first, second).prefix == "model." and convert(first, third, "").prefix == ""
    assert safetensors.torch.load_file(third).keys() == names.keys()
    for path, net in ((second, Net()), (third, Outer(model=Net()))):
        load_weights(net, path)


def test_a_wall_of_names_becomes_the_prefix_that_is_likely(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"

    def refusal(saved: nn.Module, net: nn.Module) -> str:
        safetensors.torch.save_file(saved.state_dict(), path)
        with pytest.raises(ValueError, match=r"^weights: got .*, expected ") as caught:
            load_weights(net, path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))
        return str(caught.value)

    many, wide = nn.Sequential(*(nn.Linear(2, 2) for _ in range(200))), nn.Sequential(nn.Linear(2, 3))
    assert refusal(Outer(model=many, loss=True), many).endswith(
        "whose names begin with 'model.', expected them without it, as this network's do: "
        "ulam convert IN OUT.safetensors --prefix model"
    )
    assert refusal(many, Outer(net=many)).endswith(
        "whose names begin without 'net.', expected them with it, as this network's do: "
        "ulam convert IN OUT.safetensors --prefix '' to keep names as they are"
    )
    assert (
        "without 398 ('1.weight', '1.bias', '2.weight', ...) of this network's 400 tensors and with 2 ('loss.bias', "
        "'loss.weight') of others" in refusal(Outer(**{"0": nn.Linear(2, 2)}, loss=True), many)
    )
    assert refusal(wide, nn.Sequential(nn.Linear(2, 2))).endswith("expected [2, 2] as this network has")


def test_weights_that_torch_itself_completes_still_load(tmp_path: Path) -> None:
    path, net = tmp_path / "net.safetensors", nn.BatchNorm1d(2)
    old = {name: tensor + 1 for name, tensor in net.state_dict().items() if name != "num_batches_tracked"}
    safetensors.torch.save_file(old, path)  # as before torch 0.4.1
    load_weights(net, path)
    assert net.bias.tolist() == [1.0, 1.0]


def test_the_command_says_what_it_wrote_and_what_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "last.ckpt", tmp_path / "net.safetensors"
    torch.save(lightning(Outer(model=Net(1), loss=True)), source)
    assert cli.main(["convert", str(source), str(target), "--prefix", "model"]) == 0
    told = f"ulam: 7 tensors, without 'state_dict.model.' before their names, 5 others left out; wrote {target}\n"
    assert capsys.readouterr() == (told, "")
    assert cli.main(["convert", str(source), str(tmp_path / "net.bin")]) == 2
    assert capsys.readouterr().err.startswith("ulam: error: out: got ")
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"ulam {ulam.__version__}\n"


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


REFUSED: dict[str, tuple[Any, str]] = {
    "a whole network": (nn.Linear(1, 1), "which holds a torch.nn.modules.linear.Linear, expected tensors and"),
    "arguments": ({"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(a=1)}, "a argparse.Namespace"),
    "code": ({"a": torch.ones(1), "b": Evil()}, "which holds a posix.mkdir"),
    "a tensor": (torch.ones(3), "without a dict of tensors by name"),
    "tensors in a list": ({"shadow_params": [torch.ones(1)]}, "without a dict of tensors by name"),
    "numbers": ({"a": 1, "b": {"c": None}}, "without a dict of tensors by name"),
    "nothing": ({}, "without a dict of tensors by name"),
    "an optimizer": ({"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []}, "without a dict of tensors"),
    "a sparse tensor": ({"a": torch.ones(2, 2).to_sparse()}, "a torch.sparse_coo tensor as 'a' in"),
    "a meta tensor": ({"a": torch.ones(2, device="meta")}, "a meta tensor as 'a' in"),
    "wide complex numbers": ({"a": torch.ones(2, dtype=torch.complex128)}, "a torch.complex128 tensor as 'a' in"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_weights_or_more_than_them_is_refused(name: str, tmp_path: Path, monkeypatch) -> None:
    saved, said = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    torch.save(saved, "net.pt")
    with pytest.raises(ValueError, match=f"^in: got .*{re.escape(said)}") as caught:
        convert(Path("net.pt"), Path("net.safetensors"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]  # nothing ran, nothing is left


def test_prefixes_that_choose_nothing_or_two_things_say_what_there_is(tmp_path: Path) -> None:
    source, target = tmp_path / "net.pt", tmp_path / "net.safetensors"
    torch.save({"a": {"x": Net().state_dict(), "n": torch.ones(1)}, "b": {"x": {"y": torch.ones(1)}}}, source)
    for prefix, said in (
        ("z", "prefix: got 'z' for .*, expected the beginning of names, of 'a' .*, 'b' "),
        ("ab", "prefix: got 'ab' for "),
        ("", "in: got .* with several weights, expected --prefix with one of 'a' "),
        (".", "in: got .* with several weights"),
    ):
        with pytest.raises(ValueError, match=said):
            convert(source, target, prefix)
    torch.save({"a": {"b": {"c": torch.ones(1)}, "b.c": torch.ones(2)}}, source)
    with pytest.raises(ValueError, match="with one name in two ways"):
        convert(source, target, "a")
    torch.save({"a": {"x.u": torch.ones(1)}, "b": {"x.u": torch.ones(1)}}, source)
    with pytest.raises(ValueError, match=r"expected --prefix with one of 'a\.x' \(1 tensors\), 'b\.x' \(1 tensors\)$"):
        convert(source, target, "x")
    assert convert(source, target, "a").tensors == 1
    with pytest.raises(TypeError, match="prefix: got 3"):
        convert(source, target, 3)  # type: ignore[arg-type]


def test_targets_that_cannot_be_written_leave_what_was_there(tmp_path: Path, monkeypatch) -> None:
    source, target = tmp_path / "net.pt", tmp_path / "net.safetensors"
    torch.save(Net(1).state_dict(), source)
    convert(source, target)
    before = target.read_bytes()
    (tmp_path / "folder.safetensors").mkdir()
    for path, said in (
        (tmp_path / "net.bin", "expected a file named"),
        (tmp_path / "folder.safetensors", "expected a file named"),
        (tmp_path / "none" / "net.safetensors", "expected a folder that is there"),
        (target, "which is read, expected another file"),
    ):
        with pytest.raises((ValueError, OSError), match=f"^out: got .*{said}"):
            convert(target if path == target else source, path)

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"^out: got .*, expected a file that can be written: .*No space left"):
        convert(source, target)
    assert target.read_bytes() == before and len([*tmp_path.iterdir()]) == 3


BROKEN = [b"", b"garbage", b"PK\x03\x04xx", b"\x80\x02}q\x00.", pickle.dumps({"a": 1})]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_what_is_no_checkpoint_is_refused(data: bytes, name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_bytes(data)
    with pytest.raises(ValueError, match=r"^in: got .*, expected a checkpoint of torch that is whole$") as caught:
        convert(source, tmp_path / "out.safetensors")
    assert str(caught.value).isprintable()
    with pytest.raises(FileNotFoundError, match="which is no file"):
        convert(tmp_path / "none.pt", tmp_path / "out.safetensors")
