"""A model beside the published table: its videos drawn, scored, and set below the paper's rows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pvdm_cli import weights
from pvdm_cli.classes import EACH, NO_CLASS, in_turn
from pvdm_cli.errors import PvdmError
from pvdm_cli.evaluation.fvd import FvdResult, measure_fvd
from pvdm_cli.evaluation.inception import Convention, InceptionResult, measure_inception
from pvdm_cli.evaluation.protocol import FvdRequest
from pvdm_cli.evaluation.published import TABLE_1, Dataset
from pvdm_cli.files import make_folder
from pvdm_cli.generation.request import SampleRequest
from pvdm_cli.generation.run import generate
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import here

FPS = 8  # of a model that knows none; no score depends on it
WINDOWS = ((16, 1), (128, 1), (16, 8))  # frames and stride of what is published


@dataclass(frozen=True)
class Comparison:
    """A row of ours below those of the paper.

    Attributes:
        model: As it was named.
        steps: Of sampling.
        videos: Folder of what was drawn.
        dataset: Whose published rows are shown; None: nobody's.
        columns: Scores by name of the window.
        published: Rows of the paper: method, and figures by the same names.
    """

    model: str
    steps: str
    videos: Path
    dataset: Dataset | None
    columns: dict[str, FvdResult]
    published: list[tuple[str, dict[str, float | None]]]

    @property
    def skipped(self) -> int:
        """Videos left out."""
        return max(result.skipped for result in self.columns.values())


def window_name(request: FvdRequest) -> str:
    """Name a window as StyleGAN-V does: 16f, 128f, 128f_subsample8f."""
    span = request.frames * request.frame_stride
    thinned = f"_subsample{request.frame_stride}f" if request.frame_stride > 1 else ""
    return f"{span}f{thinned}"


def compare(
    model: Model,
    origin: Sequence[str],
    real: Path,
    out: Path,
    drawing: SampleRequest,
    scoring: FvdRequest,
    *,
    dataset: Dataset | None = None,
    reporter: Reporter = SILENT,
) -> Comparison:
    """Draw videos, or what is missing of them, and score them by every published window.

    Args:
        model: With a denoiser.
        origin: How it was named on the command line.
        real: The real videos.
        out: Folder of the drawn ones; `metric-*.jsonl` in it gets a line for each score.
        drawing: How they are drawn, as .npz; where it says no class, each in turn, so that chance
            has no part in how often there is each.
        scoring: How they are scored; its frames and stride are those of each window in turn.
        dataset: Whose published rows to show; by default guessed from the name of `real`.
        reporter: Told of each step and clip.

    Raises:
        PvdmError: If videos are shorter than every window, or something needed is missing.
    """
    windows = [w for w in WINDOWS if (w[0] - 1) * w[1] < drawing.frames]
    if not windows:
        raise PvdmError(f"--length {drawing.frames}: the shortest published window has 16 frames")
    requests = [replace(scoring, frames=frames, frame_stride=step) for frames, step in windows]
    for request in requests:
        request.check()
    drawing, told = _draw(model, origin, out, drawing, reporter)
    columns = {}
    for request in requests:
        result = measure_fvd(real, out, request, model.device, reporter)
        result = replace(result, differs=[*result.differs, *told])
        columns[window_name(request)] = result
        if here().main:
            name = f"fvd{request.num}_{window_name(request)}"
            append(out, name, {name: result.fvd}, result, origin, drawing)
    dataset = dataset or guess(real)
    rows = [(row.method, row.of(dataset)) for row in TABLE_1] if dataset else []
    return Comparison(origin[0], str(drawing.sampling.steps), out, dataset, columns, rows)


def draw_for_inception(
    model: Model,
    origin: Sequence[str],
    out: Path,
    drawing: SampleRequest,
    convention: Convention,
    *,
    reporter: Reporter = SILENT,
) -> InceptionResult:
    """Draw videos, or what is missing of them, and take their inception score; as `compare`.

    Raises:
        PvdmError: If videos are too short or too few, or something needed is missing.
    """
    weights.require_c3d()  # before hours of drawing
    drawing, told = _draw(model, origin, out, drawing, reporter)
    result = measure_inception(
        out, model.device, convention=convention, num=drawing.num, reporter=reporter
    )
    result = replace(result, differs=[*result.differs, *told])
    if here().main:
        name = f"isv{drawing.num}_ucf"
        scores = {f"{name}_mean": result.mean, f"{name}_std": result.std}
        append(out, name, scores, result, origin, drawing)
    return result


def _draw(
    model: Model, origin: Sequence[str], out: Path, drawing: SampleRequest, reporter: Reporter
) -> tuple[SampleRequest, list[str]]:
    """Draw the videos to score; return how, and what of a score is due to classes."""
    drawing = replace(drawing, format="npz", fps=drawing.fps or model.fps or FPS)
    if drawing.class_name is None and in_turn(model.config.classes, EACH):
        drawing = replace(drawing, class_name=EACH)
    generate(model, out, drawing, origin=origin, reporter=reporter)
    here().barrier()  # all videos are there
    return drawing, list(_told_classes(model, drawing))


def _told_classes(model: Model, drawing: SampleRequest) -> Iterator[str]:
    """Say what of a score is due to classes, which no published model is told."""
    classes, word = model.config.classes, drawing.class_name
    if not classes or word == NO_CLASS:
        return
    if not in_turn(classes, word):
        yield f"fake videos of class {word or 'by lot'}; published models know no classes"
        return
    yield (
        f"{len(classes)} classes in turn, whatever their share of the real videos; published models "
        "know no classes (--class none draws without)"
    )
    if drawing.num < len(classes):
        yield f"only {drawing.num} of {len(classes)} classes were drawn"


def guess(real: Path) -> Dataset | None:
    """Guess the data set from the name of its folder."""
    name = real.resolve().name.lower()
    if "ucf" in name:
        return "ucf101"
    return "sky" if "sky" in name else None


def append(
    out: Path,
    name: str,
    results: Mapping[str, float],
    score: FvdResult | InceptionResult,
    origin: Sequence[str],
    drawing: SampleRequest,
) -> None:
    """Add a line to `metric-NAME.jsonl`.

    Raises:
        PvdmError: If it cannot be written.
    """
    line = {
        "metric": name,
        "results": dict(results),
        "model": list(origin),
        "sampling": {
            "frames": drawing.frames,
            "num": drawing.num,
            "steps": str(drawing.sampling.steps),
            "eta": drawing.sampling.eta,
            "guidance": drawing.sampling.guidance,
            "class": drawing.class_name,
            "class_guidance": drawing.sampling.class_guidance,
            "seed": drawing.seed,
        },
        "score": asdict(score),
        "version": version("pvdm"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    make_folder(out)
    try:
        with (out / f"metric-{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
    except OSError as error:
        raise PvdmError(f"cannot write {out}/metric-{name}.jsonl: {error.strerror}") from error
