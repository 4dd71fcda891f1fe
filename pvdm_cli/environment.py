"""What a bug report needs to know about this machine."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "av",
    "diffusers",
    "einops",
    "huggingface-hub",
    "imageio",
    "numpy",
    "pillow",
    "pydantic",
    "safetensors",
    "triton",
    "typer",
)


def machine() -> dict[str, Any]:
    """Collect what there is to know without loading torch."""
    return {
        "pvdm": _version("pvdm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "memory": _memory(),
    }


def environment() -> dict[str, Any]:
    """Collect versions, processors and memory."""
    import torch

    return {
        **machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "not built in",
        "gpus": _gpus() or "none",
        "compiler": compiler() or "none",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def compiler() -> str | None:
    """Name the C++ compiler of this machine: what CXX says, else g++ or c++."""
    names = (os.environ.get("CXX") or "g++", "g++", "c++")
    return next((found for found in map(shutil.which, names) if found), None)


def _version(package: str) -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    """Name of the processor, from the system's list where there is one."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    """Main memory."""
    try:
        return _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not on every system
        return "unknown"


def _gpus() -> str:
    """Accelerators torch can use, with their memory."""
    import torch

    found = [
        f"{torch.cuda.get_device_name(i)} ({_gib(torch.cuda.get_device_properties(i).total_memory)})"
        for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        found.append("Apple Metal")
    return ", ".join(found)


def _gib(size: int) -> str:
    """Show a size in GiB."""
    return f"{size / 2**30:.1f} GiB"
