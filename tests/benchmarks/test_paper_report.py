"""The report: one page of everything, figures stored between two starts, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_scripts import Refused, write_texts

import report
from hf_distil_whisper import run_script
from hf_distil_whisper.hub.model_card import read_evaluation
from report import measured_once
from report_sections import html_page, markdown_table
from toy_files import write_toy_corpus

Write = Callable[..., str]


@pytest.fixture(scope="module")
def write(toys: Path) -> Write:
    """Writes a report on both models into a folder; returns its file."""

    def settings(folder: Path, **changes: object) -> str:
        corpus = str(toys / "corpus")
        content = {
            "title": "Toys", "models": {name: str(toys / name) for name in ("teacher", "student")},
            "eval_datasets": {"seen": {"path": corpus, "split": "train"}},
            "ood_datasets": {"new": {"path": corpus, "split": "test"}},
            "long_form_datasets": {"long": {"path": corpus, "split": "test"}},
            "reference": "seen", "noises": ["white"], "snrs": [10.0], "batch_sizes": [1], "latency_samples": 2,
            "output_dir": str(folder / "report"),
        }  # fmt: skip
        (folder / "report.yaml").write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
        return str(folder / "report.yaml")

    return settings


@pytest.fixture(scope="module")
def made(write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report and its settings."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "sweep").mkdir()
    (folder / "sweep" / "table.md").write_text("Threshold (Table 10)\n\n| λ | WER |\n|---|---|\n| 0.1 | 3 |\n")
    (folder / "sweep" / "wer.png").write_bytes(b"\x89PNG\r\n")
    (folder / "notes.md").write_text("The student is faster.")
    babble = {"noises": ["white", "babble"], "babble_dataset": write_toy_corpus(folder / "speakers", train=8)}
    file = write(folder, sweeps=[str(folder / "sweep")], notes=str(folder / "notes.md"), **babble)
    assert run_script(report.main, [file]) == 0
    return folder


def test_a_report_holds_every_section_its_pictures_and_the_scores_of_a_model_card(made: Path) -> None:
    page = (made / "report" / "report.md").read_text()
    assert re.findall("^## (.*)", page, flags=re.M) == [
        "Word error rate over latency", "Short form", "Long form", "Noise", "Latency", "Threshold (Table 10)",
        "What the figures say", "How this was made",
    ]  # fmt: skip
    assert page.count("![") == 3
    assert re.search(r"\| Average \| \d+\.\d \(\d+\.\d\) \|", page)
    assert re.search(r"Effective robustness of student, reference seen: [+-]\d+\.\d\d %", page)
    assert "rows left out of the rates" not in page
    assert f"python benchmarks/paper/report.py {made / 'report.yaml'}" in page
    html = (made / "report" / "report.html").read_text()
    assert html.count("data:image/") == 3
    assert "<title>Toys</title>" in html
    assert "The student is faster." in html
    assert "http" not in html.replace("http://www.w3.org", "")
    scores = read_evaluation(made / "report", student="student")
    assert set(scores.results) == set(scores.teacher_results) == {"seen", "new", "long"}
    assert scores.groups == {"seen": "in distribution", "new": "out of distribution", "long": "long form"}


def test_only_a_changed_model_is_measured_again(made: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the notes would cost all measurements; a student set to chunks of 15 s keep its figures of 30 s."""
    page, layers, evaluate = (made / "report" / "report.md").read_text(), [], report.evaluate_long_form

    def count(model: Any, *args: Any, **options: Any) -> Any:
        layers.append(model.config.decoder_layers)
        return evaluate(model, *args, **options)

    measures = ["evaluate_model", "evaluate_long_form", "evaluate_in_noise", "latency_grid", "compare_algorithms"]
    with monkeypatch.context() as patch:
        for name in measures:
            patch.setattr(report, name, None)
        assert run_script(report.main, [str(made / "report.yaml")]) == 0
    assert (made / "report" / "report.md").read_text() == page
    student = shutil.copytree(toys / "student", made / "student")
    config = json.loads((student / "generation_config.json").read_text())
    (student / "generation_config.json").write_text(json.dumps({**config, "chunk_length_s": 15.0}))
    monkeypatch.setattr(report, "evaluate_long_form", count)
    models = f"{{teacher: {toys / 'teacher'}, student: {student}}}"
    assert run_script(report.main, [str(made / "report.yaml"), "--models", models]) == 0
    assert layers == [2]


def test_rows_in_no_rate_are_named_and_a_set_without_references_is_refused(
    write: Write, toys: Path, tmp_path: Path, refused: Refused
) -> None:
    """A set of which most could not be read would look whole; 0 % over nothing would win the first picture."""
    corpus = Path(write_toy_corpus(tmp_path / "bad", train=3))
    (corpus / "00.wav").write_bytes(b"no audio")
    first, second, *others = (corpus / "metadata.jsonl").read_text().splitlines()
    silent = json.dumps({**json.loads(second), "text": None})
    (corpus / "metadata.jsonl").write_text("\n".join([first, silent, *others]))
    bad, student = {"bad": {"path": str(corpus), "split": "train"}}, {"student": str(toys / "student")}
    assert run_script(report.main, [write(tmp_path, models=student, ood_datasets=bad, long_form_datasets=bad)]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert page.count("  bad: 1 could not be read, 1 without a reference") == 2
    mute = {"seen": {"path": write_texts(str(corpus), ""), "split": "train"}}
    file = write(tmp_path, models=student, eval_datasets=mute)
    refused(report.main, [file], "seen: no row has a reference, so that there is no rate to draw")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {}}, "--models is missing"),
        ({"models": {"teacher": "nowhere"}}, "nowhere"),
        ({"reference": "new"}, "'new' is not among eval_datasets: seen"),
        ({"noises": ["pub.wav"]}, "--noises: pub.wav: no such file"),
        ({"reference": "seen", "ood_datasets": {}}, "give ood_datasets too"),
        ({"snrs": [float("inf")]}, "snrs`: "),
        ({"batch_sizes": [0, 4]}, "batch_sizes: expected whole numbers above 0, got [0, 4]"),
        ({"sweeps": ["nowhere"]}, "nowhere has no table.md"),
        ({"notes": "nowhere.md"}, "there is no file nowhere.md"),
        ({"output_dir": None}, "--output_dir is missing"),
    ],
)
def test_what_is_wrong_with_a_report_is_named(
    write: Write, tmp_path: Path, changes: dict, message: str, refused: Refused
) -> None:
    refused(report.main, [write(tmp_path, **changes)], message)


def test_a_figure_is_measured_once_for_its_name_and_settings(tmp_path: Path) -> None:
    """A report that was stopped would start anew; a student that was trained again would keep its old figures."""
    # Names that run together have different files.
    names = ["short form, student, large-test", "short form, student-large, test", "short form, openai/whisper-tiny"]
    for weights in (1, 2):
        settings = {"weights": weights}
        first = [measured_once(tmp_path, name, settings, lambda figure=(weights, name): figure) for name in names]
        again = [measured_once(tmp_path, name, settings, lambda: "again") for name in names]
        assert first == again == [[weights, name] for name in names]
    assert json.loads((tmp_path / "short-form__openai-whisper-tiny.json").read_text())["name"] == names[-1]


def test_the_page_shows_and_does_not_run_what_was_measured(tmp_path: Path) -> None:
    assert "<script>" not in html_page("# A\n\n<script>alert(1)</script> a & b", tmp_path)
    table = markdown_table("set", {"a": {"x": "1"}, "b": {"y": "2"}})
    assert table.splitlines()[2:] == ["| a | 1 | - |", "| b | - | 2 |"]
