"""Configuration: frozen pydantic models, presets by name or path, key=value overrides.

Every size that another module needs is derived here, once.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pvdm_cli.errors import ConfigError, did_you_mean
from pvdm_cli.shipped import PACKAGE as PACKAGE
from pvdm_cli.shipped import preset_path


class LatentShape(NamedTuple):
    """Sizes of one clip's triplane latent: c channels, s frames, h x w patches."""

    c: int
    s: int
    h: int
    w: int

    @property
    def plane_lengths(self) -> list[int]:
        """Numbers per channel in the planes hw, sw, sh."""
        return [self.h * self.w, self.s * self.w, self.s * self.h]

    @property
    def flat(self) -> int:
        """Flat length n = h*w + s*w + s*h (2048 for 16 frames on a 32x32 grid)."""
        return sum(self.plane_lengths)


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)
Momentum = Annotated[float, Field(ge=0, lt=1)]

AUTO = 0  # a batch size that is still to be found


def _read_batch_size(value: Any) -> Any:
    """Take `auto` for a batch size that is still to be found; refuse to be told of none."""
    if value == "auto":
        return AUTO
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value} is less than one clip; give 1 or more, or auto")
    return value


def _write_batch_size(value: int) -> int | str:
    """Write what `_read_batch_size` reads."""
    return value or "auto"


BatchSize = Annotated[
    int, BeforeValidator(_read_batch_size), PlainSerializer(_write_batch_size, when_used="json")
]


class ClipConfig(Section):
    """How a clip is cut out of a video."""

    frames: int = Field(16, ge=1, description="frames of one clip, s")
    frame_stride: int = Field(1, ge=1, description="take every k-th frame of the source")
    height: int = Field(256, ge=8, description="pixels, a multiple of autoencoder.patch")
    width: int = Field(256, ge=8, description="pixels, a multiple of autoencoder.patch")
    resize: Literal["bilinear", "lanczos", "area"] = Field(
        "area", description="filter that brings frames to this size, after a centre crop"
    )
    antialias: bool = Field(
        True, description="off only for published behaviour (bilinear without antialias)"
    )


class AutoencoderConfig(Section):
    """The triplane autoencoder (Sec. 3.2); defaults are the published sizes."""

    patch: int = Field(8, ge=1, description="patch side d in pixels")
    width: int = Field(384, ge=8, description="channels C inside the transformers, a multiple of 8")
    depth: int = Field(8, ge=1, description="blocks of the encoder, and of the decoder")
    num_heads: int = Field(8, ge=1, description="attention heads of these blocks")
    head_dim: int = Field(64, ge=4, description="size of a head, a multiple of 4")
    latent_channels: int = Field(4, ge=1, description="channels c of each latent plane")
    projection_depth: int = Field(4, ge=1, description="blocks of each projection transformer")
    projection_heads: int = Field(4, ge=1, description="attention heads of the projections")
    projection_mlp: int = Field(512, ge=1, description="hidden width of the projections")

    @model_validator(mode="after")
    def _splittable_heads(self) -> Self:
        """Reject widths that the rotary table or the projection heads cannot split."""
        if self.head_dim % 4:
            raise ValueError(f"head_dim={self.head_dim} is not a multiple of 4 (rotary table)")
        if self.width % 8:
            raise ValueError(f"width={self.width} is not a multiple of 8 (projection heads)")
        return self

    @property
    def projection_head_dim(self) -> int:
        """Head size of the projection transformers, width/8."""
        return self.width // 8


