"""`pvdm demo`: every stage once, on videos it draws itself or on the user's own.

Each step first says the command that does the same by hand.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pvdm_cli.acceleration import accelerate
from pvdm_cli.benchmark.noise import noise_stage
from pvdm_cli.benchmark.timing import seconds_of
from pvdm_cli.benchmark.train import stepper
from pvdm_cli.config import load_config
from pvdm_cli.data.selection import select
from pvdm_cli.encoding import EncodeResult, encode_videos
from pvdm_cli.generation.request import SampleRequest, SampleResult
from pvdm_cli.generation.run import generate
from pvdm_cli.model import load_model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.runs import run_training
from pvdm_cli.runtime import resolve_device
from pvdm_cli.sampling import Sampling, Steps
from pvdm_cli.training.loop import TrainResult
from pvdm_cli.video.synthetic import write_skies

NUM_SKIES = {False: 24, True: 800}  # from the shipped weights; from scratch
FIRST_SKY = 100_000  # seeds apart from those the shipped model was trained on (0 to 799)
SKY_FRAMES = 64
WINDOW_STRIDE = 4
STEPS = "50/25"

# Going on from trained weights: a small constant rate, held for as long as the minutes last.
GO_ON = (
    "training.lr_schedule=constant",
    "training.steps=1000000",
    "training.warmup_steps=20",
    "training.log_every=10",
    "training.validate_every=50",
    "training.sample_every=0",
)
SMALL_RATE = {"demo/autoencoder": "training.lr=2e-4", "demo/diffusion": "training.lr=2e-5"}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made, in the order it was made.

    Attributes:
        videos: Folder of videos it learnt from.
        autoencoder: Training of the first stage, None if the shipped one was used.
        encoded: The latent cache.
        diffusion: Training of the second stage.
        sampled: The 128-frame videos and the grid.
        seconds: The whole.
    """

    videos: Path
    autoencoder: TrainResult | None
    encoded: EncodeResult
    diffusion: TrainResult
    sampled: SampleResult
    seconds: float


def run_demo(
    out: Path,
    *,
    data: Path | None = None,
    from_scratch: bool = False,
    minutes: float = 1.0,
    frames: int = 128,
    num: int = 4,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> DemoResult:
    """Draw videos, encode them, train, and sample a long video, all below `out`.

    Args:
        out: Folder for everything; the same call again goes on where it stopped.
        data: The user's own videos instead of drawn skies; then the autoencoder trains too.
        from_scratch: Train both stages in full instead of going on from the shipped weights.
        minutes: How long each stage goes on from the shipped weights.
        frames: Frames of the sampled videos.
        num: Sampled videos.
        seed: Seed of the sampled videos.
        device: cpu | cuda | mps | auto.
        reporter: Told of progress, and of the command that does each step by hand.
    """
    began = time.perf_counter()
    videos = data or _draw(out / "videos", from_scratch, reporter)
    trained = None
    encoder = "demo"
    if data is not None or from_scratch:
        encoder = str(out / "autoencoder")
        trained = _train(
            "demo/autoencoder", Path(encoder), from_scratch, minutes, device, reporter, data=videos
        )
    cache = out / "cache"
    _say(
        reporter,
        f"encode {videos} --autoencoder {encoder} --window-stride {WINDOW_STRIDE} --out {cache}",
    )
    encoded = encode_videos(
        accelerate(load_model(encoder, device)),
        select(videos).sources,
        cache,
        window_stride=WINDOW_STRIDE,
        reporter=reporter,
        hints=(encoder, str(videos)),
    )
    run = out / "diffusion"
    diffusion = _train("demo/diffusion", run, from_scratch, minutes, device, reporter, cache=cache)
    sampled = _sample(run, out / "samples", frames, num, seed, device, reporter)
    seconds = time.perf_counter() - began
    return DemoResult(videos, trained, encoded, diffusion, sampled, seconds)


def estimate_hours(device: str = "auto") -> float:
    """Measure how long training both demo stages in full takes here, from two steps of each."""
    target = resolve_device(device)
    seconds = 0.0
    for preset in SMALL_RATE:
        config = load_config(preset)
        step = stepper(noise_stage(config, target), config)
        step()  # the first makes the optimizer's moments
        seconds += config.training.steps * min(seconds_of(step, target) for _ in range(2))
    return seconds / 3600


def _draw(folder: Path, from_scratch: bool, reporter: Reporter) -> Path:
    """Draw skies that the shipped model has not seen (or, from scratch, those it has)."""
    num, seed = NUM_SKIES[from_scratch], 0 if from_scratch else FIRST_SKY
    _say(reporter, f"data sky --num {num} --frames {SKY_FRAMES} --seed {seed} --out {folder}")
    write_skies(folder, num, frames=SKY_FRAMES, seed=seed, reporter=reporter)
    return folder


def _train(
    preset: str,
    run: Path,
    from_scratch: bool,
    minutes: float,
    device: str,
    reporter: Reporter,
    *,
    data: Path | None = None,
    cache: Path | None = None,
) -> TrainResult:
    """Train a stage in full, or from the shipped weights for some minutes."""
    overrides = () if from_scratch else ("init=demo", SMALL_RATE[preset], *GO_ON)
    source = f"--data {data}" if data else f"--cache {cache}"
    held = "" if from_scratch else f"   (stopped after {minutes:g} min)"
    _say(reporter, " ".join(["train", preset, source, "--out", str(run), *overrides]) + held)
    return run_training(
        load_config(preset, overrides),
        run,
        data=data,
        cache=cache,
        device=device,
        provenance={"preset": preset, "overrides": list(overrides)},
        reporter=reporter,
        stop=(lambda: False) if from_scratch else _after(minutes),
    )


def _after(minutes: float) -> Callable[[], bool]:
    """Return a question that is answered yes once the minutes are over, from the first asking."""
    deadline: list[float] = []

    def over() -> bool:
        if not deadline:
            deadline.append(time.monotonic() + 60 * minutes)
        return time.monotonic() >= deadline[0]

    return over


def _sample(
    run: Path, out: Path, frames: int, num: int, seed: int, device: str, reporter: Reporter
) -> SampleResult:
    """Sample long videos and put them side by side in a gif."""
    _say(
        reporter,
        f"sample {run} --frames {frames} --num {num} --steps {STEPS} --seed {seed} "
        f"--grid gif --out {out}",
    )
    request = SampleRequest(
        frames=frames,
        num=num,
        sampling=Sampling(steps=Steps.parse(STEPS)),
        seed=seed,
        grid="gif",
        overwrite=True,
    )
    model = accelerate(load_model(run, device))
    return generate(model, out, request, origin=[str(run)], reporter=reporter)


def _say(reporter: Reporter, command: str) -> None:
    """Name the command that does the next step by hand."""
    reporter.say(f"$ pvdm {command}")
