"""The entry point: its list of commands, its messages and its exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_distil_whisper
from hf_distil_whisper.cli.main import COMMANDS, main, run_script

SOURCE = Path(__file__).parents[2] / "src"


def test_the_list_of_commands_appears_at_once():
    """Importing torch for a list costs seconds. Processor time is counted: a busy machine does not stretch it."""
    code = (
        "import sys, time; from hf_distil_whisper.cli.main import main; main([]); "
        "print('torch' in sys.modules, time.process_time())"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    *listed, last = done.stdout.splitlines()
    with_torch, seconds = last.split()
    assert all(any(command in line for line in listed) for command in COMMANDS)
    assert "distil-large-v3" in done.stdout
    assert with_torch == "False"
    assert float(seconds) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_listed_command_shows_its_flags(command, capsys):
    """A command that is listed but cannot be imported fails for the first user."""
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"usage: hf-distil-whisper {command} [recipe or file.yaml]" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf-distil-whisper {hf_distil_whisper.__version__}\n"


def test_bad_input_is_one_message_and_exit_code_2(capsys):
    """A traceback hides the one line that the user needs; exit code 0 lets a script go on."""
    for argv, message in (
        (["trian"], "no command 'trian' (did you mean 'train'?)"),
        (["create-student", "--decoder_layer", "2"], "unknown argument '--decoder_layer' (did you mean '--decoder_"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert f": error: {message}" in error
        assert "Traceback" not in error


def test_a_bug_keeps_its_traceback():
    """Only what the user can correct is turned into a message."""

    def broken(argv: object) -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run_script(broken, [])
