"""What holds for the command line as a whole: exit codes, streams, one sentence per failure."""

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvdm_cli.cli import app, render
from pvdm_cli.errors import PvdmError

Call = Callable[..., Any]
Refusal = Callable[..., str]


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pvdm_cli.cli.app", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_an_expected_failure_is_one_line_and_exit_code_1() -> None:
    done = shell("presets", "cat", "sky/difusion-l")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no preset 'sky/difusion-l'; did you mean")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback_and_still_exits_1() -> None:
    done = shell("presets", "cat", "nope", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigError: no preset 'nope'" in done.stderr


def test_a_wrong_command_is_answered_with_the_nearest_and_exits_2() -> None:
    done = shell("prests")
    assert done.returncode == 2
    assert "Did you mean 'presets'?" in " ".join(done.stderr.split())


def test_a_wrong_option_exits_2() -> None:
    assert shell("env", "--bad").returncode == 2


def test_bare_pvdm_prints_help(pvdm: Call) -> None:
    result = pvdm()
    assert result.code == 0
    assert "Usage: pvdm" in result.out
    assert result.out == pvdm("--help").out


def test_version_is_that_of_the_package(pvdm: Call) -> None:
    assert pvdm("--version").out == f"pvdm {render.version()}\n"


def test_help_costs_less_than_400_ms_of_processor_time() -> None:
    def cost(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shell(*words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for words in (["--help"], ["presets", "ls"], ["bogus"]):
        assert min(cost(*words) for _ in range(3)) < 0.4, words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a stdout that is full")
@pytest.mark.parametrize("words", [("info", "demo", "--json"), ("info", "demo"), ("--version",)])
def test_a_full_stdout_is_one_sentence(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pvdm_cli", *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: cannot write the result to stdout: No space left on device; "
        "the work itself is done\n"
    )


def test_an_interrupt_exits_130(pvdm: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prog_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupted)
    assert pvdm().code == 130


def test_a_termination_unwinds_and_exits_143(pvdm: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    unwound = []

    def terminated(prog_name: str) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)  # gives Python the chance to run its handler
        finally:
            unwound.append(True)

    monkeypatch.setattr(app, "app", terminated)
    assert pvdm().code == 143
    assert unwound


def test_a_message_with_brackets_is_printed_whole(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(prog_name: str) -> None:
        raise PvdmError("z has shape [b, c, n] and [red]this[/red]")

    monkeypatch.setattr(app, "app", fail)
    assert refusal() == "error: z has shape [b, c, n] and [red]this[/red]\n"


def test_key_value_hints_survive_in_help(pvdm: Call) -> None:
    assert "[KEY=VALUE]" in pvdm("train", "--help").out


def test_bars_are_off_without_a_terminal_and_messages_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = render.reporter()
    reporter.start("encode", total=3)
    reporter.advance(loss=0.123456)
    reporter.say("one line")
    reporter.advance(2)
    reporter.done()
    reporter.say("another")
    captured = capsys.readouterr()
    assert captured.err == "one line\nanother\n"
    assert captured.out == ""


def test_quiet_silences_bars_and_messages(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = render.reporter(quiet=True)
    reporter.start("encode", total=3)
    reporter.say("one line")
    assert capsys.readouterr().err == ""


def test_a_table_in_a_pipe_is_neither_cut_nor_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_table(["name", "value"], [["[b, c, n]", "x" * 300]])
    assert re.search(r"\[b, c, n\] +x{300}", capsys.readouterr().out)


def test_presets_ls_names_each_preset_with_its_summary(pvdm: Call) -> None:
    out = pvdm("presets", "ls").out
    assert any(line.split()[:2] == ["sky/diffusion-l", "diffusion"] for line in out.splitlines())


def test_presets_cat_prints_the_file_as_it_is(pvdm: Call) -> None:
    shipped = Path(app.__file__).parents[2] / "presets" / "sky" / "diffusion-l.yaml"
    assert pvdm("presets", "cat", "sky/diffusion-l").out == shipped.read_text()


def test_presets_cp_copies_into_a_file_or_a_folder(pvdm: Call, tmp_path: Path) -> None:
    pvdm("presets", "cp", "sky/diffusion-l", tmp_path / "mine.yaml")
    pvdm("presets", "cp", "sky/diffusion-l", tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == (tmp_path / "diffusion-l.yaml").read_text()


def test_presets_cp_overwrites_only_when_asked(
    pvdm: Call, refusal: Refusal, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("my own")
    assert "--overwrite" in refusal("presets", "cp", "sky/diffusion-l", mine)
    assert mine.read_text() == "my own"
    assert pvdm("presets", "cp", "sky/diffusion-l", mine, "--overwrite").code == 0
    assert "stage: diffusion" in mine.read_text()


def test_presets_cp_to_an_unwritable_place_is_one_sentence(
    refusal: Refusal, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal("presets", "cp", "sky/diffusion-l", tmp_path / "file" / "x")


def test_env_names_versions_and_processors(pvdm: Call) -> None:
    out = pvdm("env").out
    for name in ("pvdm", "python", "torch", "cuda", "gpus", "cores", "memory", "packages"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), name
