"""`benchmark assistant`: its tables, its files, and the pairs that it refuses before anything is timed."""

import json
from pathlib import Path

import pytest

from hf_distil_whisper.cli.main import main
from toy_files import write_toy_model


def flags(toys: Path, *more: str) -> list[str]:
    models = ["--model_name_or_path", str(toys / "teacher"), "--assistants", str(toys / "student")]
    return ["benchmark", "assistant", *models, "--dataset", str(toys / "corpus"), *more]


def test_every_way_is_timed_at_every_batch_size(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables 9 and 22: relative latencies beside the parameters, and that the text is the same."""
    more = [
        "--batch_sizes",
        "1",
        "2",
        "--repeats",
        "1",
        "--draft_lengths",
        "1",
        "3",
        "--windows",
        "2",
        "--compute_types",
        "int8",
    ]
    assert main(flags(toys, *more, "--output_dir", str(tmp_path / "out"))) == 0
    said = capsys.readouterr().out
    assert "| batch size 1 | batch size 2 | same text | accepted | passes saved |" in said
    assert "| with student |" in said
    assert "| with student, pipeline's own |" in said
    assert "| student alone, CTranslate2 int8 |" in said
    assert "windows of 30 s: the dataset has too little speech of one speaker" in said
    assert "same text on all 6 utterances in batches: student 6" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    ways = results["times"]["utterances"]
    assert ways["2"]["with student"]["num_same"] == 6
    assert "with student, pipeline's own" not in ways["2"]


def test_assistants_of_one_name_are_both_timed(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second took the place of the first, in the table and in the file."""
    argv = flags(toys, "--batch_sizes", "1", "--repeats", "1", "--samples", "1", "--output_dir", str(tmp_path / "out"))
    argv.insert(argv.index("--assistants") + 2, write_toy_model(tmp_path / "student", decoder_layers=1))
    assert main(argv) == 0
    said = capsys.readouterr().out
    ways = json.loads((tmp_path / "out" / "results.json").read_text())["times"]["utterances"]["1"]
    for name in (f"{toys.name}/student", f"{tmp_path.name}/student"):
        assert f"| with {name} |" in said
        assert ways[f"with {name}"]["num_same"] == 1


def test_long_recordings_are_timed_by_both_algorithms(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long form goes through other loops, with rules of their own."""
    more = ["--batch_sizes", "1", "--repeats", "1", "--long_form_dataset", str(toys / "corpus")]
    assert main(flags(toys, *more)) == 0
    said = capsys.readouterr().out
    assert "long recordings, sequential (6)" in said
    assert "long recordings, chunked (6)" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "0"], "--samples: expected a whole number above 0, got 0"),
        (["--draft_lengths", "2", "0"], "--draft_lengths: expected whole numbers above 0, got [2, 0]"),
        (["--assistants", "nowhere"], "--assistants"),
        (["--language", "de"], "--language"),
    ],
)
def test_wrong_flags_are_named(toys: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark of minutes must not end with an error that its flags told at once."""
    assert main(flags(toys, *more, "--dry_run")) == 2
    assert message in capsys.readouterr().err


def test_an_assistant_of_another_vocabulary_is_refused(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its drafts would mean other words."""
    other = write_toy_model(tmp_path / "other", vocab_size=4000)
    argv = flags(toys)
    argv[argv.index("--assistants") + 1] = other
    assert main(argv) == 2
    assert "4000 tokens" in capsys.readouterr().err
