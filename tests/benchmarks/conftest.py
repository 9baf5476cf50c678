"""Models and recordings on which the benchmark scripts are tried."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from toy_scripts import Printed, Refused

from hf_distil_whisper import run_script


@pytest.fixture
def pair(toys: Path) -> list[str]:
    """Flags of student, teacher and corpus, as most scripts take them."""
    models = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path", str(toys / "teacher")]
    return [*models, "--dataset", str(toys / "corpus")]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Runs a script that works; returns what it prints."""

    def run(main: Callable[[Sequence[str]], None], *argv: object) -> str:
        assert run_script(main, [str(word) for word in argv]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a script that must end with exit code 2 and messages."""

    def check(main: Callable[[Sequence[str]], None], argv: list[str], *messages: str) -> None:
        assert run_script(main, argv) == 2
        error = capsys.readouterr().err
        for message in messages:
            assert message in error

    return check


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    return figures
