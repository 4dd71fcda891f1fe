"""The state of a video: its last clip, where its noise stands, and how far it is written."""

import json
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvdm_cli.errors import PvdmError
from pvdm_cli.files import atomic_file
from pvdm_cli.rollout import Position

FORMAT = 1


class State(NamedTuple):
    """Where one video stands.

    Attributes:
        z: Latents [c, n] of its last clip, in the denoiser's scale.
        noise: State of its source of noise, uint8.
        clips: Clips decoded so far, the one it continues included.
        frames: Frames of its file that the clips to come leave as they are.
        device: Kind of device that drew it: its noise is of that kind.
    """

    z: Tensor
    noise: Tensor
    clips: int
    frames: int
    device: str


def split(position: Position, clips: int, frames: int, device: torch.device) -> list[State]:
    """Take the position of a batch apart, a state for each video."""
    rows = zip(position.z, position.noise, strict=True)
    return [State(z, noise, clips, frames, device.type) for z, noise in rows]


def join(states: list[State], device: torch.device) -> Position:
    """Put the states of a batch together."""
    z = torch.stack([state.z for state in states]).to(device)
    return Position(z, [state.noise for state in states])


def save_state(path: Path, state: State) -> None:
    """Write a state, whole or not at all."""
    tensors = {"z": state.z.cpu().contiguous(), "noise": state.noise.cpu().contiguous()}
    about = {
        "format": FORMAT,
        "clips": state.clips,
        "frames": state.frames,
        "device": state.device,
    }
    with atomic_file(path) as temporary:
        # One key: of several the writer chooses the order anew each time.
        safetensors.torch.save_file(tensors, temporary, {"state": json.dumps(about)})
        temporary.chmod(0o644)  # the writer leaves it readable by its owner alone


def load_state(path: Path, device: torch.device) -> State | None:
    """Read a state, None if there is none.

    Raises:
        PvdmError: If it is damaged, of another version, or of another kind of device.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["state"])
            z, noise = file.get_tensor("z"), file.get_tensor("noise")
        state = State(z, noise, about["clips"], about["frames"], about["device"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PvdmError(
            f"{path}: not a readable state ({error}); remove its video to draw it anew"
        ) from error
    if about.get("format") != FORMAT:
        raise PvdmError(f"{path}: of another version of pvdm; remove its video to draw it anew")
    if state.device != device.type:
        raise PvdmError(
            f"{path}: drawn on {state.device}, whose noise {device.type} does not draw; "
            f"give --device {state.device}"
        )
    return state
