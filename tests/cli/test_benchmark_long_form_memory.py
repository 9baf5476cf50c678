"""`benchmark long-form-memory`: the table, and what it refuses; that memory is flat is tested where it is measured."""

from pathlib import Path

import pytest

import cli_benchmark_long_form_memory as benchmark_long_form_memory
from hf_distil_whisper.cli.main import main


def test_memory_beyond_the_shortest_recording_is_told(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(place: str, minutes: list[float], **options: int) -> dict[float, int]:
        asked.append((place, options))
        return dict(zip(minutes, (400_000_000, 412_000_000), strict=True))

    monkeypatch.setattr(benchmark_long_form_memory, "long_form_memory", measure)
    argv = ["benchmark", "long-form-memory", "--model_name_or_path", str(toys / "student")]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "| 5 | 400 | +0 |\n| 180 | 412 | +12 |\n" in said
    assert "In chunks, 4 a pass, stereo at 44100 Hz" in said
    assert main([*argv, "--method", "sequential", "--temperature_fallback", "--rate", "8000"]) == 0
    assert "Window after window, repeated where unlikely, stereo at 8000 Hz" in capsys.readouterr().out
    assert asked == [
        (
            str(toys / "student"),
            {"method": "chunked", "temperature_fallback": False, "batch_size": 4, "rate": 44_100},
        ),
        (
            str(toys / "student"),
            {"method": "sequential", "temperature_fallback": True, "batch_size": 4, "rate": 8_000},
        ),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model_name_or_path is missing"),
        (["--minutes", "0"], "--minutes: expected different lengths of at least 1, got [0.0]"),
        (["--minutes", "5", "5"], "--minutes: expected different lengths"),
        (["--method", "beam"], "argument --method: invalid choice: 'beam'"),
        (["--temperature_fallback"], "--temperature_fallback: belongs to --method sequential"),
        (["--batch_size", "0"], "--batch_size: expected a whole number of at least 1, got 0"),
        (["--rate", "16"], "--rate: expected a whole number of at least 8000, got 16"),
    ],
)
def test_wrong_values_name_their_flag(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "long-form-memory", *flags]) == 2
    assert message in capsys.readouterr().err
