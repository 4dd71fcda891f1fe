"""How a user names published files; needs no torch."""

import re
from pathlib import Path


def published_files(name: str | Path) -> list[Path]:
    """List the files meant by AE.pth, by AE.pth+UNET.pth or by a folder of them; may be none."""
    folder = Path(name)
    if folder.is_dir():
        return sorted(folder.glob("*.pth"))
    paths = [Path(part) for part in re.split(r"(?<=\.pth)\+", str(name))]
    return paths if all(path.suffix == ".pth" for path in paths) else []
