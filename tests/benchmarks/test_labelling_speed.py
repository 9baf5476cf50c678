"""Labelling: every method labels the same rows; packing, filter and index pass all rows."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from toy_scripts import Printed

import labelling
from hf_distil_whisper import WordErrors, load_audio
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.inference import ctranslate2
from inputs import LoadedModel
from labelling import PLAIN, LabellingSpeed, StepSpeed, data_table, labelling_table, measure_data
from talking_models import multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor


def utterances(count: int, seconds: float = 4.0) -> Dataset:
    """Of one speaker, all different."""
    audio = [{"bytes": encode_flac(toy_audio(seconds, seed=row)), "path": None} for row in range(count)]
    ids = [str(row) for row in range(count)]
    return Dataset.from_dict({"id": ids, "audio": audio, "text": ["the quick"] * count, "speaker": [1] * count})


def test_recordings_are_of_all_lengths_and_every_utterance_is_in_one() -> None:
    """A benchmark on short ones alone flatters whoever stops early."""
    mixed = labelling.mixed_recordings(utterances(30), 6)
    assert sorted(row.get("duration", 4.0) for row in mixed) == pytest.approx([4.0, 4.0, 4.0, 8.3, 16.9, 29.8])
    ids = [name for row in mixed for name in row.get("ids", [row["id"]])]
    assert len(ids) == len(set(ids))
    with pytest.raises(ValueError, match=r"5 utterances make .* recordings of up to 30 s, 40 were asked for"):
        labelling.mixed_recordings(utterances(5), 40)


def test_a_multilingual_teacher_is_told_the_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose language one method hears and another does not says nothing of either."""
    monkeypatch.setattr(ctranslate2, "HF_HOME", str(tmp_path))
    teacher = LoadedModel(multilingual_whisper(), toy_processor())
    heard: list[str | None] = []
    monkeypatch.setattr(
        teacher.model,
        "generate",
        lambda windows, **options: heard.append(options["language"]) or windows.new_zeros(len(windows), 1).long(),
    )
    texts = {}
    for language in ("en", "de"):
        rows, options = list(utterances(4, seconds=2.0)), {"compute_types": ["float32"], "rounds": 1}
        speeds = labelling.measure_labelling(teacher, rows, language=language, **options)
        assert speeds["transformers"].texts == speeds["ctranslate2 float32"].texts
        texts[language] = speeds["transformers"].texts
    assert heard == ["en", "de"]
    assert texts["en"] != texts["de"]


def test_every_method_labels_every_row_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed bought with other labels is none."""
    monkeypatch.setattr(ctranslate2, "HF_HOME", str(tmp_path))
    options = {"compute_types": ["float32"], "num_beams": [2], "batch_size": 2, "rounds": 2}
    rows = list(utterances(5, seconds=2.0))
    rows[4]["text"] = None  # no reference
    speeds = labelling.measure_labelling(LoadedModel(talking_whisper(4), toy_processor()), rows, **options)
    greedy = [PLAIN, "transformers", "ctranslate2 float32"]
    assert list(speeds) == [*greedy, "transformers, 2 beams", "ctranslate2 float32, 2 beams"]
    assert speeds["transformers, 2 beams"].texts != speeds["transformers"].texts
    # Not those of plain `generate`, which goes on behind a toy's last timestamp, however often.
    assert speeds["transformers"].texts == speeds["ctranslate2 float32"].texts
    for one in speeds.values():
        assert (len(one.texts), len(one.seconds), one.errors.num_words) == (5, 2, 8)


def test_labels_of_all_windows_and_of_clips_without_speech_are_counted(
    toys: Path, tmp_path: Path, printed: Printed
) -> None:
    """Each row is in one window, whatever its length, and clips are not speech to begin with."""
    speech = str(tmp_path / "speech")
    utterances(4).save_to_disk(speech)
    flags = ["--teacher_model_name_or_path", toys / "teacher", "--batch_size", 2]
    text = printed(labelling.main, "windows", *flags, "--dataset", speech, "--max_durations", 8)
    for line in ("| not packed | 4 |", "| 8 s | 2 |", "| 8 s, second window | 2 |"):
        assert line in text
    sets = ["--datasets", f"{{speech: {speech}}}", "--noise", speech, "--clips", 4]
    text = printed(labelling.main, "silence", *flags, *sets)
    assert "| speech | 4 |" in text
    assert "| not speech | 4 |" in text
    clips = labelling.non_speech(utterances(1), 4)
    assert clips["id"] == ["silence-0", "hum-1", "hiss-2", "noise-3"]
    levels = [float(np.abs(load_audio(row["audio"])).max()) for row in clips]
    assert levels[0] == 0.0
    assert min(levels[1:]) > 0.0


def test_tables_hold_ratios_to_plain_generate_and_bytes_of_a_row() -> None:
    """Worked by hand: 9 MB more for 900,000 rows more are 10 bytes a row."""
    speeds = {
        PLAIN: LabellingSpeed([9.0, 3.0, 4.0], ["a", "b"], WordErrors(hits=9, substitutions=1)),
        "transformers": LabellingSpeed([2.0], ["a", "c"], WordErrors(hits=8, substitutions=2)),
    }
    assert labelling_table(speeds).splitlines()[2:] == [
        "| generate | 4.0 | 1.00 | 100.0% | 10.00% |",
        "| transformers | 2.0 | 2.00 | 50.0% | 20.00% |",
    ]
    few, many = StepSpeed(100_000, 2.0, 300_000_000), StepSpeed(1_000_000, 20.0, 309_000_000)
    assert data_table({"filter": few}, {"filter": many}).splitlines()[2:] == [
        "| filter | 1,000,000 | 50,000 | 309 MB | 300 MB (100,000) | 10 |"
    ]


def test_a_dry_run_checks_the_inputs_only(toys: Path, printed: Printed) -> None:
    flags = ["--teacher_model_name_or_path", toys / "teacher", "--dataset", toys / "corpus", "--rows", 4]
    assert "dry run" in printed(labelling.main, *flags, "--dry_run")


def test_every_step_of_the_preparation_is_measured_on_all_rows() -> None:
    steps = measure_data(200, seconds=0.1)
    assert list(steps) == ["packing", "filter", "index"]
    assert all(step.rows == 200 and step.seconds > 0 and step.peak_bytes > 10_000_000 for step in steps.values())


@pytest.mark.slow
def test_filter_and_index_take_no_more_memory_for_more_rows() -> None:
    """A few numbers a row held in arrays are 200 bytes each by the end: 20 MB here, 4 GB for the paper's corpora."""
    few, many = measure_data(20_000, seconds=0.01), measure_data(120_000, seconds=0.01)
    for step in ("filter", "index"):
        assert many[step].peak_bytes - few[step].peak_bytes < 12e6
