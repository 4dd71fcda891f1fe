"""The Hugging Face hub: names of models there, how one comes here, and what keeps it away.

What was downloaded stays in the hub's own cache (HF_HOME); a model that is there needs no network.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pvdm_cli.errors import ModelError
from pvdm_cli.progress import SILENT, Reporter

FILES = ("model.json", "autoencoder.safetensors", "denoiser.safetensors")
LOG_IN = "`hf auth login` (or set HF_TOKEN)"
FORM = "a hub name has the form hf:owner/name or hf:owner/name@revision"

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^\s@]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """A model on the hub.

    Attributes:
        repo: owner/name.
        revision: Branch, tag or commit; None is the newest.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """The name as a user writes it."""
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str) -> HubName | None:
    """Read `owner/name` or `owner/name@revision`, with or without `hf:`; None if it is neither."""
    found = _NAME.fullmatch(text.removeprefix("hf:"))
    return HubName(found["repo"], found["revision"]) if found else None


def fetch(name: HubName, reporter: Reporter = SILENT) -> Path:
    """Download a model folder, or find it in the cache where the hub cannot be asked.

    Args:
        name: The model.
        reporter: Told what is downloaded, and if the cache stands in for the hub.

    Returns:
        The folder in the cache.

    Raises:
        ModelError: If it is neither on the hub nor in the cache, with the reason.
    """
    from huggingface_hub import HfApi, snapshot_download  # slow to import, rarely needed
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

    if name.revision and _COMMIT.fullmatch(name.revision) and (found := _cached(name)):
        return found  # what a commit holds never changes
    try:
        info = HfApi().model_info(name.repo, revision=name.revision, timeout=10)
        if FILES[0] not in {file.rfilename for file in info.siblings or ()}:
            raise ModelError(f"{name}: holds no {FILES[0]}, so it is no model of pvdm")
        if _cached(HubName(name.repo, info.sha)) is None:
            reporter.say(f"downloading {name}")
        with _bars(shown=reporter is not SILENT):
            return Path(
                snapshot_download(name.repo, revision=name.revision, allow_patterns=[*FILES])
            )
    except RevisionNotFoundError as error:
        raise ModelError(f"{name}: {why(error, name)}") from error
    except failures() as error:
        reason = why(error, name)
        if (found := _cached(name)) is None:
            raise ModelError(f"{name}: {reason}") from error
        if not isinstance(error, OfflineModeIsEnabled):  # that the user has asked for
            said = reason.partition(";")[0]
            reporter.say(f"{name}: {said}; using commit {found.name[:7]} from the cache")
        return found


def failures() -> tuple[type[Exception], ...]:
    """What the hub's library raises, whichever HTTP library is below it.

    Failures to connect are OSError with requests (hub 0.x) and HTTPError with httpx (from 1.0 on);
    a name it refuses is a ValueError.
    """
    from huggingface_hub import errors

    return (OSError, ValueError, getattr(errors, "HTTPError"))  # noqa: B009  # it is not exported


def why(error: Exception, name: HubName) -> str:
    """Say why the hub did not do what was asked, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and it is not in the cache; unset HF_HUB_OFFLINE"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the hub has the model, but no revision {name.revision!r} of it; see the branches and "
            f"tags at {constants.ENDPOINT}/{name.repo}/tree/main"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            "its owners let in only whom they know; ask them at "
            f"{constants.ENDPOINT}/{name.repo}, then {LOG_IN}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such model on the hub, or a private one; for a private one {LOG_IN}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    response = getattr(error, "response", None)
    if response is not None:
        later = "; try later" if response.status_code in (429, *range(500, 600)) else ""
        return f"the hub answers {response.status_code} ({_message(error) or reason}){later}"
    if isinstance(error, ValueError):
        return reason  # a name that the hub's library refuses
    if getattr(error, "errno", None):
        return f"{reason}; is there room, and the right to write, in {constants.HF_HUB_CACHE}?"
    return f"the hub cannot be reached ({constants.ENDPOINT}: {reason}); is there a network?"


def _message(error: Exception) -> str | None:
    """What the server said, without the address and the number of the request."""
    said: str | None = getattr(error, "server_message", None)
    return said.strip().splitlines()[0] if said and said.strip() else None


def _cached(name: HubName) -> Path | None:
    """Find a model in the cache; None unless every file that its description lists is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(name.repo, revision=name.revision, local_files_only=True,
                                  allow_patterns=[*FILES])  # fmt: skip
    except (LocalEntryNotFoundError, ValueError):
        return None
    folder = Path(found)
    try:
        files = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))["files"]
        whole = all((folder / file).is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if whole else None


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Let the hub's library draw its bars, or not."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
