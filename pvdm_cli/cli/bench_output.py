"""What the commands of `pvdm bench` make of a result: a form, a file, a picture, a verdict."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from pvdm_cli.cli import bench_cells, bench_tables, render
from pvdm_cli.errors import PvdmError

if TYPE_CHECKING:
    from pvdm_cli.benchmark.compare import Result
    from pvdm_cli.benchmark.figure import Bench


class Output(NamedTuple):
    """What is asked for."""

    as_json: bool
    csv: bool
    markdown: bool
    out: Path | None
    plot: Path | None
    baseline: Path | None
    fail_above: float | None

    def measure(self, work: Callable[[], "Bench"]) -> None:
        """Measure and give out the result; what cannot be given is refused before.

        Raises:
            PvdmError: If something has become worse than the baseline, after the result was given.
        """
        baseline = self._check()
        result = work()
        self._give(result)
        if baseline is not None:
            self._judge(result, baseline)

    def _check(self) -> "Result | None":
        """Refuse what excludes each other or cannot be written; read the baseline."""
        forms = {"--json": self.as_json, "--csv": self.csv, "--markdown": self.markdown}
        asked = [name for name, given in forms.items() if given]
        if len(asked) > 1:
            raise PvdmError(f"{' and '.join(asked)} exclude each other: choose one")
        if self.fail_above is not None and self.baseline is None:
            raise PvdmError(f"--fail-above {self.fail_above:g} needs --baseline FILE")
        if self.fail_above is not None and not self.fail_above >= 1:
            raise PvdmError(f"--fail-above {self.fail_above:g}: expected 1 or more, like 1.05")
        from pvdm_cli.benchmark.compare import read_result
        from pvdm_cli.benchmark.plot import check_plot

        if self.plot is not None:
            check_plot(self.plot)
        return read_result(self.baseline) if self.baseline is not None else None

    def _give(self, result: "Bench") -> None:
        """Print the result, write it, draw it."""
        from pvdm_cli import files
        from pvdm_cli.benchmark.compare import to_csv
        from pvdm_cli.benchmark.plot import plot

        values = result.to_json(["pvdm", *sys.argv[1:]])
        if self.as_json:
            render.print_json(values)
        elif self.csv:
            typer.echo(to_csv(result.rows), nl=False)
        else:
            bench_tables.show(result, markdown=self.markdown)
        if self.out is not None:
            files.write_json(self.out, values)
        if self.plot is not None:
            plot(result.figures, self.plot)

    def _judge(self, result: "Bench", baseline: "Result") -> None:
        """Compare with the baseline, on stderr; fail if that was asked for."""
        from pvdm_cli.benchmark.compare import Result, compare_results

        found = compare_results(baseline, Result("this", result.rows, result.environment))
        names = baseline.path, "this result"
        for line in bench_tables.missing(found, names):
            typer.echo(line, err=True)
        if not found.ratios:
            raise PvdmError(
                f"--baseline {baseline.path}: nothing in it was measured now; give the words of its "
                "command again"
            )
        worst = max(found.ratios, key=lambda each: each.worse)
        typer.echo(
            f"{len(found.ratios)} figures beside {baseline.path}; the worst: {worst.row.name} "
            f"{worst.worse:.2f} times",
            err=True,
        )
        if self.fail_above is not None and (said := found.complaint(self.fail_above)):
            raise PvdmError(said)


def read_memory(text: str | None) -> int | None:
    """Read a size of memory."""
    from pvdm_cli.benchmark.maximum import parse_memory

    return parse_memory(text) if text is not None else None


def show_comparison(a: Path, b: Path, *, as_json: bool, markdown: bool) -> None:
    """Compare two result files and print that."""
    from dataclasses import asdict

    from pvdm_cli.benchmark.compare import compare_results, read_result

    if as_json and markdown:
        raise PvdmError("--json and --markdown exclude each other: choose one")
    found = compare_results(read_result(a), read_result(b))
    if as_json:
        values: dict[str, Any] = asdict(found)
        render.print_json(values)
        return
    bench_cells.put(bench_tables.comparison(found, (str(a), str(b))), markdown=markdown)
