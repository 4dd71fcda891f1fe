"""Which metrics belong on one chart, how each is drawn, and what it tells."""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple


class Panel(NamedTuple):
    """A chart of metrics that belong together.

    Attributes:
        title: What stands above it.
        names: The metrics, as a pattern of their whole names.
        about: What it tells, in a sentence.
        better: Where good values lie; None where neither is good.
        logarithmic: Whether a logarithmic axis may help.
        floor: A value the axis always shows.
        ceiling: Another.
        share: Whether values are shares, told in percent.
        held_out: Whether values are measured now and then, mostly on held-out videos.
        exact: Whether values do not scatter, so that there is nothing to smooth.
    """

    title: str
    names: str
    about: str = ""
    better: Literal["lower", "higher"] | None = None
    logarithmic: bool = False
    floor: float | None = None
    ceiling: float | None = None
    share: bool = False
    held_out: bool = False
    exact: bool = False


PANELS = (
    Panel(
        "Reconstruction",
        "val_psnr|val_psnr_mean_frame",
        "PSNR in dB; mean_frame is the score of a still picture.",
        better="higher",
        held_out=True,
    ),
    Panel(
        "Validation loss",
        "val_loss|val_loss_prefix",
        "Prefix: given the clip before; the lower, the more it helps.",
        better="lower",
        logarithmic=True,
        held_out=True,
    ),
    Panel(
        "rFVD",
        "val_rfvd",
        "Distance of reconstructions from real clips.",
        better="lower",
        floor=0.0,
        held_out=True,
    ),
    Panel(
        "FVD of few videos",
        r"fvd_of_\d+",
        "Drawn against decoded clips: shows a trend, compares with nothing.",
        better="lower",
        floor=0.0,
        held_out=True,
    ),
    Panel("Loss", "loss", "What training lowers.", better="lower", logarithmic=True),
    Panel(
        "Loss by timestep",
        r"loss_t\d+",
        "By quarter of the timesteps; t1 has the least noise.",
        better="lower",
        logarithmic=True,
    ),
    Panel(
        "Terms of the loss",
        "l1|l2|lpips|generator|features",
        "Before they are weighted.",
        better="lower",
        logarithmic=True,
    ),
    Panel(
        "Shares of the terms",
        r"(?!adversary_)\w+_share",
        "Of the weighted sum.",
        floor=0.0,
        ceiling=1.0,
        share=True,
    ),
    Panel(
        "Discriminators",
        r"adversary_(real|fake)_accuracy",
        "Share of patches judged rightly; both near 100 %: the discriminators have won.",
        floor=0.0,
        ceiling=1.0,
        share=True,
    ),
    Panel(
        "Loss of the discriminators",
        "adversary_loss",
        "2 when they know nothing, 0 when they know everything.",
        floor=0.0,
        ceiling=2.0,
    ),
    Panel(
        "Gradient norm",
        r"(\w+_)?grad_norm",
        "Before clipping; a jump of a factor of ten is a sign of trouble.",
        logarithmic=True,
    ),
    Panel("Learning rate", "lr", "Of AdamW.", floor=0.0, exact=True),
    Panel("Clips per second", "clips_per_second", "In training steps.", floor=0.0),
    Panel(
        "Waiting for data",
        "data_wait",
        "Share of the time; above 10 % raise data.num_workers.",
        floor=0.0,
        ceiling=0.1,
        share=True,
    ),
    Panel(
        "Use of the device",
        "flop_utilisation",
        "Operations the network needs, as a share of the device's rate.",
        floor=0.0,
        share=True,
    ),
    Panel("Peak memory", "peak_memory_gb", "In GiB.", floor=0.0, exact=True),
)
ELSEWHERE = "steps_per_second|tflops"  # the same curves as clips per second, scaled
HIGHER = re.compile("psnr|ssim|accuracy|inception")


def panels_for(names: Iterable[str], *, apart: bool) -> list[Panel]:
    """Choose the charts for the metrics there are; unknown ones get charts of their own.

    Args:
        names: The metrics.
        apart: Give each metric a chart of its own: for several runs, whose curves share it.
    """
    left = {name for name in names if not re.fullmatch(ELSEWHERE, name)}
    found: list[Panel] = []
    for panel in PANELS:
        here = sorted(name for name in left if re.fullmatch(panel.names, name))
        left -= set(here)
        if here and apart:
            found += [_alone(panel, name, len(here)) for name in here]
        elif here:
            found.append(panel)
    others = [_other(name) for name in sorted(left)]
    return sorted([*found, *others], key=lambda panel: not panel.held_out)


def _alone(panel: Panel, name: str, of: int) -> Panel:
    """Narrow a chart to one of its metrics."""
    title = panel.title if of == 1 else f"{panel.title}: {name}"
    return panel._replace(title=title, names=re.escape(name))


def _other(name: str) -> Panel:
    """Make the chart of a metric this page knows nothing of."""
    held_out = name.startswith("val_")
    better: Literal["lower", "higher"] = "higher" if HIGHER.search(name) else "lower"
    return Panel(name, re.escape(name), better=better if held_out else None, held_out=held_out)
