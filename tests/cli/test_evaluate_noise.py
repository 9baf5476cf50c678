"""`evaluate noise` on toy models and files: the table, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest
import soundfile

from hf_distil_whisper.cli.main import main
from hf_distil_whisper.metrics import WordErrors
from toy_files import spoil, write_toy_corpus, write_toy_model
from toy_models import toy_audio


@pytest.fixture(scope="module")
def toys(toys: Path) -> Path:
    """The folder with the recorded noise `pub.wav` beside the rest."""
    soundfile.write(toys / "pub.wav", toy_audio(0.5, seed=9), 16_000)
    return toys


def command(toys: Path, *more: str) -> list[str]:
    models = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path", str(toys / "teacher")]
    return ["evaluate", "noise", *models, "--dataset", str(toys / "corpus"), *more]


def test_table_results_and_picture_show_the_same(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column of the student under the teacher's name is found out by nobody."""
    output = tmp_path / "output"
    noises = ["--noises", "white", str(toys / "pub.wav"), "--snrs", "10", "-5", "--seed", "3"]
    assert main([*command(toys, *noises), "--output_dir", str(output)]) == 0
    said = capsys.readouterr().out
    assert "| noise | SNR / dB | student WER % | teacher WER % |" in said
    found = json.loads((output / "results.json").read_text())
    assert found["models"] == {"student": str(toys / "student"), "teacher": str(toys / "teacher")}
    assert found["noises"] == {"white": "white", "pub": str(toys / "pub.wav")}
    assert (found["seed"], found["dataset"]["split"]) == (3, "test")
    for noise in ("white", "pub"):
        for snr in ("10", "-5"):
            student, teacher = (found["wer_by_noise_and_snr"][noise][snr][name] for name in ("student", "teacher"))
            assert f"| {noise} | {snr} | {100 * student['wer']:.2f} | {100 * teacher['wer']:.2f} |" in said
            counts = (student[name] for name in ("hits", "substitutions", "deletions", "insertions"))
            assert WordErrors(*counts).wer == student["wer"]
            assert student["unreadable_rows"] == 0
    assert (output / "wer_over_snr.png").read_bytes().startswith(b"\x89PNG")


def test_dry_run_names_steps_and_costs(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = command(toys, "--snrs", "10", "0", "-5", "--output_dir", str(tmp_path / "output"), "--dry_run")
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert f"1. score student ({toys / 'student'}) in white noise at 10, 0, -5 dB" in said
    assert "audio: 0.00 h in 2 rows, heard 3 times by each model" in said
    assert "memory expected: " in said
    assert not (tmp_path / "output").exists()


def test_models_of_one_name_are_told_apart_by_their_paths(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs have a `student` each: one column for both would show the second alone."""
    write_toy_model(toys / "other" / "student", decoder_layers=2)
    argv = command(toys, "--model_name_or_path", str(toys / "student"), str(toys / "other" / "student"), "--dry_run")
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert f"score {toys.name}/student ({toys / 'student'}) in" in said
    assert f"score other/student ({toys / 'other' / 'student'}) in" in said
    assert "score teacher (" in said


def test_bad_rows_are_counted(tmp_path: Path, toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command goes on, and says over how many rows the rate is."""
    corpus = write_toy_corpus(tmp_path / "corpus", train=4)
    spoil(corpus, 1)
    argv = command(toys, "--snrs", "10", "--output_dir", str(tmp_path / "output"))
    argv[argv.index("--dataset") + 1] = f"{{path: {corpus}, split: train}}"
    assert main(argv) == 0
    found = json.loads((tmp_path / "output" / "results.json").read_text())["wer_by_noise_and_snr"]["white"]["10"]
    assert found["student"]["unreadable_rows"] == found["teacher"]["unreadable_rows"] == 2
    assert "in every noise: 2 could not be read" in capsys.readouterr().out


def test_no_reference_is_no_perfect_score(tmp_path: Path, toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 % over nothing is the best curve of the picture."""
    corpus = tmp_path / "corpus"
    write_toy_corpus(corpus, train=1, test=1)
    rows = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    (corpus / "metadata.jsonl").write_text("\n".join(json.dumps({**row, "text": ""}) for row in rows))
    argv = command(toys, "--snrs", "10", "--output_dir", str(tmp_path / "output"))
    argv[argv.index("--dataset") + 1] = str(corpus)
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "| white | 10 | - | - |" in said
    assert "in every noise: 1 without a reference" in said
    found = json.loads((tmp_path / "output" / "results.json").read_text())["wer_by_noise_and_snr"]["white"]["10"]
    assert found["student"]["wer"] is None


def test_all_problems_are_listed_at_once(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "silence.wav", 0 * toy_audio(0.5), 16_000)
    argv = ["--dataset", str(tmp_path / "corpus"), "--noises", str(tmp_path / "silence.wav"), "nowhere.wav"]
    assert main(["evaluate", "noise", *argv, "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for problem in (
        "--model_name_or_path is missing",
        "--dataset: ",
        "silence.wav: every sample is 0",
        "--noises: nowhere.wav: no such file",
        "holds another run already",
    ):
        assert problem in said


def test_babble_is_mixed_from_other_recordings(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_toy_corpus(tmp_path / "speakers", train=8)
    argv = command(toys, "--noises", "white", "babble", "--snrs", "0", "--babble_dataset", corpus)
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "in white, babble noise at 0 dB" in said
    assert "| babble | 0 | " in said


def test_babble_without_recordings_and_recordings_without_babble_are_refused(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(toys, "--noises", "babble")) == 2
    assert "--babble_dataset is missing" in capsys.readouterr().err
    assert main(command(toys, "--babble_dataset", str(toys / "corpus"))) == 2
    assert "--babble_dataset: nothing is mixed from it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--snrs", "10", "300"], "--snrs: `snrs`: expected a ratio from -100 to 100 dB, got 300"),
        (["--snrs", "10", "10"], "--snrs: `snrs`: 10 dB is given 2 times"),
        (["--snrs", "loud"], "argument --snrs: invalid float value: 'loud'"),
        (["--noises", "white", "white"], "--noises: white is given 2 times"),
        (["--model_name_or_path", "a", "a"], "--model_name_or_path: a is given 2 times"),
        (["--batch_size", "0"], "--batch_size: expected a whole number of at least 1, got 0"),
        (["--seed", "-1"], "--seed: expected a whole number of at least 0, got -1"),
    ],
)
def test_wrong_values_name_their_flag(
    toys: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(toys, *flags)) == 2
    assert message in capsys.readouterr().err


def test_help_of_evaluate_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """What no help text mentions is not found."""
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "hf-distil-whisper evaluate noise --help" in capsys.readouterr().out
