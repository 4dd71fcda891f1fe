"""How clips are drawn: steps, sampler, guidance; what `pvdm sample` lets one choose."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from pvdm_cli.config import DiffusionConfig, ModelConfig
from pvdm_cli.diffusion.samplers import Draw, ddim_sample, ddpm_sample
from pvdm_cli.diffusion.samplers import Variance as Variance
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.diffusion.solvers import (
    asked,
    dpmpp_sample,
    euler_sample,
    heun_sample,
    unipc_sample,
)
from pvdm_cli.diffusion.steps import SPACINGS, Step, plan
from pvdm_cli.diffusion.steps import Spacing as Spacing
from pvdm_cli.errors import PvdmError
from pvdm_cli.models.denoiser import NULL_CLASS

Sampler = Literal["ddim", "ddpm", "dpm++", "unipc", "euler", "heun"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
SOLVERS: dict[str, Callable[..., Tensor]] = {
    "dpm++": dpmpp_sample,
    "unipc": unipc_sample,
    "euler": euler_sample,
    "heun": heun_sample,
}
EVERYWHERE = (0.0, 1.0)


class Steps(NamedTuple):
    """Network steps of the first clip and of each following one, written N/M (table 1)."""

    first: int
    following: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "100/20", or "100" for the same number everywhere.

        Raises:
            PvdmError: If the text is neither.
        """
        first, slash, following = text.partition("/")
        try:
            steps = cls(int(first), int(following if slash else first))
        except ValueError:
            steps = cls(0, 0)
        if min(steps) < 1:
            raise PvdmError(f"--steps {text!r}: expected N or N/M with whole numbers, like 100/20")
        return steps

    def __str__(self) -> str:
        return f"{self.first}/{self.following}"


