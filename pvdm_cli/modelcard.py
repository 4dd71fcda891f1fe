"""The card of a published model: the README.md that the hub shows, written from what is recorded.

No path of the machine that trained it comes into it: of every absolute path only the name is kept.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from pvdm_cli.describe import describe
from pvdm_cli.model import checkpoint_step
from pvdm_cli.report.evaluation import scores
from pvdm_cli.report.records import Facts, Record, read_record

TAGS = ["pvdm", "video-generation", "diffusion"]
PLACEHOLDERS = {"--data": "VIDEOS", "--cache": "CACHE", "--autoencoder": "MODEL"}
SOURCE = "https://arxiv.org/abs/2302.07685"
CITATION = """\
@inproceedings{yu2023video,
  title     = {Video Probabilistic Diffusion Models in Projected Latent Space},
  author    = {Yu, Sihyun and Sohn, Kihyuk and Kim, Subin and Shin, Jinwoo},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023}
}"""

# An absolute path inside a text: after its beginning, a blank, =, a comma or an opening bracket.
_PLACE = re.compile(r"(?:(?<=[\s=,(\[\"'])|^)(?:~|[A-Za-z]:)?[/\\][^\s,)\]\"']+")


class Shown(NamedTuple):
    """A sample on the card.

    Attributes:
        file: Its name beside the card.
        caption: What can be seen, in words.
    """

    file: str
    caption: str


def write_card(
    repo: str, model: Path, *, samples: Sequence[Shown] = (), license: str | None = None
) -> str:
    """Write the card of a model.

    Args:
        repo: owner/name it gets on the hub.
        model: The model folder; one inside a run brings the run's evaluations with it.
        samples: Videos shown.
        license: Of the weights, by its name on the hub, e.g. mit.

    Returns:
        Markdown with YAML front matter.
    """
    from huggingface_hub import ModelCardData  # slow to import, rarely needed

    facts = describe(model).facts
    provenance = without_places(facts["provenance"])
    run = run_of(model)
    record = read_record(run, run.name) if run else None
    data = ModelCardData(library_name="pvdm", license=license, tags=TAGS)
    pictures = [f"![sample]({shown.file})\n\n*{shown.caption}.*" for shown in samples]
    parts = [
        f"---\n{data.to_yaml().strip()}\n---",
        f"# {repo.partition('/')[2]}",
        *pictures,
        _what(facts),
        f"## How to use it\n\n{_use(repo, facts)}",
        f"## Data\n\n{_data(provenance, record)}",
        f"## Training\n\n{_training(provenance, record)}",
        f"## Results\n\n{_results(provenance, model, record)}",
        f"## Citation\n\nThe method is that of [PVDM]({SOURCE}):\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def run_of(model: Path) -> Path | None:
    """Return the run folder that a model folder is a checkpoint of, if it is one."""
    place = model.resolve()
    is_checkpoint = place.name == "model" and place.parents[1].name == "checkpoints"
    return (
        place.parents[2] if is_checkpoint and (place.parents[2] / "config.yaml").is_file() else None
    )


def without_places(value: Any) -> Any:
    """Keep of every absolute path in a text, or in nested lists and mappings, only its name."""
    if isinstance(value, dict):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=")
    if re.match(r"~|[A-Za-z]:[/\\]|[/\\]", path):  # the whole value: blanks belong to it
        return f"{key}{equals}{PureWindowsPath(path).name}"
    return _PLACE.sub(lambda found: PureWindowsPath(found[0]).name, value)


def _what(facts: Facts) -> str:
    """Say what the model is: networks, clips, size."""
    networks, whole = facts["networks"], "denoiser" in facts["networks"]
    kind = (
        f"A [PVDM]({SOURCE}) model that draws long videos clip by clip: an "
        "autoencoder between clips and three small planes, and the U-Net that draws such planes."
        if whole
        else f"The autoencoder of a [PVDM]({SOURCE}) model, between clips "
        "and three small planes. It encodes and decodes; it draws no videos by itself."
    )
    rows = [
        ("clip", facts["clip"]),
        ("frame rate", f"{facts['fps']:g} frames a second" if facts["fps"] else "not recorded"),
        ("latent of a clip", facts["latent"]),
        *((f"{name}, parameters", f"{told['parameters']:,}") for name, told in networks.items()),
        *([("objective", facts["objective"])] if whole else []),
        *([("classes", ", ".join(facts["classes"]))] if facts["classes"] else []),
    ]
    return f"{kind}\n\n{_table(('', ''), rows)}"


def _use(repo: str, facts: Facts) -> str:
    """Show the command that uses it, and the same in Python."""
    if "denoiser" in facts["networks"]:
        command = f"pvdm sample {repo} --frames 128"
        more = f"{command} --class {shlex.quote(facts['classes'][0])}" if facts["classes"] else ""
    else:
        command, more = f"pvdm encode VIDEOS --autoencoder {repo} --out CACHE", ""
    lines = "\n".join(line for line in (command, more) if line)
    return (
        f"With `pvdm` {version('pvdm')} or later:\n\n```bash\n{lines}\n```\n\n"
        f'```python\nfrom pvdm_cli import api\n\nmodel = api.load_model("{repo}")\n```'
    )


def _parts(provenance: Facts) -> Iterator[tuple[str, Facts]]:
    """Yield what is known of each stage; a model of one run knows one, the shipped one both."""
    stages = ("autoencoder", "denoiser")
    nested = [
        (str(key), provenance[key]) for key in stages if isinstance(provenance.get(key), dict)
    ]
    yield from nested or [(str(provenance.get("stage", "model")), provenance)]


def _data(provenance: Facts, record: Record | None) -> str:
    """Say what it learnt from, as far as that is recorded."""
    if told := provenance.get("trained_on"):
        return f"{told}."
    named = _inputs(record)
    if data := named.get("--data"):
        return f"The videos of `{Path(data).name}`."
    if cache := named.get("--cache") or provenance.get("cache"):
        return f"The latent cache `{Path(cache).name}`."
    return "Not recorded in the model."


def _inputs(record: Record | None) -> dict[str, str]:
    """What the last start of a run was given, by the name of the option."""
    command = record.starts[-1].get("command") if record and record.starts else None
    words = without_places(command) if isinstance(command, list) else []
    return {key: value for key, value in pairwise(words) if key in PLACEHOLDERS}


def _training(provenance: Facts, record: Record | None) -> str:
    """Show the commands that trained it, without the places of its data."""
    if origin := provenance.get("converted_from"):
        files = ", ".join(f"`{told['file']}` (sha256 {told['sha256']})" for told in origin.values())
        return f"Converted from published weights by `pvdm convert`: {files}."
    lines, steps = [], []
    for name, told in _parts(provenance):
        if "preset" in told:
            usual = ["--cache" if told.get("stage") == "diffusion" else "--data"]
            source = " ".join(f"{o} {PLACEHOLDERS[o]}" for o in _inputs(record) or usual)
            words = shlex.join(["pvdm", "train", told["preset"]])
            rest = shlex.join(map(str, told.get("overrides", ())))
            lines.append(f"{words} {source} --out RUN {rest}".strip())
        if isinstance(told.get("step"), int):
            steps.append(f"{told['step']:,} steps ({name})")
    if not lines:
        return "Not recorded in the model."
    last = record.starts[-1] if record and record.starts else {}
    gpus = last.get("device") and f" The last start was on `{last['device']}`."
    said = f"\n\nThese are the weights after {' and '.join(steps)}.{gpus or ''}" if steps else ""
    return "```bash\n" + "\n".join(lines) + f"\n```{said}"


def _results(provenance: Facts, model: Path, record: Record | None) -> str:
    """Show validation figures of training, and the scores that `pvdm eval` has left in the run."""
    rows = [
        (f"`{metric}`", f"{value:.4g}", f"validation while training ({name})")
        for name, told in _parts(provenance)
        for metric, value in (told.get("metrics") or {}).items()
        if isinstance(value, int | float)
    ]
    if record:
        rows += list(_scores(record, checkpoint_step(model.resolve().parent)))
    return _table(("", "", "how"), rows) if rows else "None recorded."


def _scores(record: Record, step: int) -> Iterator[tuple[str, str, str]]:
    """Yield the scores of a checkpoint; a line that names none scored the newest of its time."""
    for line in record.evaluations:
        words = [str(word) for word in line.get("model") or ()]
        named = words[words.index("--checkpoint") + 1] if "--checkpoint" in words[:-1] else None
        if named == "best" and record.best == f"step-{step:08d}":
            named = str(step)
        if named not in (None, str(step)):
            continue
        told = line.get("sampling")
        sampling = told.items() if isinstance(told, dict) else ()
        how = [f"{key} {value}" for key, value in sampling if value is not None]
        for score in scores(line):
            whose = "newest checkpoint then" if named is None else f"checkpoint {named}"
            measured = ", ".join(["`pvdm eval`", *how, whose, score.time]).rstrip(", ")
            yield f"`{score.name}`", f"{score.value:.4g}", measured


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
