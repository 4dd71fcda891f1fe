"""Models from the Hugging Face hub: its cache, its absence, and a stand-in that answers."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubs import Hub, fill_cache, serve
from huggingface_hub import constants
from tiny import tiny_model

from pvdm_cli import hub as hub_module
from pvdm_cli.describe import describe
from pvdm_cli.errors import ModelError, PvdmError
from pvdm_cli.hub import HubName, parse
from pvdm_cli.model import load_model, resolve_model, save_model

COMMITS = ("a" * 40, "b" * 40)
REPO = "someone/sky"


class Said:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, what: str, total: int | None = None, unit: str = "it") -> None: ...
    def advance(self, by: int = 1, **figures: object) -> None: ...
    def done(self) -> None: ...
    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models that differ in their frame rate."""
    folder = tmp_path_factory.mktemp("models")
    for fps in (7, 9):
        save_model(tiny_model(fps=fps), folder / f"{fps}")
    return [folder / "7", folder / "9"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nobody to ask."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)  # whose folders are looked at first
    return tmp_path / "hub"


@pytest.fixture
def cached(cache: Path, models: list[Path]) -> Path:
    """A cache of two commits: a tag on the older, main and v2 on the newer."""
    fill_cache(cache, REPO, COMMITS[0], models[0], "v1")
    fill_cache(cache, REPO, COMMITS[1], models[1], "main", "v2")
    return cache


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch, models: list[Path]) -> Iterator[Hub]:
    """A hub that answers, with one model."""
    with serve() as (address, served):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        served.refs[REPO] = {}
        files = {path.name: path.read_bytes() for path in models[1].iterdir()}
        served.refs[REPO]["v2"] = served.commit(REPO, "main", files)
        yield served


def refused(name: str | Path) -> str:
    """What is said of a name that leads nowhere."""
    with pytest.raises(ModelError) as found:
        resolve_model(name)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", HubName("a/b")),
        ("hf:a/b", HubName("a/b")),
        ("a-1/b.c_2@v1", HubName("a-1/b.c_2", "v1")),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        *((text, None) for text in ("a", "a/b/c", "./a", "../a", "/a", "a/b@", "a b/c", "~/a")),
    ],
)
def test_names_of_the_hub_are_told_from_paths(text: str, name: HubName | None) -> None:
    assert parse(text) == name
    assert name is None or parse(str(name)) == name


