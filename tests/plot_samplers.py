"""Draw docs/samplers.svg: the error of each sampler on a known target against its network calls.

python tests/plot_samplers.py
"""

import math
from collections.abc import Callable
from pathlib import Path

from mixture import STARTS, arrivals, score_network
from torch import Tensor

from pvdm_cli.config import DiffusionConfig
from pvdm_cli.diffusion.objective import Objective
from pvdm_cli.diffusion.samplers import ddim_sample
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.diffusion.solvers import dpmpp_sample, heun_sample, unipc_sample
from pvdm_cli.diffusion.steps import Spacing, plan

OUT = Path(__file__).parents[1] / "docs/samplers.svg"
CALLS = (5, 7, 9, 13, 19, 25, 39, 49, 79, 99, 159, 199)  # odd, so that Heun's method can have them
SAMPLERS: dict[str, tuple[Callable[..., Tensor], str, str]] = {
    "ddim, euler": (ddim_sample, "#7b8087", ""),
    "heun": (heun_sample, "#c8722e", "6 3"),
    "dpm++": (dpmpp_sample, "#3d7cc9", ""),
    "unipc": (unipc_sample, "#2f9a6b", "2 3"),
}
PANELS: tuple[tuple[str, str, Objective, Spacing], ...] = (
    ("published noise levels", "--spacing published", "eps", "published"),
    ("published noise levels", "--spacing karras", "eps", "karras"),
    ("flow matching", "--spacing published", "flow", "published"),
)
LEFT, TOP, WIDTH, HEIGHT, GAP = 62, 62, 250, 270, 30
LOWEST, HIGHEST = -5, 0  # powers of ten of the error


def error(
    sampler: Callable[..., Tensor], objective: Objective, calls: int, spacing: Spacing
) -> float:
    """Root mean square distance from where the ODE arrives."""
    flow = objective == "flow"
    schedule = Schedule.flow(1000) if flow else Schedule.from_config(DiffusionConfig())
    num_steps = (calls + 1) // 2 if sampler is heun_sample else calls
    found = sampler(
        score_network(schedule, objective), STARTS, schedule,
        num_steps=num_steps, clamp=False, objective=objective, spacing=spacing,
    )  # fmt: skip
    start = plan(schedule, num_steps, spacing)[0].abar
    return (found - arrivals(STARTS, start)).square().mean().sqrt().item()


def across(panel: int, calls: float) -> float:
    """Place of so many calls."""
    first, last = math.log(CALLS[0]), math.log(CALLS[-1])
    share = (math.log(calls) - first) / (last - first)
    return LEFT + panel * (WIDTH + GAP) + share * WIDTH


def down(value: float) -> float:
    """Place of an error."""
    return TOP + (HIGHEST - math.log10(value)) / (HIGHEST - LOWEST) * HEIGHT


def path(points: list[tuple[float, float]]) -> str:
    """A line through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def frame(panel: int, title: str, option: str) -> list[str]:
    """Axes, grid and titles of a panel."""
    x = LEFT + panel * (WIDTH + GAP)
    lines = [
        f'<text x="{x}" y="{TOP - 30}" class="title">{title}</text>',
        f'<text x="{x}" y="{TOP - 12}" class="cmd">{option}</text>',
        f'<rect x="{x}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" class="axis"/>',
    ]
    for power in range(LOWEST, HIGHEST + 1):
        y = down(10.0**power)
        lines.append(f'<path d="M{x} {y:.1f}h{WIDTH}" class="grid"/>')
        if panel == 0:
            label = f'10<tspan dy="-5" font-size="10">{str(power).replace("-", "−")}</tspan>'
            lines.append(f'<text x="{x - 8}" y="{y + 5:.1f}" class="end">{label}</text>')
    for calls in (5, 10, 20, 50, 100, 199):
        place = across(panel, calls)
        lines.append(f'<path d="M{place:.1f} {TOP}v{HEIGHT}" class="grid"/>')
        told = 200 if calls == 199 else calls
        lines.append(f'<text x="{place:.1f}" y="{TOP + HEIGHT + 18}" class="mid">{told}</text>')
    return lines


def guides(panel: int) -> list[str]:
    """Slopes of the orders 1 and 2."""
    lines = []
    for power, start in ((1, 0.35), (2, 0.035)):
        end = start * (CALLS[0] / CALLS[-1]) ** power
        ends = [(across(panel, CALLS[0]), down(start)), (across(panel, CALLS[-1]), down(end))]
        lines.append(f'<path d="{path(ends)}" class="guide"/>')
        share, above = (0.8, -16) if power == 1 else (0.62, 26)
        calls = CALLS[0] * (CALLS[-1] / CALLS[0]) ** share
        x, y = across(panel, calls), down(start * (CALLS[0] / calls) ** power) + above
        lines.append(f'<text x="{x:.1f}" y="{y:.1f}" class="mid">order {power}</text>')
    return lines


def legend() -> list[str]:
    """Names of the lines, below."""
    lines, y = [], TOP + HEIGHT + 62
    for i, (name, (_, colour, dash)) in enumerate(SAMPLERS.items()):
        x = LEFT + 10 + 150 * i
        lines.append(
            f'<path d="M{x} {y - 5}h34" stroke="{colour}" stroke-dasharray="{dash}" class="line"/>'
        )
        lines.append(f'<text x="{x + 42}" y="{y}">{name}</text>')
    return lines


def main() -> None:
    """Measure, draw, write."""
    body: list[str] = []
    for panel, (title, option, objective, spacing) in enumerate(PANELS):
        body += frame(panel, title, option)
        if objective == "flow":
            body += guides(panel)
        for sampler, colour, dash in SAMPLERS.values():
            errors = [error(sampler, objective, calls, spacing) for calls in CALLS]
            points = [(across(panel, c), down(e)) for c, e in zip(CALLS, errors, strict=True)]
            body.append(
                f'<path d="{path(points)}" stroke="{colour}" stroke-dasharray="{dash}" class="line"/>'
            )
    width, height = LEFT + 3 * WIDTH + 2 * GAP + 20, TOP + HEIGHT + 82
    middle = LEFT + (3 * WIDTH + 2 * GAP) / 2
    body.append(f'<text x="{middle}" y="{TOP + HEIGHT + 38}" class="mid">network calls</text>')
    body.append(f'<text x="8" y="{TOP - 12}">error</text>')
    OUT.write_text("\n".join([*HEAD, *body, *legend(), "</svg>\n"]).format(w=width, h=height))


HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" role="img" '
    'aria-labelledby="title desc">',
    '<title id="title">Error of each sampler against network calls</title>',
    '<desc id="desc">Distance from the exact end of the ODE on a mixture of two Gaussians. At the '
    "published noise levels and spacing all samplers fall with order 1; with the karras spacing "
    "heun, dpm++ and unipc are far below ddim; on flow matching ddim falls with order 1 and the "
    "others with order 2.</desc>",
    "<style>",
    'text {{ font-family: -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; '
    "fill: #7b8087; }}",
    ".title {{ font-weight: 700; font-size: 14px; }}",
    ".cmd {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px; }}",
    ".mid {{ text-anchor: middle; }} .end {{ text-anchor: end; }}",
    ".axis {{ fill: none; stroke: #7b8087; }}",
    ".grid {{ stroke: #7b8087; stroke-opacity: 0.25; stroke-width: 0.7; }}",
    ".guide {{ stroke: #7b8087; stroke-dasharray: 1 4; fill: none; }}",
    ".line {{ fill: none; stroke-width: 2.2; stroke-linejoin: round; }}",
    "</style>",
)

if __name__ == "__main__":
    main()
