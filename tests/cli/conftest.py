"""How the command line is called in tests: through `main`, as a user's shell does."""

import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from pvdm_cli.cli import options
from pvdm_cli.cli.app import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def pvdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Result]]:
    """Call `pvdm` with words and return exit code, stdout and stderr."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["pvdm", *map(str, words)])
        monkeypatch.setattr(options, "_debug", False)
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(bool(exit_.code))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refusal(pvdm: Callable[..., Result]) -> Callable[..., str]:
    """Call `pvdm`, insist on exit code 1 and one line of error, and return that line."""

    def call(*words: object) -> str:
        result = pvdm(*words)
        assert result.code == 1, result
        assert result.err.startswith("error: "), result.err
        assert result.err.count("\n") == 1, result.err
        assert result.out == ""
        return result.err

    return call
