"""`pvdm push`: a model folder with its card and a sample, from here to the Hugging Face hub."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pvdm_cli.errors import PvdmError
from pvdm_cli.files import atomic_file, atomic_folder, write_json, write_text
from pvdm_cli.generation.request import SampleRequest
from pvdm_cli.generation.run import generate
from pvdm_cli.hub import FILES, LOG_IN, HubName, failures, parse, why
from pvdm_cli.model import (
    AGAIN,
    Checkpoint,
    check_file,
    checkpoint_step,
    load_model,
    read_card,
    resolve_model,
)
from pvdm_cli.modelcard import Shown, run_of, without_places, write_card
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.sampling import Sampling, Steps
from pvdm_cli.video.read import probe, stream
from pvdm_cli.video.write import open_writer

DRAWN_CLIPS = 4  # of the sample where the run has none
DRAWN_STEPS = (25, 10)  # fewer for a model that was trained with fewer timesteps
FPS = 8.0  # of a sample that names no rate
CAPTIONS = {
    "autoencoder": "Originals and, to the right of each, what the autoencoder gives back",
    "diffusion": "Sampled while training, at step {step:,}",
}


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Attributes:
        repo: owner/name on the hub.
        revision: Branch it went to; None is the main one.
        files: Size in bytes of each file, by name.
        folder: Where the files were written to as well, if that was asked for.
        url: Address of the model; None if nothing was uploaded.
    """

    repo: str
    revision: str | None
    files: dict[str, int]
    folder: Path | None
    url: str | None


def publish(
    model: str | Path,
    repo: str,
    *,
    checkpoint: Checkpoint | None = None,
    samples: Sequence[Path] = (),
    draw: bool = True,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
    out: Path | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> Publication:
    """Publish a model with a card and a sample.

    Args:
        model: A model folder, a run folder, `demo` or a model of the hub.
        repo: owner/name to publish it as; made if it is not there.
        checkpoint: Step of a run folder, or "best"; the latest otherwise.
        samples: Videos to show; else the newest of the run up to this checkpoint.
        draw: Where there is none of either, draw a short one.
        license: Of the weights, by its name on the hub, e.g. mit.
        private: Let nobody else see a model that is made now.
        revision: Branch to publish on, made if it is not there; the main one otherwise.
        message: Of the commit.
        dry_run: Upload nothing.
        out: Also write the folder here.
        device: Where a sample is drawn.
        reporter: Told of progress.

    Raises:
        PvdmError: If the model is damaged, there is no token, or the hub refuses or is away.
    """
    name = parse(repo)
    if name is None or repo != name.repo:
        raise PvdmError(f"{repo!r}: a model on the hub is called owner/name")
    if out is not None and out.exists():
        raise PvdmError(f"{out} exists; choose another --out")
    folder = resolve_model(model, checkpoint, reporter)
    if not dry_run:
        _require_token(name)
    with _workplace(out) as place:
        _collect(folder, place, linked=out is None)
        shown = _show(folder, repo, place, samples, draw, device, reporter)
        card = write_card(repo, folder, samples=shown, license=license)
        write_text(place / "README.md", card)
        files = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
        url = None
        if not dry_run:
            url = _upload(name._replace(revision=revision), place, private, message)
    return Publication(repo, revision, files, out, url)


@contextmanager
def _workplace(out: Path | None) -> Iterator[Path]:
    """Give an empty folder: `out`, which is there only once it is whole, or one that goes again."""
    if out is not None:
        with atomic_folder(out) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="pvdm-push-") as folder:
            yield Path(folder)


def _collect(model: Path, place: Path, *, linked: bool) -> None:
    """Bring the checked weights and their description, which tells no paths of this machine."""
    card = read_card(model)
    for name, told in card["files"].items():
        check_file(model / name, told, FILES[0], AGAIN)
        _bring((model / name).resolve(), place / name, linked)
    provenance = without_places(card.get("provenance", {}))
    write_json(place / FILES[0], {**card, "provenance": provenance})


def _bring(file: Path, to: Path, linked: bool) -> None:
    """Link to a file, or copy it where that cannot be or it is to stay."""
    if linked:
        try:
            to.symlink_to(file)
        except OSError:  # Windows lets only some users
            pass
        else:
            return
    _copy(file, to)