def parse_interval(text: str) -> tuple[float, float]:
    """Read "0.2,0.8", the least and the greatest share of the noise levels.

    Raises:
        PvdmError: If the text is not two numbers.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise PvdmError(
            f"--guidance-interval {text!r}: expected two rising numbers from 0 to 1, like 0.2,0.8"
        ) from None
    return low, high


DEFAULT_STEPS = Steps(100, 20)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How clips are drawn; the defaults are those the published checkpoints are evaluated with.

    Attributes:
        steps: Steps of the first and of the following clips. DDIM with as many steps as were
            trained means ancestral sampling (Sec. 4), whatever eta is.
        sampler: ddim, or ddpm for ancestral steps (with fewer than T, over the timesteps kept), or
            a solver without noise: dpm++ (2M), unipc (order 2), euler, heun (two calls a step).
        spacing: Which timesteps are visited; see `diffusion.steps`.
        eta: Noise of DDIM, 0 (deterministic) to 1; None is 1, for samplers that draw noise.
        variance: Noise of ddpm, small or large; None is small.
        guidance: w in (1+w) * eps(prefix) - w * eps(null); 0 costs one network call a step.
        class_guidance: The same on the class, for models that know classes; see
            `rollout.predictor`.
        guidance_interval: Least and greatest share of the noise levels at which clips are guided.
        prefix_noise: Standard deviation of noise put on each prefix, of which the network is told:
            what it then draws depends less on the details, and so on the errors, of the clip before.
        clamp: Keep each estimate of z0 where an autoencoder's latents can be, as the published
            sampler does; for models with `diffusion.clamp`, others never do.
        strength: Share of the noise levels that the first clip is drawn from, where it starts from
            latents given instead of from noise alone.
    """

    steps: Steps = DEFAULT_STEPS
    sampler: Sampler = "ddim"
    spacing: Spacing = "published"
    eta: float | None = None
    variance: Variance | None = None
    guidance: float = 0.0
    class_guidance: float = 0.0
    guidance_interval: tuple[float, float] = EVERYWHERE
    prefix_noise: float = 0.0
    clamp: bool = True
    strength: float = 1.0

    def check(self, trained: DiffusionConfig) -> None:
        """Reject what a model trained so cannot do.

        Raises:
            PvdmError: Naming the option, its value and the allowed range.
        """
        self._check_names()
        self._check_noise()
        self._check_interval()
        if not 0 < self.strength <= 1:
            raise PvdmError(f"--strength {self.strength}: expected a number above 0, at most 1")
        num_timesteps = trained.num_timesteps
        if max(self.steps) > num_timesteps or min(self.steps) < 1:
            raise PvdmError(
                f"--steps {self.steps}: the model was trained with {num_timesteps} timesteps, "
                f"use 1 to {num_timesteps}"
            )
        for name in ("guidance", "class_guidance"):
            weight = getattr(self, name)
            if not 0 <= weight < float("inf"):
                option = name.replace("_", "-")
                raise PvdmError(f"--{option} {weight}: expected a number from 0 up")
        if not 0 <= self.prefix_noise <= trained.prefix_noise:
            limit = f"0 to {trained.prefix_noise:g}" if trained.prefix_noise else "nothing but 0"
            raise PvdmError(
                f"--prefix-noise {self.prefix_noise}: the model was trained with "
                f"diffusion.prefix_noise={trained.prefix_noise:g}, so it knows {limit}"
            )

    def _check_names(self) -> None:
        """Reject names of nothing."""
        allowed = {"sampler": SAMPLERS, "spacing": SPACINGS}
        for option, names in allowed.items():
            if getattr(self, option) not in names:
                told = f"{', '.join(names[:-1])} or {names[-1]}"
                raise PvdmError(f"--{option} {getattr(self, option)!r}: choose {told}")

    def _check_noise(self) -> None:
        """Reject settings of the noise that the sampler does not have."""
        if self.eta is not None:
            if not 0 <= self.eta <= 1:
                raise PvdmError(f"--eta {self.eta}: expected a number from 0 to 1")
            # Ancestral steps are those of DDIM at eta = 1, and say so beside their videos.
            if self.sampler != "ddim" and (self.sampler, self.eta) != ("ddpm", 1.0):
                raise PvdmError(f"--eta {self.eta} belongs to --sampler ddim; leave it out")
        if self.variance not in (None, "small", "large"):
            raise PvdmError(f"--variance {self.variance!r}: choose small or large")
        if self.variance is not None and self.sampler != "ddpm":
            raise PvdmError(f"--variance {self.variance} belongs to --sampler ddpm; leave it out")

    def _check_interval(self) -> None:
        """Reject an interval of guidance that is none, or without guidance."""
        low, high = self.guidance_interval
        told = f"--guidance-interval {low:g},{high:g}"
        if not 0 <= low < high <= 1:
            raise PvdmError(f"{told}: expected two rising numbers from 0 to 1, like 0.2,0.8")
        if not self.guided_everywhere and not (self.guidance or self.class_guidance):
            raise PvdmError(f"{told} needs --guidance or --class-guidance above 0")

    def check_labels(self, labels: Tensor | None, config: ModelConfig) -> None:
        """Reject labels that a model does not know, and guidance without a class.

        Raises:
            PvdmError: Naming the option, its value and what it needs.
            ValueError: If a label is no place in the model's classes.
        """
        given = torch.full((1,), NULL_CLASS) if labels is None else labels
        if int(given.min()) < NULL_CLASS or int(given.max()) >= len(config.classes):
            raise ValueError(
                f"labels {given.tolist()}: the model has {len(config.classes)} classes"
            )
        null = bool((given == NULL_CLASS).any())
        if self.class_guidance and null:
            raise PvdmError(
                f"--class-guidance {self.class_guidance}: there is no class to follow; it needs "
                "one, and a model trained with data.labels=true"
            )
        assert config.diffusion is not None
        needs_null = self.class_guidance or (labels is not None and null)
        if config.classes and needs_null and not config.diffusion.class_dropout:
            raise PvdmError(
                "the model was trained with diffusion.class_dropout=0 and knows nothing but its "
                "classes: draw one of them, with --class-guidance 0"
            )

    def num_calls(self, schedule: Schedule, num_clips: int, *, begun: bool = False) -> int:
        """Network calls of a whole run; Heun's method asks twice in all steps but the last.

        Args:
            schedule: That of the model.
            num_clips: Clips to draw.
            begun: The first of them continues another clip.
        """
        first = len(self.asked(schedule, first=True))
        following = len(self.asked(schedule, first=False))
        return num_clips * following + (first - following) * (num_clips > 0 and not begun)

    @property
    def guided_everywhere(self) -> bool:
        """Whether guidance holds at all noise levels."""
        return self.guidance_interval == EVERYWHERE

    def guides(self, t: int, schedule: Schedule) -> bool:
        """Say whether clips are guided at timestep t, whose level is (t + 1) / T."""
        low, high = self.guidance_interval
        return low <= (t + 1) / schedule.num_timesteps <= high

    def plan(self, schedule: Schedule, *, first: bool) -> list[Step]:
        """Steps of the first clip, or of each following one.

        Raises:
            PvdmError: If no step starts as low as the strength says.
        """
        strength = self.strength if first else 1.0
        num_steps = self.steps.first if first else self.steps.following
        steps = plan(schedule, num_steps, self.spacing, strength)
        if not steps:
            lowest = plan(schedule, num_steps, self.spacing)[-1].t + 1
            raise PvdmError(
                f"--strength {strength:g}: the last of {num_steps} steps starts at "
                f"{lowest / schedule.num_timesteps:.3g} of the noise levels; give at least that, or "
                "more --steps"
            )
        return steps

    def asked(self, schedule: Schedule, *, first: bool) -> list[int]:
        """Timesteps of one clip's network calls, in order."""
        return asked(self.plan(schedule, first=first), twice=self.sampler == "heun")

    def bind(self, draw: Draw, schedule: Schedule, *, first: bool) -> Callable[..., Tensor]:
        """Choose the sampler of a clip; what is left to give is common to all of them."""
        num_steps = self.steps.first if first else self.steps.following
        settings: dict[str, Any] = {
            "num_steps": num_steps,
            "spacing": self.spacing,
            "strength": self.strength if first else 1.0,
        }
        if self.sampler in SOLVERS:
            return partial(SOLVERS[self.sampler], **settings)
        if self.sampler == "ddpm" or num_steps == schedule.num_timesteps:
            return partial(ddpm_sample, draw=draw, variance=self.variance or "small", **settings)
        eta = 1.0 if self.eta is None else self.eta
        return partial(ddim_sample, draw=draw, eta=eta, **settings)


PUBLISHED = Sampling()
