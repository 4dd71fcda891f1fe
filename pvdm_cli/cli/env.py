"""`pvdm env`: a block to paste into a bug report."""

from pvdm_cli.cli import render
from pvdm_cli.cli.options import DebugOpt, JsonOpt


def env(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """Print versions, processors and memory: a block to paste into a bug report.

    Examples:
        pvdm env
        pvdm env --json
    """
    from pvdm_cli import api  # torch loads here, not for --help

    found = api.environment()
    if as_json:
        render.print_json(found)
    else:
        render.print_columns(found.items())
