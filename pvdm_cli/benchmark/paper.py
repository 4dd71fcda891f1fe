"""Systems of the paper's tables that nobody can install, and what is published of all of them."""

from dataclasses import dataclass

from pvdm_cli.benchmark.published import TABLE_5, PublishedRow
from pvdm_cli.evaluation.published import TABLE_1, TABLE_2, FvdRow, InceptionRow

# Why nobody can run them.
WHY_NOT = {
    "TATS": "no package of it is published",
    "VideoGPT": "the package of this name on PyPI is empty and somebody else's",
    "MoCoGAN": "no package of it is published",
    "DIGAN": "no package of it is published",
    "StyleGAN-V": "no package of it is published",
    "TGANv2": "no package of it is published",
}


@dataclass(frozen=True)
class Published:
    """What the paper's tables say of a system.

    Attributes:
        method: Its name in the paper.
        cost: Its row of table 5, if it has one.
        fvd: Its row of table 1.
        inception: Its row of table 2, which does not tell the steps of PVDM.
        why_not_run: Why nobody can run it; None where it can be run here.
    """

    method: str
    cost: PublishedRow | None
    fvd: FvdRow | None
    inception: InceptionRow | None
    why_not_run: str | None


def published_systems() -> list[Published]:
    """Gather the systems of table 5 and, below them, those that cannot be run and are not in it."""
    rows: list[tuple[str, PublishedRow | None]] = [(row.method, row) for row in TABLE_5]
    known = {method for method, _ in rows}
    rows += [(method, None) for method in WHY_NOT if method not in known]
    return [_gather(method, cost) for method, cost in rows]


def _gather(method: str, cost: PublishedRow | None) -> Published:
    """Find a method in the other tables."""
    named = f"{method}, {cost.steps} steps" if cost else method  # as table 1 names ours
    return Published(
        method,
        cost,
        next((row for row in TABLE_1 if row.method in (method, named)), None),
        next((row for row in TABLE_2 if row.method == method and method != "PVDM-L"), None),
        WHY_NOT.get(method),
    )
