"""A sampling run: what is there already, what is missing or shorter, batch by batch."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvdm_cli.errors import PvdmError
from pvdm_cli.files import make_folder, write_json
from pvdm_cli.generation import drift, pictures, pipeline, sidecars, state
from pvdm_cli.generation.labels import labels_of
from pvdm_cli.generation.profile import profile, stopwatch
from pvdm_cli.generation.request import Item, SampleRequest, SampleResult
from pvdm_cli.generation.starts import Start, find_start
from pvdm_cli.generation.state import State
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import here, restarted
from pvdm_cli.rollout import latents_at, rollout_positions
from pvdm_cli.runtime import peak_memory, reset_peak_memory
from pvdm_cli.stopwatch import Timer, untimed
from pvdm_cli.video import write

LARGEST = {"cpu": 8, "cuda": 64}  # videos at once, to begin with, where none is asked for


class Job(NamedTuple):
    """A video to draw, from where it stands."""

    place: int  # in the run
    item: Item
    state: State | None


def generate(
    model: Model,
    out: Path,
    request: SampleRequest,
    *,
    origin: Sequence[str] = ("MODEL",),
    reporter: Reporter = SILENT,
) -> SampleResult:
    """Draw the videos that are not there yet (Algorithm 1), and go on with those that are shorter.

    Args:
        model: With a denoiser, on the device to sample on.
        out: Folder of the run, made when absent.
        request: What to draw.
        origin: How the model was named on the command line, e.g. ("runs/sky", "--checkpoint",
            "20000"): for messages and sidecars.
        reporter: Told about each network step.

    Raises:
        PvdmError: If the request is impossible, the folder holds videos made with other settings,
            nothing can be written there, or memory runs out.
        KeyboardInterrupt: After what was drawn is in playable files, or at once if it comes twice;
            so is SystemExit.
    """
    run = _Run.of(model, out, request, origin, reporter)
    request = run.request
    items, ranks = request.items(), here()
    overwrite = request.overwrite and not restarted()  # else all would go with each that dies
    ranks.first(partial(_prepare, out, items, overwrite))
    jobs = run.jobs(items)
    ranks.barrier()  # all have seen the same folder
    reset_peak_memory(model.device)
    started = time.perf_counter()
    try:
        run.draw(jobs)
    finally:
        reporter.done()
    frames_drawn = sum(ranks.gather(run.frames_drawn))
    videos = [sidecars.video_path(out, item, request.format) for item in items]
    with run.timer("pictures"):
        grid, sheet, drifted = ranks.first(partial(run.show, items, videos))
    seconds = time.perf_counter() - started
    return SampleResult(
        out=out,
        videos=videos,
        made=len(jobs),
        continued=sum(job.state is not None for job in jobs),
        grid=grid,
        sheet=sheet,
        drift=drifted,
        frames=request.frames,
        frames_drawn=frames_drawn,
        fps=run.fps,
        seconds=seconds,
        peak_memory=peak_memory(model.device),
        device=str(model.device),
        profile=profile(run.timer, seconds),
    )


def _prepare(out: Path, items: Sequence[Item], overwrite: bool) -> None:
    """Make the folder, and clear away what is not to stay in it."""
    make_folder(out)
    if overwrite:
        sidecars.clear(out)
    sidecars.sweep(out, {item.name for item in items})


@dataclass
class _Run:
    """What all batches of a run share."""

    model: Model
    out: Path
    request: SampleRequest
    origin: Sequence[str]
    reporter: Reporter
    fps: float
    start: Start | None
    settings: dict[str, Any]
    timer: Timer
    frames_drawn: int = 0

    @classmethod
    def of(
        cls,
        model: Model,
        out: Path,
        request: SampleRequest,
        origin: Sequence[str],
        reporter: Reporter,
    ) -> "_Run":
        """Check the request against the model and read what it starts from."""
        request.check()
        _, schedule = model.require_denoiser(origin[0])
        assert model.config.diffusion is not None
        request.sampling.check(model.config.diffusion)
        request.sampling.plan(schedule, first=True)
        labels = labels_of(model, request, request.items()[:1], origin[0])
        request.sampling.check_labels(labels, model.config)
        fps = _frame_rate(model, request, origin[0])
        if request.seconds is not None:
            request = replace(request, frames=max(1, round(request.seconds * fps)), seconds=None)
        if request.clips is not None:
            step = model.config.clip.frames - model.config.diffusion.overlap
            request = replace(request, frames=request.clips * step, clips=None)
        start = None
        if request.prefix is not None:
            start = find_start(model, request.prefix, "--prefix", reporter, last=True)
        elif request.init is not None:
            start = find_start(model, request.init, "--init", reporter, last=False)
        settings = sidecars.run_settings(model, request, fps, start.digest if start else None)
        return cls(
            model=model,
            out=out,
            request=request,
            origin=origin,
            reporter=reporter,
            fps=fps,
            start=start,
            settings=settings,
            timer=stopwatch(model.device) if request.profile else untimed,
        )

    def existing(self) -> dict[str, dict[str, Any]]:
        """Find the videos that are there already: descriptions by name."""
        return sidecars.existing(self.out, self.settings)

    def jobs(self, items: Sequence[Item]) -> list[Job]:
        """List the videos that are missing or shorter than asked for.

        Raises:
            PvdmError: If one was made with other settings, or cannot be continued.
        """
        found = self.existing()
        jobs = []
        for place, item in enumerate(items):
            there = found.get(item.name)
            frames = there["settings"]["frames"] if there else 0
            # A gif's palette is that of its own frames: a longer one is drawn anew.
            if not there or (frames < self.request.frames and self.request.format == "gif"):
                jobs.append(Job(place, item, None))
            elif frames < self.request.frames:
                jobs.append(Job(place, item, self._state(item, frames)))
        return jobs

    def _state(self, item: Item, frames: int) -> State | None:
        """Find where a video that is too short stands; None: it stands behind the end."""
        if self.request.drift:
            raise PvdmError(
                f"{self.out / item.name} has {frames} frames, and --drift measures videos from their "
                "first clip on; choose another --out, or draw it anew with --overwrite"
            )
        path = sidecars.state_path(self.out, item.name)
        found = state.load_state(path, self.model.device)
        if found is None:
            raise PvdmError(
                f"{self.out / item.name} has {frames} frames and no state in {path.parent} to go on "
                "from; choose another --out, or draw it anew with --overwrite"
            )
        return None if found.clips > self._clips else found

    @property
    def _clips(self) -> int:
        """Clips of each video, the one it continues included."""
        return self.model.config.num_clips(self._lead + self.request.frames)

    @property
    def _lead(self) -> int:
        """Frames of the clip that is continued."""
        return self.model.config.clip.frames if self.request.prefix is not None else 0

    def _stretch(self, found: State | None) -> pipeline.Stretch:
        """Say which part of its sequence a file holds, and how much is there."""
        diffusion = self.model.config.diffusion
        assert diffusion is not None
        return pipeline.Stretch(
            first=0 if self.request.keep_prefix else self._lead,
            end=self._lead + self.request.frames,
            step=self.model.config.clip.frames - diffusion.overlap,
            clips=found.clips if found else int(self.request.prefix is not None),
            there=found.frames if found else 0,
        )

    def show(
        self, items: Sequence[Item], videos: Sequence[Path]
    ) -> tuple[Path | None, Path | None, Path | None]:
        """Write what is made of all videos together: grid, contact sheet, drift."""
        request = self.request
        grid = pictures.write_grid(self.out, videos, request, self.fps) if request.grid else None
        sheet = pictures.write_sheet(self.out, videos, request.sheet) if request.sheet else None
        found = self.existing() if request.drift else {}
        described = [found[item.name] for item in items] if found else []
        return grid, sheet, drift.write_drift(self.out, described) if found else None

    def draw(self, jobs: Sequence[Job]) -> None:
        """Draw all jobs, as many at once as asked for or as fit; processes take turns by batches."""
        ranks = here()
        largest = LARGEST.get(self.model.device.type, 8)
        size = self.request.batch_size or max(1, min(largest, -(-len(jobs) // ranks.size)))
        batches = self._batches(jobs, size)
        self._announce(batches)
        for number in ranks.tickets("sampling", len(batches)):
            left = self._batches(batches[number], size)
            while left:
                try:
                    self._draw_batch(left[0])
                except torch.OutOfMemoryError as error:
                    size = self._smaller(len(left[0]), error)
                    left = self._batches([job for batch in left for job in batch], size)
                else:
                    del left[0]

    def _batches(self, jobs: Sequence[Job], size: int) -> list[list[Job]]:
        """Group videos that stand at the same clip and are neighbours in the run.

        What is missing after a kill is drawn in the batches it would have been drawn in, so that
        not even rounding differs, but for the batch that was at its end.
        """

        def key(job: Job) -> tuple[pipeline.Stretch, int]:
            return self._stretch(job.state), job.place // size

        return [list(group) for _, group in groupby(sorted(jobs, key=key), key)]

    def _announce(self, batches: Sequence[Sequence[Job]]) -> None:
        """Tell about how many network steps are to come to each process."""
        _, schedule = self.model.require_denoiser(self.origin[0])
        begun = [self._stretch(batch[0].state).clips for batch in batches]
        calls = [
            self.request.sampling.num_calls(schedule, self._clips - clips, begun=bool(clips))
            for clips in begun
        ]
        self.reporter.start("sampling", total=-(-sum(calls) // here().size), unit="step")

    def _smaller(self, size: int, error: torch.OutOfMemoryError) -> int:
        """Halve a batch that did not fit, unless it was asked for."""
        if self.request.batch_size is not None or size == 1:
            raise PvdmError(
                f"{self.model.device} ran out of memory drawing {size} videos at once; "
                "use a smaller --batch-size, or --device cpu"
            ) from error
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        self.reporter.say(f"{size} videos at once do not fit into memory; trying {size // 2}")
        return size // 2

    def _draw_batch(self, jobs: Sequence[Job]) -> None:
        """Draw videos that stand at the same clip together, written as their clips are ready."""
        items = [job.item for job in jobs]
        states = [job.state for job in jobs if job.state is not None]
        stretch = self._stretch(jobs[0].state)
        labels = labels_of(self.model, self.request, items, self.origin[0])
        described = [self._description(item, labels, k) for k, item in enumerate(items)]
        start = state.join(states, self.model.device) if states else None
        given = None if start or not self.start else self.start.z.expand(len(items), -1, -1)
        continued = given if self.request.prefix is not None else None
        positions = rollout_positions(
            self.model,
            self._clips - stretch.clips,
            generators=[item.source(self.model.device) for item in items],
            sampling=self.request.sampling,
            z_prefix=continued,
            z_init=given if self.request.init is not None else None,
            start=start,
            labels=labels,
            on_step=lambda k, num_steps: self.reporter.advance(),
            timer=self.timer,
        )
        base = latents_at(self.model, start) if start else continued
        assert self.model.config.diffusion is not None
        meter = drift.Meter(len(items), self.model.config.diffusion.overlap)
        watch = meter if self.request.drift else None
        interrupted: BaseException | None = None
        with ExitStack() as stack:
            writers = [
                stack.enter_context(self._writer(job, sidecars.about(description)))
                for job, description in zip(jobs, described, strict=True)
            ]
            scribe = pipeline.Scribe(self.model, writers, stretch, base, self.timer, watch)
            try:
                pipeline.run(positions, scribe, self.timer)
            except (KeyboardInterrupt, SystemExit) as stop:
                nothing = scribe.last is None or self._new(stretch, writers[0].num_frames) <= 0
                if nothing or scribe.dropped:
                    raise
                interrupted = stop
        num_frames = writers[0].num_frames
        self.frames_drawn += len(items) * (num_frames - stretch.there)
        if position := scribe.last or start:
            settled = stretch.settled(scribe.clips)
            states = state.split(position, scribe.clips, settled, self.model.device)
            for item, found in zip(items, states, strict=True):
                state.save_state(sidecars.state_path(self.out, item.name), found)
        for item, description, rows in zip(items, described, meter.rows, strict=True):
            measured = {"drift": rows} if self.request.drift else {}
            settings = {**description["settings"], "frames": self._new(stretch, num_frames)}
            path = sidecars.sidecar_path(self.out, item.name)
            write_json(path, {**description, **measured, "settings": settings})
        if interrupted is not None:
            raise interrupted

    def _new(self, stretch: pipeline.Stretch, num_frames: int) -> int:
        """Frames of a file that were drawn."""
        return stretch.first + num_frames - self._lead

    def _writer(self, job: Job, about: str) -> Any:
        """Open the file of a video; one that is continued begins with what it has."""
        clip = self.model.config.clip
        path = sidecars.video_path(self.out, job.item, self.request.format)
        return write.open_writer(
            path,
            fps=self.fps,
            height=clip.height,
            width=clip.width,
            quality=self.request.quality,
            about=about,
            old=write.Old(path, job.state.frames) if job.state else None,
        )

    def _description(self, item: Item, labels: Tensor | None, row: int) -> dict[str, Any]:
        """Describe the video in one row of a batch."""
        label = None if labels is None else int(labels[row])
        return sidecars.describe(self.model, self.request, self.settings, self.origin, item, label)


def _frame_rate(model: Model, request: SampleRequest, name: str) -> float:
    """Return the frame rate asked for, or that of the videos the model was trained on."""
    fps = request.fps or model.fps
    if fps is None:
        raise PvdmError(f"{name} does not know the frame rate of its videos; give one with --fps")
    return float(fps)
