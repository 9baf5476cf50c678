"""`report` on toys: one page of everything, figures kept between two starts, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import WhisperForConditionalGeneration

import cli_report as report
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from toy_files import write_toy_corpus


def write_settings(toys: Path, folder: Path, **changes: object) -> str:
    """A report on both models; returns its file."""
    corpus = str(toys / "corpus")
    settings = {
        "title": "Toys",
        "models": {"teacher": str(toys / "teacher"), "student": str(toys / "student")},
        "eval_datasets": {"seen": {"path": corpus, "split": "train"}},
        "ood_datasets": {"new": {"path": corpus, "split": "test"}},
        "long_form_datasets": {"long": {"path": corpus, "split": "test"}},
        "reference": "seen",
        "noises": ["white", "babble"],
        "babble_dataset": write_toy_corpus(folder / "speakers", train=8),
        "snrs": [10.0, 0.0],
        "batch_sizes": [1, 2],
        "latency_samples": 2,
        "output_dir": str(folder / "report"),
    }
    file = folder / "report.yaml"
    file.write_text(yaml.safe_dump({**settings, **changes}, sort_keys=False))
    return str(file)


@pytest.fixture(scope="module")
def made(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report that has been made, and its settings."""
    folder = tmp_path_factory.mktemp("made")
    sweep = folder / "sweep"
    sweep.mkdir()
    (sweep / "table.md").write_text("Threshold (Table 10)\n\n| λ | WER |\n|---|---|\n| 0.1 | 3 |\n")
    (sweep / "wer.png").write_bytes(b"\x89PNG\r\n")
    (folder / "notes.md").write_text("The student is faster.")
    settings = write_settings(toys, folder, sweeps=[str(sweep)], notes=str(folder / "notes.md"))
    assert main(["report", settings]) == 0
    return folder


def test_a_report_holds_every_section_and_its_pictures(made: Path) -> None:
    page = (made / "report" / "report.md").read_text()
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "Word error rate over latency",
        "Short form",
        "Long form",
        "Noise",
        "Latency",
        "Threshold (Table 10)",
        "What the figures say",
        "How this was made",
    ]
    assert page.count("![") == 3
    html = (made / "report" / "report.html").read_text()
    assert html.count("data:image/") == 3
    assert "The student is faster." in html
    assert f"hf-distil-whisper report {made / 'report.yaml'}" in page


def test_averages_are_over_sets_and_over_words_with_the_robustness(made: Path) -> None:
    page = (made / "report" / "report.md").read_text()
    assert re.search(r"\| Average \| \d+\.\d \(\d+\.\d\) \|", page)
    assert re.search(r"Effective robustness of student, reference seen: [+-]\d+\.\d\d %", page)
    assert "rows left out of the rates" not in page


def test_rows_in_no_rate_are_named(toys: Path, tmp_path: Path) -> None:
    """A set of which most could not be read would look whole."""
    corpus = Path(write_toy_corpus(tmp_path / "bad", train=3))
    rows = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    (corpus / rows[0]["file_name"]).write_bytes(b"no audio")
    rows[1]["text"] = ""
    (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bad = {"bad": {"path": str(corpus), "split": "train"}}
    settings = write_settings(
        toys, tmp_path, models={"student": str(toys / "student")}, ood_datasets=bad, long_form_datasets=bad,
        noises=["white"], babble_dataset=None, snrs=[10.0], batch_sizes=[1],
    )  # fmt: skip
    assert main(["report", settings]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert page.count("  bad: 1 could not be read, 1 without a reference") == 2


def test_a_second_start_measures_nothing_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the notes would cost all measurements once more."""
    first = (made / "report" / "report.md").read_text()

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    for name in ("evaluate_model", "evaluate_long_form", "evaluate_in_noise", "latency_grid", "compare_algorithms"):
        monkeypatch.setattr(report, name, measured_again)
    assert main(["report", str(made / "report.yaml")]) == 0
    assert (made / "report" / "report.md").read_text() == first


def test_a_changed_generation_config_is_measured_anew(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student whose chunks were set to 15 s would stay on the page with its figures of 30 s."""
    student = tmp_path / "student"
    shutil.copytree(toys / "student", student)
    models = {"teacher": str(toys / "teacher"), "student": str(student)}
    settings = write_settings(toys, tmp_path, models=models, snrs=[10.0], batch_sizes=[1])
    assert main(["report", settings]) == 0
    config = json.loads((student / "generation_config.json").read_text())
    (student / "generation_config.json").write_text(json.dumps({**config, "chunk_length_s": 15.0}))
    heard: list[int] = []
    measure = report.evaluate_long_form

    def count(model: WhisperForConditionalGeneration, *args: object, **options: object) -> EvaluationResult:
        heard.append(model.config.decoder_layers)
        return measure(model, *args, **options)

    monkeypatch.setattr(report, "evaluate_long_form", count)
    assert main(["report", settings]) == 0
    assert heard == [2]


def test_a_set_without_references_is_refused(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its 0 % would win the first picture of the page."""
    corpus = Path(write_toy_corpus(tmp_path / "mute", train=2))
    text = (corpus / "metadata.jsonl").read_text()
    rows = [{**json.loads(line), "text": ""} for line in text.splitlines()]
    (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = write_settings(toys, tmp_path, eval_datasets={"seen": {"path": str(corpus), "split": "train"}})
    assert main(["report", settings]) == 2
    assert "seen: no row has a reference, so that there is no rate to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": {}}, "--models is missing"),
        ({"models": {"teacher": "nowhere"}}, "--models.teacher: no model at 'nowhere'"),
        ({"reference": "new"}, "'new' is not among eval_datasets: seen"),
        ({"noises": ["pub.wav"]}, "--noises: pub.wav: no such file"),
        ({"reference": "seen", "ood_datasets": {}}, "give ood_datasets too"),
        ({"dtype": "fp16"}, "fp16"),
        ({"snrs": [float("inf")]}, "snrs: "),
        ({"batch_sizes": [0, 4]}, "batch_sizes: expected whole numbers above 0, got [0, 4]"),
        ({"latency_samples": 0}, "latency_samples: expected whole numbers above 0, got 0"),
        ({"sweeps": ["nowhere"]}, "nowhere has no table.md"),
        ({"notes": "nowhere.md"}, "there is no file nowhere.md"),
        ({"output_dir": None}, "--output_dir is missing"),
    ],
)
def test_what_is_wrong_with_a_report_is_named(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, words: str
) -> None:
    assert main(["report", write_settings(toys, tmp_path, **changes)]) == 2
    assert words in capsys.readouterr().err