class DenoiserConfig(Section):
    """The 2D U-Net over the three planes (Sec. 3.3); defaults are PVDM-L."""

    base_channels: int = Field(
        256, ge=32, description="channels of the first level, a multiple of 32; PVDM-S has 128"
    )
    channel_multipliers: tuple[PositiveInt, ...] = Field(
        (1, 2, 4, 4),
        min_length=1,
        description="one per level; each level after the first halves every latent side",
    )
    num_res_blocks: int = Field(2, ge=1, description="residual blocks per level")
    attention_downsamplings: tuple[PositiveInt, ...] = Field(
        (1, 2, 4), description="factors at which each plane has attention of its own"
    )
    num_heads: int = Field(8, ge=1, description="attention heads")
    positions: bool = Field(
        False, description="learned embedding of plane and position; the published network has none"
    )
    normalise: bool = Field(
        False, description="work on latents of mean 0 and variance 1, by the cache's statistics"
    )
    classes: tuple[str, ...] = Field(
        (),
        description="names of the classes it knows; left out, data.labels=true takes the cache's",
    )

    @model_validator(mode="after")
    def _distinct_classes(self) -> Self:
        """Reject names that do not tell classes apart."""
        for name in self.classes:
            if not name or self.classes.count(name) > 1:
                raise ValueError(f"classes holds {name!r} {'twice' if name else '(no name)'}")
        return self

    @model_validator(mode="after")
    def _splittable_channels(self) -> Self:
        """Reject channel counts that GroupNorm(32) or the heads cannot split."""
        if self.base_channels % 32:
            raise ValueError(f"base_channels={self.base_channels} is not a multiple of 32")
        if self.base_channels % self.num_heads:
            raise ValueError(
                f"base_channels={self.base_channels} is not a multiple of "
                f"num_heads={self.num_heads}"
            )
        return self

    @property
    def divisor(self) -> int:
        """What every latent side must be a multiple of: 2^(levels-1)."""
        return 2 ** (len(self.channel_multipliers) - 1)


class DiffusionConfig(Section):
    """The forward process and what the network is asked for (method: eps, published betas)."""

    num_timesteps: int = Field(1000, ge=2, description="timesteps T")
    beta_start: float = Field(0.0015, gt=0, lt=1, description="first noise variance")
    beta_end: float = Field(
        0.0195, gt=0, lt=1, description="last one; linear in its square root between"
    )
    objective: Literal["eps", "x0", "v", "flow"] = Field(
        "eps", description="what the network predicts; flow brings its own noise levels"
    )
    zero_terminal_snr: bool = Field(
        False, description="leave no signal at the last timestep; for x0 and v"
    )
    min_snr: float = Field(
        0.0, ge=0, description="gamma of the min-SNR weighting of the loss, usually 5; 0: none"
    )
    prefix_prob: float = Field(0.3, ge=0, le=1, description="chance of training with the prefix")
    prefix_noise: float = Field(
        0.0,
        ge=0,
        description="largest standard deviation of noise on the prefix in training; the network is "
        "told how much",
    )
    class_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="chance of training without the class, which guidance needs; with data.labels",
    )
    overlap: int = Field(
        0, ge=0, description="frames a clip shares with the one before, at most half; published: 0"
    )
    clamp: bool = Field(
        True, description="clamp predicted z0 to the autoencoder's [-1, 1] while sampling"
    )

    @model_validator(mode="after")
    def _rising_betas(self) -> Self:
        """Reject a schedule that falls."""
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end={self.beta_end} is below beta_start={self.beta_start}")
        return self

    @model_validator(mode="after")
    def _terminal_signal(self) -> Self:
        """Reject a last timestep from which z0 cannot be told, and keys that change nothing."""
        if self.zero_terminal_snr and self.objective == "eps":
            raise ValueError(
                "zero_terminal_snr=true leaves nothing of z0 at the last timestep, where "
                "objective=eps needs some; use objective=v"
            )
        if self.objective == "flow":
            for key in ("beta_start", "beta_end", "zero_terminal_snr"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"objective=flow has its own noise levels; leave out {key}")
        return self


class LossConfig(Section):
    """Weights of the autoencoder's reconstruction loss (Sec. 3.2)."""

    l1: float = Field(4.0, ge=0, description="weight of the absolute error")
    l2: float = Field(0.0, ge=0, description="weight of the squared error")
    lpips: float = Field(
        0.0, ge=0, description="weight of the perceptual loss (LPIPS, VGG16) of one frame per clip"
    )
    latent_noise: float = Field(
        0.0,
        ge=0,
        description="largest standard deviation of noise on the latents: a decoder that forgives",
    )