def _copy(file: Path, to: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_file(to) as temporary:
        shutil.copyfile(file, temporary)


def _show(
    model: Path,
    repo: str,
    place: Path,
    given: Sequence[Path],
    draw: bool,
    device: str,
    reporter: Reporter,
) -> list[Shown]:
    """Bring samples as gif, which every page shows: those given, the run's newest, or a new one."""
    files, captions = list(given), ["A video of this model"] * len(given)
    if not files and (newest := _newest(model)):
        stage = str(read_card(model).get("provenance", {}).get("stage"))
        step = int(newest.stem.removeprefix("step-"))
        files, captions = [newest], [CAPTIONS.get(stage, "A sample").format(step=step)]
    names = [f"sample-{i}.gif" for i in range(1, len(files) + 1)] if files[1:] else ["sample.gif"]
    for file, name in zip(files, names, strict=False):
        _as_gif(file, place / name)
    if not files and draw and "denoiser.safetensors" in read_card(model)["files"]:
        captions = [_draw(model, repo, place / names[0], device, reporter)]
    return [Shown(*pair) for pair in zip(names, captions, strict=False)]


def _newest(model: Path) -> Path | None:
    """Return the newest sample of a run that is not newer than its checkpoint."""
    run = run_of(model)
    if run is None:
        return None
    last = f"step-{checkpoint_step(model.resolve().parent):08d}"
    found = [path for path in (run / "samples").glob("step-*.*") if path.stem <= last]
    return max(found, key=lambda path: path.stem, default=None)


def _as_gif(file: Path, to: Path) -> None:
    """Copy a gif; write any other video as one."""
    info = probe(file)
    if file.suffix.lower() == ".gif":
        _copy(file, to)
        return
    with open_writer(to, fps=info.fps or FPS, height=info.height, width=info.width) as writer:
        for frame in stream(file):
            writer.write(frame[None])


def _draw(model: Path, repo: str, to: Path, device: str, reporter: Reporter) -> str:
    """Draw a short video; return its caption."""
    loaded = load_model(model, device)
    _, schedule = loaded.require_denoiser(repo)
    steps = Steps(*(min(number, schedule.num_timesteps) for number in DRAWN_STEPS))
    frames = DRAWN_CLIPS * loaded.config.clip.frames
    request = SampleRequest(frames=frames, sampling=Sampling(steps=steps), format="gif")
    reporter.say(f"drawing a sample of {frames} frames (--sample VIDEO shows another)")
    with tempfile.TemporaryDirectory(prefix="pvdm-sample-") as folder:
        drawn = generate(loaded, Path(folder), request, origin=[repo], reporter=reporter)
        _copy(drawn.videos[0], to)
    return f"Drawn by `pvdm sample {repo} --frames {frames} --steps {steps} --format gif`"


def _require_token(name: HubName) -> None:
    """Check what the hub would refuse only after a sample was drawn and weights were hashed."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise PvdmError(f"{name.repo}: HF_HUB_OFFLINE is set; unset it to publish")
    if not get_token():
        raise PvdmError(f"{name.repo}: the hub wants to know who publishes; {LOG_IN} first")


def _upload(name: HubName, folder: Path, private: bool, message: str | None) -> str:
    """Make the repository if it is not there, and upload the folder as one commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(name.repo, private=private or None, exist_ok=True)
        if name.revision:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        api.upload_folder(
            repo_id=name.repo,
            folder_path=folder,
            revision=name.revision,
            commit_message=message or "Publish a model of pvdm",
        )
    except failures() as error:
        raise PvdmError(f"{name.repo}: not published: {_refusal(error, name)}") from error
    return str(url)


def _refusal(error: Exception, name: HubName) -> str:
    """Say why the hub does not take it; what it hides from readers it calls not found."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the hub does not accept the token; {LOG_IN} anew"
    if status in (403, 404):
        owner = name.repo.partition("/")[0]
        return f"the token has no right to write for {owner}; {LOG_IN} with one that has"
    return why(error, name)