@pytest.mark.parametrize(
    ("name", "fps"),
    [
        ("someone/sky", 9),
        ("hf:someone/sky", 9),
        ("someone/sky@v1", 7),
        ("hf:someone/sky@v2", 9),
        (f"someone/sky@{COMMITS[0]}", 7),
    ],
)
def test_offline_the_cache_is_taken_without_a_word(
    cached: Path, monkeypatch: pytest.MonkeyPatch, name: str, fps: int
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = Said()
    assert load_model(name, "cpu", reporter=said).fps == fps
    assert said.lines == []
    if name.startswith("hf:"):
        assert describe(name).facts["fps"] == fps


def test_offline_what_is_not_in_the_cache_is_refused(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    away = "HF_HUB_OFFLINE is set and it is not in the cache; unset HF_HUB_OFFLINE"
    assert refused("hf:someone/sky@v3") == f"hf:someone/sky@v3: {away}"
    assert refused("someone/sea") == (
        f"someone/sea: no such folder here, and as a name of the hub hf:someone/sea: {away}"
    )


def test_without_network_the_cache_stands_in_and_that_is_said(cached: Path) -> None:
    said = Said()
    assert load_model("someone/sky@v1", "cpu", reporter=said).fps == 7
    (line,) = said.lines
    assert line.startswith("hf:someone/sky@v1: the hub cannot be reached (http://127.0.0.1:9: ")
    assert line.endswith("; using commit aaaaaaa from the cache")


def test_a_commit_in_the_cache_asks_nobody(cached: Path) -> None:
    said = Said()
    assert load_model(f"someone/sky@{COMMITS[0]}", "cpu", reporter=said).fps == 7
    assert said.lines == []


def test_without_network_and_cache_it_is_one_sentence(cache: Path) -> None:
    said = refused("hf:someone/sky")
    assert said.startswith("hf:someone/sky: the hub cannot be reached (http://127.0.0.1:9: ")
    assert said.endswith("; is there a network?")


def test_half_a_model_in_the_cache_is_none(cached: Path) -> None:
    (cached / "models--someone--sky" / "snapshots" / COMMITS[1] / "denoiser.safetensors").unlink()
    assert "the hub cannot be reached" in refused("hf:someone/sky")


def test_a_model_is_downloaded_once_and_then_found(hub: Hub) -> None:
    said = Said()
    for name in ("someone/sky", "hf:someone/sky@v2", f"someone/sky@{hub.refs[REPO]['main']}"):
        assert load_model(name, "cpu", reporter=said).fps == 9
    assert said.lines == ["downloading hf:someone/sky"]
    hub.refuse = (503, "", "The hub is being repaired")
    assert load_model("someone/sky", "cpu", reporter=said).fps == 9
    assert said.lines[1].startswith(
        "hf:someone/sky: the hub answers 503 (The hub is being repaired); using commit "
    )


def test_bars_are_drawn_for_those_who_watch_and_left_as_they_were(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    seen: list[bool] = []
    fetched = hub_module.Path

    def path(text: str) -> Path:
        seen.append(are_progress_bars_disabled())
        return fetched(text)

    monkeypatch.setattr(hub_module, "Path", path)
    load_model("someone/sky", "cpu")
    assert seen[-1] is True
    load_model("someone/sky", "cpu", reporter=Said())
    assert seen[-1] is False
    assert not are_progress_bars_disabled()


def test_what_the_hub_does_not_have_is_one_sentence(hub: Hub) -> None:
    missing = "no such model on the hub, or a private one; for a private one `hf auth login` (or "
    assert refused("hf:someone/sea") == f"hf:someone/sea: {missing}set HF_TOKEN)"
    assert refused("hf:someone/sky@v9") == (
        "hf:someone/sky@v9: the hub has the model, but no revision 'v9' of it; see the branches "
        f"and tags at {constants.ENDPOINT}/someone/sky/tree/main"
    )
    hub.refs["someone/words"] = {}
    hub.commit("someone/words", "main", {"config.json": b"{}"})
    assert refused("hf:someone/words") == (
        "hf:someone/words: holds no model.json, so it is no model of pvdm"
    )


def test_what_the_hub_refuses_is_one_sentence(hub: Hub) -> None:
    hub.refuse = (403, "GatedRepo", "Access is restricted")
    assert refused("hf:someone/sky") == (
        "hf:someone/sky: its owners let in only whom they know; ask them at "
        f"{constants.ENDPOINT}/someone/sky, then `hf auth login` (or set HF_TOKEN)"
    )
    hub.refuse = (503, "", "The hub is being repaired")
    assert refused("hf:someone/sky") == (
        "hf:someone/sky: the hub answers 503 (The hub is being repaired); try later"
    )


def test_a_damaged_download_is_refused(hub: Hub) -> None:
    hub.commit(REPO, "main", {"denoiser.safetensors": b"x"})
    with pytest.raises(ModelError, match="1 bytes where"):
        load_model("someone/sky", "cpu")


def test_a_folder_wins_and_a_slip_in_a_path_is_not_looked_for_on_the_hub(
    cached: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "no such folder (a model folder" in refused(Path("someone/sky"))
    shutil.copytree(models[0], tmp_path / "someone" / "sky")
    assert load_model("someone/sky", "cpu").fps == 7
    assert load_model("hf:someone/sky", "cpu").fps == 9
    assert refused("someone/ski") == (
        "someone/ski: no such folder (a model folder, a run folder, `demo` or hf:owner/name)"
    )


def test_what_is_no_model_says_what_it_is(tmp_path: Path) -> None:
    for name in ("hf:sky", "hf:a/b/c", "hf:a/b@"):
        assert refused(name).endswith("has the form hf:owner/name or hf:owner/name@revision")
    assert refused("sky/diffusion-l") == (
        "sky/diffusion-l: a preset, no model; `pvdm train sky/diffusion-l --out RUN` makes one"
    )
    (tmp_path / "ae.pth").touch()
    for path in (tmp_path / "ae.pth", tmp_path):
        assert "weights of the original implementation" in refused(path)
        assert "`pvdm convert --autoencoder AE.pth --denoiser UNET.pth" in refused(path)


def test_a_name_that_the_hub_does_not_allow_is_one_sentence(cache: Path) -> None:
    with pytest.raises(PvdmError) as found:
        resolve_model("hf:someone/sky--net")
    assert "\n" not in str(found.value)
    assert "someone/sky--net" in str(found.value)