class AdversarialConfig(Section):
    """The published second phase of the autoencoder: two PatchGANs take turns with it."""

    discriminator_channels: int = Field(64, ge=1, description="channels of its first layer")
    discriminator_layers: int = Field(3, ge=1, description="downsampling layers")
    generator_weight: float = Field(1.0, ge=0, description="weight of the hinge loss")
    feature_weight: float = Field(4.0, ge=0, description="weight of feature matching")
    ramp_steps: int = Field(0, ge=0, description="steps over which both weights rise from 0")
    discriminator_grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")


class TrainingConfig(Section):
    """The optimisation of one stage."""

    steps: int = Field(100_000, ge=1, description="optimizer steps")
    batch_size: BatchSize = Field(
        8,
        description="clips per forward pass; auto takes the largest that fits in memory; several "
        "processes share the clips of a step out",
    )
    accumulation: int = Field(1, ge=1, description="forward passes per optimizer step")
    clips_per_step: int = Field(
        0,
        ge=0,
        description="clips per optimizer step: if given, accumulation follows from batch_size",
    )
    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    lr_schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps of a rate that rises linearly")
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="momenta of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    grad_clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 turns it off")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of the forward pass; auto is bf16 on GPUs that have it, else fp32; fp16 needs "
        "a GPU",
    )
    compile: bool = Field(
        False, description="torch.compile the network: minutes at the start, faster steps after"
    )
    activation_checkpointing: Literal["none", "attention", "block"] = Field(
        "none",
        description="what is computed again in the backward pass instead of kept in memory: slower",
    )
    zero: bool = Field(
        False, description="several processes: each keeps the moments of a part of the weights"
    )
    retries: int = Field(
        3,
        ge=0,
        description="times to go back to the last checkpoint when a loss is no number, each time at "
        "half the learning rate (in the adversarial phase: half its weights)",
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="average of the weights; 0 turns it off")
    ema_every: int = Field(1, ge=1, description="steps between two updates of the average")
    seed: int = Field(0, ge=0, description="of the initial weights and of every draw")
    log_every: int = Field(50, ge=1, description="steps between two lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="also write TensorBoard events to the run folder")
    validate_every: int = Field(
        1000, ge=1, description="steps between two measurements on held-out videos"
    )
    validation_clips: int = Field(64, ge=1, description="how many clips of them")
    judge: Literal["psnr", "rfvd", "fvd"] = Field(
        "psnr",
        description="which figure the best checkpoint and patience go by. First stage: psnr or rfvd "
        "of held-out videos; second stage: fvd of the few drawn ones of score_every, in place of "
        "val_loss. rfvd and fvd need the I3D (docs/evaluation.md)",
    )
    patience: int = Field(
        0,
        ge=0,
        description="measurements in a row without a better figure that end a run; 0: never",
    )
    sample_every: int = Field(0, ge=0, description="0 draws samples only at the end")
    score_every: int = Field(
        0,
        ge=0,
        description="second stage: steps between two FVD of a few drawn videos; needs the I3D; 0: "
        "never",
    )
    score_videos: int = Field(16, ge=2, description="how few")
    checkpoint_every: int = Field(1000, ge=1, description="steps between two checkpoints")
    checkpoint_minutes: float = Field(
        30, ge=0, description="minutes after which one is saved all the same; 0: never"
    )
    keep_last: int = Field(2, ge=1, description="checkpoints kept")
    keep_every: int = Field(0, ge=0, description="keep every checkpoint of a multiple of this step")

    @model_validator(mode="before")
    @classmethod
    def _accumulation_follows(cls, values: Any) -> Any:
        """Work out accumulation from clips_per_step, unless it is given."""
        if not isinstance(values, dict) or "accumulation" in values:
            return values
        total, batch = values.get("clips_per_step"), values.get("batch_size", 8)
        if not (isinstance(total, int) and isinstance(batch, int) and total and batch > 0):
            return values
        return {**values, "accumulation": max(1, total // batch)}

    @model_validator(mode="after")
    def _whole_passes(self) -> Self:
        """Reject a step that its forward passes do not make up."""
        total, batch = self.clips_per_step, self.batch_size
        if total and not batch and self.accumulation != 1:
            raise ValueError(
                "accumulation follows from clips_per_step when batch_size=auto; leave it out"
            )
        if total and batch and batch * self.accumulation != total:
            raise ValueError(
                f"clips_per_step={total} is not batch_size={batch} times "
                f"accumulation={self.accumulation}; choose a batch_size that divides it, or "
                "another clips_per_step (0: none is fixed)"
            )
        return self

    def with_batch(self, batch_size: int) -> Self:
        """Return the same at another batch size; accumulation follows where it can."""
        values = self.model_dump() | {"batch_size": batch_size}
        if self.clips_per_step:
            del values["accumulation"]
        return type(self).model_validate(values)


def _read_globs(value: Any) -> Any:
    """Take one pattern for a list of one."""
    return (value,) if isinstance(value, str) else value


Globs = Annotated[tuple[str, ...], BeforeValidator(_read_globs)]


class FramePolicy(Section):
    """Which frames of a video count, and which part of each."""

    rate: float | None = Field(
        None, gt=0, description="frames a second, picked by time; null takes frames as stored"
    )
    fps: float | None = Field(
        None, gt=0, description="frame rate of arrays and folders of frames, which name none"
    )
    short: Literal["skip", "loop", "hold"] = Field(
        "skip", description="videos shorter than a clip: left out, begun again, or last frame held"
    )
    crop: Literal["centre", "random", "letterbox"] = Field(
        "centre",
        description="the middle, a random place (one for each video), or all of it on black",
    )


class Policy(FramePolicy):
    """All that decides how clips are cut out of given videos; part of what a cache is."""

    flip: bool = Field(False, description="a mirrored copy of each video is there, too")
    seed: int = Field(0, ge=0, description="of crop: random")


AS_STORED = Policy()


class Selection(Section):
    """Which videos of a data set are taken."""

    include: Globs = Field((), description="only names that match one of these, e.g. *.avi")
    exclude: Globs = Field((), description="no names that match one of these")
    split: Literal["all", "train", "test"] = Field(
        "all", description="by UCF-101's lists, a table's column split, or folders train and test"
    )
    fold: int = Field(1, ge=1, le=3, description="which lists of UCF-101")


class DataConfig(FramePolicy, Selection):
    """Where clips come from and which videos are held out."""

    cache: bool = Field(
        True, description="off: the second stage encodes videos as it goes instead of a cache"
    )
    labels: bool = Field(
        False, description="the second stage learns the classes of the cache (or of folders)"
    )
    holdout: float = Field(
        0.05, ge=0, lt=1, description="share of videos kept for validation, chosen by path hash"
    )
    flip: bool = Field(
        False, description="also learn from mirrored clips; in the second stage with cache=off"
    )
    verify: bool = Field(
        True,
        description="read every byte of a cache that is too large for memory before training, to "
        "see that it is right",
    )
    memory_gb: float = Field(
        4.0, ge=0, description="hold decoded videos, or the cache, in memory up to this size"
    )
    num_workers: int = Field(2, ge=0, description="threads that prepare batches ahead of time")


class ModelConfig(Section):
    """What the networks are: everything `model.json` must hold to rebuild them."""

    clip: ClipConfig = ClipConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    denoiser: DenoiserConfig | None = None
    diffusion: DiffusionConfig | None = None

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        """Reject clips that do not split into whole patches or cannot be halved by the U-Net."""
        for side in ("height", "width"):
            if getattr(self.clip, side) % self.autoencoder.patch:
                raise ValueError(
                    f"clip.{side}={getattr(self.clip, side)} is not a multiple of "
                    f"autoencoder.patch={self.autoencoder.patch}"
                )
        if self.diffusion is not None and 2 * self.diffusion.overlap > self.clip.frames:
            raise ValueError(
                f"diffusion.overlap={self.diffusion.overlap} is more than half of "
                f"clip.frames={self.clip.frames}"
            )
        if self.denoiser is not None:
            divisor, latent = self.denoiser.divisor, self.latent
            sides = {
                "clip.frames": latent.s,
                "clip.height / autoencoder.patch": latent.h,
                "clip.width / autoencoder.patch": latent.w,
            }
            for name, size in sides.items():
                if size % divisor:
                    raise ValueError(
                        f"{name} is {size}, which is not a multiple of {divisor}: the U-Net's "
                        f"{len(self.denoiser.channel_multipliers)} levels halve every side "
                        f"{len(self.denoiser.channel_multipliers) - 1} times"
                    )
        return self

    @property
    def latent(self) -> LatentShape:
        """Sizes of the triplane latent of one clip."""
        patch = self.autoencoder.patch
        return LatentShape(
            c=self.autoencoder.latent_channels,
            s=self.clip.frames,
            h=self.clip.height // patch,
            w=self.clip.width // patch,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the denoiser knows."""
        return self.denoiser.classes if self.denoiser else ()

    def num_clips(self, frames: int) -> int:
        """Clips that a roll-out needs for so many frames."""
        overlap = self.diffusion.overlap if self.diffusion else 0
        return max(1, -(-(frames - overlap) // (self.clip.frames - overlap)))


class RunConfig(ModelConfig):
    """One training run: the networks, the stage, and how it is trained."""

    stage: Literal["autoencoder", "diffusion"] = Field(description="which network is trained")
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig | None = None
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    init: str | None = Field(None, description="model or run folder whose weights to start from")

    @model_validator(mode="after")
    def _stage_has_its_parts(self) -> Self:
        """Reject a diffusion stage without a denoiser."""
        if self.stage == "diffusion" and (self.denoiser is None or self.diffusion is None):
            raise ValueError("stage: diffusion needs the sections denoiser and diffusion")
        if self.stage == "diffusion" and self.adversarial is not None:
            raise ValueError("adversarial belongs to stage: autoencoder; leave it out")
        if self.stage == "diffusion" and self.loss != LossConfig():
            raise ValueError("loss belongs to stage: autoencoder; leave it out")
        judge = self.training.judge
        if self.stage == "diffusion" and judge == "rfvd":
            raise ValueError(
                "training.judge=rfvd belongs to stage: autoencoder; the second stage goes by val_loss, "
                "or by training.judge=fvd"
            )
        if self.stage == "autoencoder" and judge == "fvd":
            raise ValueError(
                "training.judge=fvd belongs to stage: diffusion; the first stage goes by psnr or rfvd"
            )
        if judge == "fvd" and not self.training.score_every:
            raise ValueError(
                "training.judge=fvd goes by the scores of a few drawn videos: say how often to score "
                "by training.score_every"
            )
        goes_by_held_out = judge == "rfvd" or (self.training.patience and judge == "psnr")
        if not self.data.holdout and goes_by_held_out:
            raise ValueError(
                "training.patience and training.judge go by held-out videos, of which "
                "data.holdout=0 leaves none; hold some out, or leave them out"
            )
        if self.stage == "autoencoder" and self.training.score_every:
            raise ValueError("training.score_every belongs to stage: diffusion; leave it out")
        if self.stage == "autoencoder" and not self.data.cache:
            raise ValueError("data.cache=off belongs to stage: diffusion; leave it out")
        if self.stage == "autoencoder" and self.data.labels:
            raise ValueError("data.labels belongs to stage: diffusion; leave it out")
        if not self.data.labels:
            self._refuse_classes()
        if self.stage == "diffusion" and self.data.cache:
            self._refuse_reading()
        if self.data.rate and self.clip.frame_stride > 1:
            raise ValueError(
                f"data.rate={self.data.rate:g} picks frames by time and clip.frame_stride="
                f"{self.clip.frame_stride} by number; leave one of them out"
            )
        if self.stage == "diffusion" and self.data.flip and self.data.cache:
            raise ValueError("data.flip=true mirrors videos, not latents; it needs data.cache=off")
        small = min(self.clip.height, self.clip.width) < 16
        if self.stage == "autoencoder" and self.loss.lpips and small:
            raise ValueError(
                f"loss.lpips needs frames of 16 pixels a side or more, not "
                f"{self.clip.height}x{self.clip.width}; use loss.lpips=0"
            )
        return self

    def _refuse_reading(self) -> None:
        """Reject keys about reading videos where a cache is read."""
        usual = DataConfig()
        for key in (*FramePolicy.model_fields, *Selection.model_fields):
            if getattr(self.data, key) != getattr(usual, key):
                raise ValueError(
                    f"data.{key} is about reading videos: give --{key} to `pvdm encode`, or train "
                    "with data.cache=off"
                )

    @property
    def policy(self) -> Policy:
        """How clips are cut out of videos; mirroring is a matter of each draw."""
        return Policy(
            **self.data.model_dump(include=set(FramePolicy.model_fields)), seed=self.training.seed
        )

    def _refuse_classes(self) -> None:
        """Reject keys that change nothing without labels."""
        if self.denoiser is not None and self.denoiser.classes:
            raise ValueError("denoiser.classes needs data.labels=true")
        usual = DiffusionConfig.model_fields["class_dropout"].default
        if self.diffusion is not None and self.diffusion.class_dropout != usual:
            raise ValueError("diffusion.class_dropout needs data.labels=true")

    def model(self) -> ModelConfig:
        """The part that describes the networks."""
        names = set(ModelConfig.model_fields)
        return ModelConfig.model_validate(self.model_dump(include=names))


def load_config(name_or_path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a preset or YAML file, apply key=value overrides, validate.

    Raises:
        ConfigError: Naming the file and the key at fault.
    """
    path = preset_path(name_or_path)
    values = read_yaml(path)
    return parse_config(RunConfig, apply_overrides(values, overrides), where=str(name_or_path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file is not readable YAML or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not readable as YAML ({reason})") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return values with dotted key=value overrides set; each value is read as YAML.

    Raises:
        ConfigError: If an override has no '=' or its value is not YAML.
    """
    result = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"override {override!r} is not of the form key=value")
        try:
            # A pattern such as *.avi; to YAML the star would mean an alias, which has no sense here.
            value = text if text.startswith("*") else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not readable") from error
        *parents, leaf = dotted.split(".")
        section = result
        for parent in parents:
            below = section.get(parent)
            section[parent] = dict(below) if isinstance(below, Mapping) else {}
            section = section[parent]
        section[leaf] = value
    return result


def parse_config(kind: type[SectionT], values: Mapping[str, Any], *, where: str) -> SectionT:
    """Validate values as a configuration of the given kind.

    Raises:
        ConfigError: One sentence naming `where`, the key, and the allowed range or closest name.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_problem(kind, error, where)) from None


def _first_problem(kind: type[Section], error: ValidationError, where: str) -> str:
    """Say the first problem of a validation error as one sentence."""
    problem = error.errors(include_url=False)[0]
    names = [str(part) for part in problem["loc"]]
    key = ".".join(names)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, names[:-1])
        section = f" in {'.'.join(names[:-1])}" if len(names) > 1 else ""
        return (
            f"{where}: unknown key {names[-1]!r}{section}{did_you_mean(names[-1], known)} "
            f"(known: {', '.join(known)})"
        )
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{message}"
    if problem["type"] == "missing":
        return f"{where}: key {key!r} is missing"
    return f"{where}: {key}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(kind: type[Section], names: list[str]) -> list[str]:
    """Field names of the section reached by walking down the given names."""
    for name in names:
        annotation = kind.model_fields[name].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        kind = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(kind.model_fields)


def dump_yaml(config: Section) -> str:
    """Write a configuration as YAML that `load_config` reads back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differing_keys(ours: Section, theirs: Section) -> list[str]:
    """Dotted names of the values in which two configurations differ."""
    return sorted(
        key
        for key, (a, b) in _paired(ours.model_dump(mode="json"), theirs.model_dump(mode="json"))
        if a != b
    )


def _paired(a: Any, b: Any, prefix: str = "") -> Iterable[tuple[str, tuple[Any, Any]]]:
    """Yield every leaf of two nested mappings side by side, by dotted name."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _paired(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, (a, b)
