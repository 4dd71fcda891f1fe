"""Snapshots of what is in training, and the thread that writes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import nn

from pvdm_cli.errors import WriteError
from pvdm_cli.files import room
from pvdm_cli.model import list_checkpoints
from pvdm_cli.training.checkpoint import (
    Buffers,
    bare,
    load_newest,
    settle,
    take_snapshot,
    write_snapshot,
)
from pvdm_cli.training.saving import Saver, Troubles


def trained(network: nn.Module) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"": (network, optimizer)}


def test_a_snapshot_stays_as_it_was_and_its_memory_is_used_again() -> None:
    model, buffers = tiny_model(), Buffers()
    network = model.autoencoder.requires_grad_(True)
    training = trained(network)
    first = take_snapshot(3, model, training, None, {}, buffers)
    name = next(iter(network.state_dict()))
    before = network.state_dict()[name].clone()
    training[""][1].step()
    assert torch.equal(first.tensors[f"live.{name}"], before)
    assert torch.equal(first.weights["autoencoder.safetensors"][name], before)
    places = {key: tensor.data_ptr() for key, tensor in buffers.items()}
    second = take_snapshot(4, model, training, None, {}, buffers)
    assert {key: tensor.data_ptr() for key, tensor in buffers.items()} == places
    assert not torch.equal(second.tensors[f"live.{name}"], before)
    assert second.num_bytes == sum(tensor.nbytes for tensor in buffers.values())


def test_names_of_weights_do_not_tell_how_a_network_is_wrapped(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    compiled: Any = torch.compile(network, backend="eager")
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        both = nn.parallel.DistributedDataParallel(compiled)
        assert bare(both) is bare(compiled) is bare(network) is network
    finally:
        torch.distributed.destroy_process_group()


def test_a_failed_checkpoint_is_told_once_and_a_whole_one_not_at_all(tmp_path: Path) -> None:
    model = tiny_model()
    training = trained(model.autoencoder.requires_grad_(True))
    saver = Saver(tmp_path / "run", 1, 0)
    (tmp_path / "run").write_text("in the way")
    saver.save(1, model, training, None, {}, None)
    failed = saver.outcome(wait=True)
    assert failed is not None
    assert failed.step == 1
    assert failed.reason.startswith(f"in {tmp_path}/run/checkpoints: ")
    assert "MB, " in failed.reason
    assert saver.outcome(wait=True) is None
    (tmp_path / "run").unlink()
    for step in (2, 3):
        saver.save(step, model, training, None, {}, None)
        assert saver.outcome(wait=True) is None
    saver.close()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000003"]


def test_a_second_broken_checkpoint_of_a_step_does_not_replace_the_first(tmp_path: Path) -> None:
    model, said = tiny_model(), list[str]()
    training = trained(model.autoencoder.requires_grad_(True))
    write_snapshot(tmp_path, take_snapshot(1, model, training, None, {}, {}))
    for name in ("broken", "broken-2"):
        path = write_snapshot(tmp_path, take_snapshot(2, model, training, None, {}, {}))
        (path / "model" / "autoencoder.safetensors").unlink()
        state = load_newest(tmp_path, training, None, "autoencoder.safetensors", said.append)
        assert state["step"] == 1
        assert f"kept as {path}.{name}," in said[-1]
    settle(tmp_path, 1, 0)
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_the_file_best_goes_with_the_checkpoint_it_names(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("step-00000002\n")
    settle(tmp_path, 1, 0, None)
    assert not (tmp_path / "best").exists()


def test_a_trouble_is_said_again_once_it_had_passed(tmp_path: Path) -> None:
    said: list[str] = []
    troubles = Troubles(said.append)
    for broken in (True, True, False, True):
        with troubles.survive("samples", tmp_path, "so what"):
            if broken:
                raise WriteError(tmp_path, "no room")
    assert said == 2 * [f"warning: cannot write {tmp_path}: no room; so what"]
    with pytest.raises(ZeroDivisionError), troubles.survive("samples", tmp_path, ""):
        _ = 1 / 0


def test_room_is_that_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert room(tmp_path / "not" / "there").endswith(" MB free")
