"""The benchmark of labelling: every way labels the same rows, and says what it was measured on."""

from pathlib import Path

import pytest
from datasets import Dataset

import cli_benchmark as benchmark
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.inference import ctranslate2 as export
from hf_distil_whisper.metrics import WordErrors
from labelling_speed import (
    PLAIN,
    LabellingSpeed,
    measure_labelling,
    mixed_recordings,
)
from talking_models import talking_whisper
from toy_files import write_toy_corpus, write_toy_model
from toy_models import toy_audio, toy_processor


def utterances(count: int, seconds: float = 4.0) -> Dataset:
    """Of one speaker, all different."""
    audio = [{"bytes": encode_flac(toy_audio(seconds, seed=row)), "path": None} for row in range(count)]
    return Dataset.from_dict(
        {
            "id": [str(row) for row in range(count)],
            "audio": audio,
            "text": ["the quick"] * count,
            "speaker": [1] * count,
        }
    )


def test_recordings_are_of_all_lengths_and_every_utterance_stands_in_one() -> None:
    """A benchmark on short ones alone flatters whoever stops early."""
    mixed = mixed_recordings(utterances(30), 6)
    lengths = sorted(row.get("duration", 4.0) for row in mixed)
    assert lengths == pytest.approx([4.0, 4.0, 4.0, 8.3, 16.9, 29.8])
    ids = [name for row in mixed for name in row.get("ids", [row["id"]])]
    assert len(ids) == len(set(ids))
    with pytest.raises(ValueError, match=r"5 utterances make .* recordings of up to 30 s, 40 were asked for"):
        mixed_recordings(utterances(5), 40)


def test_every_way_labels_every_row_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed bought with other labels is none."""
    monkeypatch.setattr(export, "HF_HOME", str(tmp_path))
    rows = list(utterances(5, seconds=2.0))
    found = measure_labelling(
        talking_whisper(4), toy_processor(), rows, compute_types=["float32"], num_beams=[2], batch_size=2, rounds=2
    )
    greedy = [PLAIN, "transformers", "ctranslate2 float32"]
    assert list(found) == [*greedy, "transformers, 2 beams", "ctranslate2 float32, 2 beams"]
    assert found["transformers, 2 beams"].texts != found["transformers"].texts
    # Plain `generate` begins a second window where a toy's last timestamp is early, as no trained model does.
    assert found["transformers"].texts == found["ctranslate2 float32"].texts
    for way in found.values():
        assert len(way.texts) == 5
        assert len(way.seconds) == 2
        assert way.errors.num_words == 10


def test_the_table_holds_ratios_to_the_plain_way() -> None:
    found = {
        PLAIN: LabellingSpeed([9.0, 3.0, 4.0], ["a", "b"], WordErrors(hits=9, substitutions=1)),
        "transformers": LabellingSpeed([2.0], ["a", "c"], WordErrors(hits=8, substitutions=2)),
    }
    assert benchmark.labelling_table(found).splitlines()[2:] == [
        "| generate | 4.0 | 1.00 | 100.0% | 10.00% |",
        "| transformers | 2.0 | 2.00 | 50.0% | 20.00% |",
    ]


def test_the_command_checks_its_inputs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Ten minutes of labelling before a typing error is found are ten minutes lost."""
    write_toy_model(tmp_path / "teacher")
    write_toy_corpus(tmp_path / "corpus")
    flags = ["--teacher_model_name_or_path", str(tmp_path / "teacher"), "--dataset", str(tmp_path / "corpus")]
    assert main(["benchmark", "label", *flags, "--rows", "4", "--dry_run"]) == 0
    assert "label 4 recordings 3 times" in capsys.readouterr().out
    for argv, message in (
        (
            ["labels"],
            "`benchmark label | data | train | latency | assistant | early-exit | long-form-memory`, got 'labels'",
        ),
        ([], "got 'nothing'"),
        (["label", *flags, "--rows", "0"], "--rows: expected a whole number above 0, got 0"),
        (["label", *flags, "--dtype", "fp16"], "--dtype: invalid choice: 'fp16' (choose from"),
        (["label", *flags, "--rows", "4000"], "4000 were asked for"),
    ):
        assert main(["benchmark", *argv]) == 2
        assert message in capsys.readouterr().err
