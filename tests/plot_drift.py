"""Draw drifts beside each other: python tests/plot_drift.py OUT.svg NAME=RUN/drift.json ..."""

import json
import sys
from pathlib import Path

from pvdm_cli.report.chart import Curve
from pvdm_cli.report.drift import ROWS, column, picture

CHARTS = {
    "latent_std": "latents: std",
    "colour_distance": "colours: distance",
    "psnr_inside": "PSNR inside",
    "psnr_border": "PSNR at seams",
}


def main() -> None:
    """Read all, draw a chart for each figure."""
    out, *named = sys.argv[1:]
    files = dict(each.split("=", 1) for each in named)
    runs = {name: json.loads(Path(file).read_text())[ROWS] for name, file in files.items()}
    charts = [
        (
            title,
            [
                Curve(name, column(rows, key), number)
                for number, (name, rows) in enumerate(runs.items())
            ],
        )
        for key, title in CHARTS.items()
    ]
    Path(out).write_text(picture(charts), encoding="utf-8")


if __name__ == "__main__":
    main()
