"""Weights of others: found, fetched once, checked."""

import hashlib
import io
import urllib.request
from pathlib import Path

import pytest
import torch

from pvdm_cli import weights
from pvdm_cli.errors import ModelError
from pvdm_cli.weights import Weights

ASKED = {"needed_by": "loss.lpips=4", "without": "loss.lpips=0"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """A file on disk in place of one on the network."""
    monkeypatch.setenv("PVDM_WEIGHTS", str(tmp_path / "here"))
    file = tmp_path / "there.pth"
    torch.save({"a": torch.ones(3)}, file)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Weights("mine.pth", file.as_uri(), digest, len(content), "none")


def test_a_file_is_fetched_once(source: Weights, tmp_path: Path) -> None:
    assert torch.equal(weights.load(source, **ASKED)["a"], torch.ones(3))
    (tmp_path / "there.pth").unlink()
    assert torch.equal(weights.load(source, **ASKED)["a"], torch.ones(3))
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["mine.pth"]


def test_what_cannot_be_fetched_is_one_sentence_with_a_way_out(
    source: Weights, tmp_path: Path
) -> None:
    (tmp_path / "there.pth").unlink()
    with pytest.raises(ModelError) as found:
        weights.load(source, **ASKED)
    said = str(found.value)
    assert said.startswith("loss.lpips=4 needs mine.pth, which could not be downloaded from file:")
    assert said.endswith("or go without: loss.lpips=0")
    assert str(tmp_path / "here") in said


def test_a_connection_that_breaks_off_is_not_taken_for_a_full_disk(
    source: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Broken())
    with pytest.raises(ModelError, match=r"could not be downloaded .*reset by peer.*by hand"):
        weights.load(source, **ASKED)
    assert not any((tmp_path / "here").iterdir())


@pytest.mark.parametrize("content", [b"", b"x" * 10])
def test_another_file_is_refused(source: Weights, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.pth").write_bytes(content)
    with pytest.raises(ModelError, match="remove it to download it again"):
        weights.load(source, **ASKED)


def test_a_download_that_is_not_the_pinned_file_is_refused(source: Weights, tmp_path: Path) -> None:
    content = (tmp_path / "there.pth").read_bytes()
    (tmp_path / "there.pth").write_bytes(content[:-1] + b"x")
    with pytest.raises(ModelError, match="its sha256 is another; put it into"):
        weights.load(source, **ASKED)
    assert not any((tmp_path / "here").iterdir())


def test_the_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PVDM_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.folder() == tmp_path / "pvdm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.folder() == Path.home() / ".cache" / "pvdm"
