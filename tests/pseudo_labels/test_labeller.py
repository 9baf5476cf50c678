"""Labelling: one label per readable row, in order, with all that the filter and the training need."""

import re
from pathlib import Path

import pytest
import soundfile
import torch
from datasets import Audio, Dataset

from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.data.labels import make_labels
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import (
    RowErrors,
    load_source,
)
from hf_distil_whisper.inference.output import timestamped_text
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.metrics import (
    get_normalizer,
    word_errors,
)
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.teacher_cache import (
    CacheSettings,
    TeacherCacheDataset,
)
from talking_models import count_encoder_windows, multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor

SECONDS = (2, 5, 1, 3)


def recordings(**columns: list) -> Dataset:
    """Four recordings as FLAC in the rows."""
    audio = [{"bytes": encode_flac(toy_audio(length, seed=row)), "path": None} for row, length in enumerate(SECONDS)]
    texts = ["the quick", None, "?!", "jumps over"]
    return Dataset.from_dict({"id": list("abcd"), "audio": audio, "text": texts, **columns})


def test_labels_are_the_teachers_transcripts_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """Rows are labelled from long to short: a label beside the wrong recording trains hallucination."""
    teacher, dataset = talking_whisper(4), recordings(source=[1, 2, 3, 4])
    labelled = pseudo_label_dataset(
        dataset, teacher, toy_processor(), output_dir=tmp_path / "plain", batch_size=3, return_timestamps=False
    )
    expected = [one.text for one in transcribe(teacher, toy_processor(), list(dataset["audio"]))]
    assert labelled["whisper_transcript"] == expected
    assert len(set(expected)) == 4
    assert labelled["duration"] == list(SECONDS)
    assert labelled["source"] == [1, 2, 3, 4]
    assert load_source(tmp_path / "plain")["whisper_transcript"] == expected


def test_a_training_need_not_run_the_encoder_that_labelling_has_run(tmp_path: Path) -> None:
    """It is the largest part of both; states of another recording would teach nonsense."""
    teacher, processor = talking_whisper(4), toy_processor()
    settings = {"output_dir": tmp_path / "labels", "batch_size": 3, "max_duration": 8.0}
    plain = pseudo_label_dataset(recordings(speaker=list("aabb")), teacher, processor, **settings)
    settings |= {"output_dir": tmp_path / "kept", "teacher_cache_dir": tmp_path / "cache"}
    labelled = pseudo_label_dataset(recordings(speaker=list("aabb")), teacher, processor, **settings)
    assert labelled["whisper_transcript"] == plain["whisper_transcript"]
    student, collate = create_student(teacher, decoder_layers=2), DataCollatorSpeechSeq2SeqWithPadding(processor)
    encoded, asked = count_encoder_windows(student), SpeechDataset(labelled, processor)

    def cached(folder: Path | None) -> TeacherCacheDataset:
        kept = CacheSettings("both", teacher.dtype, 8, 2.0, folder and str(folder))
        return TeacherCacheDataset(asked, student, teacher, kept, collate, shares_encoder=True)

    found = cached(tmp_path / "cache")
    assert encoded() == 0
    expected = cached(None)
    assert encoded() == len(labelled)
    for row in range(len(labelled)):
        assert found[row]["labels"] == expected[row]["labels"]
        torch.testing.assert_close(found[row]["encoder_states"], expected[row]["encoder_states"])


def test_rows_of_many_words_are_split_where_their_times_are_known(tmp_path: Path) -> None:
    """AMI's recipe (appendix A); the words go with their pieces."""
    words = [{"word": f"word{number},", "start": 0.5 * number, "end": 0.5 * number + 0.4} for number in range(8)]
    rows = Dataset.from_dict(
        {"id": ["a"], "audio": [{"bytes": encode_flac(toy_audio(4.0)), "path": None}], "words": [words]}
    )
    settings = {"max_duration": 30.0, "max_words": 3}
    labelled = pseudo_label_dataset(rows, talking_whisper(2), toy_processor(), output_dir=tmp_path, **settings)
    assert [len(text.split()) for text in labelled["text"]] == [3, 3, 2]
    assert sum(labelled["duration"]) == pytest.approx(4.0)


def test_stored_transcript_becomes_a_label_of_the_same_words_and_times(tmp_path: Path) -> None:
    """Labelling writes text and training reads it: what one writes and the other drops is never learnt."""
    teacher, processor = talking_whisper(4), toy_processor()
    labelled = pseudo_label_dataset(recordings(), teacher, processor, output_dir=tmp_path)
    begin = timestamp_begin(teacher)

    def without_spaces_at_times(text: str) -> str:
        return re.sub(r"\s*(<\|[\d.]+\|>)\s*", r"\1", text)

    for transcript in labelled["whisper_transcript"]:
        assert re.match(r"<\|\d+\.\d\d\|>", transcript)
        assert "<|startoftranscript|>" not in transcript
        labels = make_labels(processor.tokenizer, transcript, timestamps=True).labels[:-1]
        read_back = timestamped_text(labels, processor.tokenizer, begin)
        assert without_spaces_at_times(read_back) == without_spaces_at_times(transcript)


def test_statistics_and_word_error_rates_stand_beside_the_labels(tmp_path: Path) -> None:
    """They are what bad labels are found by; a row without words to compare has no rate."""
    teacher = talking_whisper(2)
    labelled = pseudo_label_dataset(
        recordings(), teacher, toy_processor(), output_dir=tmp_path, return_timestamps=False, max_new_tokens=12
    )
    alone = transcribe(teacher, toy_processor(), list(recordings()["audio"]), max_new_tokens=12)
    assert labelled["truncated"] == [one.statistics.truncated for one in alone]
    assert set(labelled["truncated"]) == {False, True}
    for name in ("mean_log_prob", "no_speech_prob", "compression_ratio"):
        assert labelled[name] == pytest.approx([getattr(one.statistics, name) for one in alone], rel=1e-3)
    normalizer = get_normalizer("en")
    pairs = zip(labelled["text"], labelled["whisper_transcript"], strict=True)
    found = [word_errors(text, said, normalizer) if text else None for text, said in pairs]
    for name in ("wer", "hits", "substitutions", "deletions", "insertions"):
        assert labelled[name] == [getattr(found[0], name), None, None, getattr(found[3], name)]


def test_recordings_without_a_text_column_are_labelled_without_rates(tmp_path: Path) -> None:
    """Audio without transcripts is the commonest kind: the reference script demanded a text column."""
    labelled = pseudo_label_dataset(
        recordings().remove_columns(["text", "id"]), talking_whisper(), toy_processor(), output_dir=tmp_path
    )
    assert "wer" not in labelled.column_names
    assert len(labelled) == 4


def test_bad_rows_cost_themselves_and_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One broken file after a night of labelling must not lose the night."""
    broken = toy_audio(1)
    broken[3] = float("nan")
    dataset = Dataset.from_list(
        [
            {"id": "good-1", "audio": {"bytes": encode_flac(toy_audio(1)), "path": None}},
            {"id": "missing", "audio": {"bytes": None, "path": "nowhere.flac"}},
            {"id": "empty", "audio": {"bytes": b"", "path": None}},
            {"id": "cut", "audio": {"bytes": encode_flac(toy_audio(3))[:20_000], "path": None}},
            {"id": "none", "audio": None},
            {"id": "long", "audio": {"bytes": encode_flac(toy_audio(30.5)), "path": None}},
            {"id": "very-long", "audio": {"bytes": encode_flac(toy_audio(90)), "path": None}},
            {"id": "good-2", "audio": {"bytes": encode_flac(toy_audio(30)), "path": None}},
        ]
    )
    errors = RowErrors()
    with caplog.at_level("WARNING", logger="hf_distil_whisper"):
        labelled = pseudo_label_dataset(
            dataset, talking_whisper(), toy_processor(), output_dir=tmp_path, max_new_tokens=5, errors=errors
        )
    assert labelled["id"] == ["good-1", "good-2"]
    assert {row for row, _ in errors} == {"missing", "empty", "cut", "none", "long", "very-long"}
    assert "6 rows left out" in caplog.text
    assert "at most the model's window of 30 s" in errors.summary()


def test_nothing_readable_ends_with_the_reasons(tmp_path: Path) -> None:
    """An empty data set on disk would be found by the training, without the reason."""
    dataset = Dataset.from_list([{"id": "a", "audio": {"bytes": None, "path": "nowhere.flac"}}])
    with pytest.raises(ValueError, match=r"None of 1 rows could be labelled[\s\S]*nowhere\.flac"):
        pseudo_label_dataset(dataset, talking_whisper(), toy_processor(), output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="0 rows"):
        load_source(tmp_path / "out")


def test_previous_text_follows_the_packing(tmp_path: Path) -> None:
    """The reference scripts gave nearly every row the row before as prompt, across speakers and recordings."""
    utterances = [
        {"id": str(row), "audio": toy_audio(12, seed=row), "text": "the", "speaker": speaker}
        for row, speaker in enumerate("aaaaabb")
    ]
    packed = Dataset.from_list(list(pack_utterances(utterances)))
    assert packed["condition_on_prev"] == [False, True, True, False]
    labelled = pseudo_label_dataset(
        packed, talking_whisper(4), toy_processor(), output_dir=tmp_path, return_timestamps=False, max_new_tokens=20
    )
    texts = labelled["whisper_transcript"]
    assert labelled["truncated"][:3] == [False] * 3
    assert labelled["previous_transcript"] == [None, texts[0], texts[1], None]


def test_previous_text_is_unknown_behind_a_lost_or_cut_off_row(tmp_path: Path) -> None:
    """The row two before is not what was said right before, and half a transcript ends elsewhere."""
    dataset = recordings(condition_on_prev=[False, True, True, True])
    dataset = Dataset.from_list([{**row, "audio": None} if row["id"] == "b" else row for row in dataset])
    lost = pseudo_label_dataset(dataset, talking_whisper(4), toy_processor(), output_dir=tmp_path / "lost")
    assert lost["id"] == ["a", "c", "d"]
    assert [previous is None for previous in lost["previous_transcript"]] == [True, True, False]
    cut = pseudo_label_dataset(
        recordings(condition_on_prev=[False, True, True, True]),
        talking_whisper(3),
        toy_processor(),
        output_dir=tmp_path / "cut",
        max_new_tokens=2,
    )
    assert cut["truncated"] == [True] * 4
    assert cut["previous_transcript"] == [None] * 4


def test_labels_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    """Relabelling a labelled set must neither fail nor keep the old column; token ids mark a continued row."""
    old = recordings(whisper_transcript=["old"] * 4, duration=[9.0] * 4, condition_on_prev=[None, [5, 6], None, [7]])
    labelled = pseudo_label_dataset(
        old, talking_whisper(4), toy_processor(), output_dir=tmp_path, return_timestamps=False
    )
    assert "old" not in labelled["whisper_transcript"]
    assert labelled["duration"] == list(SECONDS)
    assert [previous is None for previous in labelled["previous_transcript"]] == [True, False, True, False]


def test_output_folder_of_another_run_is_refused_before_any_work(tmp_path: Path) -> None:
    """Labels of two teachers in one folder cannot be told apart; finding out after labelling loses the labels."""
    (tmp_path / "labels.arrow").write_text("of another run")
    with pytest.raises(FileExistsError, match=r"holds something already.*Name another folder"):
        pseudo_label_dataset(recordings(), None, None, output_dir=tmp_path)


def test_requests_that_cannot_be_met_are_refused(tmp_path: Path) -> None:
    """Each with what was expected: these are typed by hand."""
    teacher, processor = talking_whisper(), toy_processor()
    with pytest.raises(ValueError, match="`backend` is 'onnx', expected one of transformers"):
        pseudo_label_dataset(recordings(), teacher, processor, output_dir=tmp_path, backend="onnx")
    with pytest.raises(ValueError, match=r"no column 'audio'.*id, text"):
        pseudo_label_dataset(recordings().remove_columns("audio"), teacher, processor, output_dir=tmp_path)
    with pytest.raises(ValueError, match="0 rows"):
        pseudo_label_dataset(recordings().select([]), teacher, processor, output_dir=tmp_path)
    with pytest.raises(ValueError, match="English-only"):
        pseudo_label_dataset(recordings(), teacher, processor, output_dir=tmp_path, language="de")
    with pytest.raises(ValueError, match="`max_words` is 30, but no row is split without `max_duration`"):
        pseudo_label_dataset(recordings(), teacher, processor, output_dir=tmp_path, max_words=30)


def test_audio_feature_of_datasets_is_read_by_our_own_decoder(tmp_path: Path) -> None:
    """With CPU torch, the decoder that `datasets` would call does not even load."""
    path = tmp_path / "speech.wav"
    soundfile.write(path, toy_audio(1), 16_000)
    rows = Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", Audio(decode=False))
    rows = rows.cast_column("audio", Audio())
    labelled = pseudo_label_dataset(rows, talking_whisper(), toy_processor(), output_dir=tmp_path / "out")
    assert labelled["duration"] == [1.0]


@pytest.mark.parametrize("backend", ["transformers", "ctranslate2"])
def test_each_row_is_labelled_in_its_own_language(backend: str, tmp_path: Path) -> None:
    """A corpus of several languages in one run: each label is the one that a run of its language alone would give."""
    if backend == "ctranslate2":
        pytest.importorskip("ctranslate2")
    teacher, errors = multilingual_whisper(4), RowErrors()
    told = recordings(language=["de", "Hindi", "klingon", None], condition_on_prev=[False, False, False, True])

    def labels(name: str, dataset: Dataset, **settings: object) -> Dataset:
        settings = {"output_dir": tmp_path / name, "backend": backend, "batch_size": 3, **settings}
        return pseudo_label_dataset(dataset, teacher, toy_processor(), **settings)

    labelled = labels("mixed", told, language="en", errors=errors)
    expected = [
        labels(code, recordings().select([row]), language=code)[0]["whisper_transcript"]
        for row, code in ((0, "de"), (1, "hi"), (3, "en"))
    ]
    assert labelled["id"] == ["a", "b", "d"]
    assert labelled["whisper_transcript"] == expected
    assert labelled["language"] == ["de", "Hindi", None]
    assert labelled["previous_transcript"] == [None, None, None]  # the row before it was lost
    assert [row for row, _ in errors] == ["c"]
    assert "'klingon'" in next(iter(errors))[1]


def test_multilingual_teacher_labels_in_the_language_asked_for(tmp_path: Path) -> None:
    """Detection on short clips mixes languages into the labels; the given language must reach the prefix."""
    teacher, dataset = multilingual_whisper(4), recordings()
    labelled = pseudo_label_dataset(
        dataset, teacher, toy_processor(), output_dir=tmp_path, language="de", return_timestamps=False
    )
    expected = transcribe(teacher, toy_processor(), list(dataset["audio"]), language="de")
    assert labelled["whisper_transcript"] == [one.text for one in expected]


def test_labelled_folder_is_a_source_again(tmp_path: Path) -> None:
    """Training reads what labelling wrote through the same loader."""
    pseudo_label_dataset(recordings(), talking_whisper(4), toy_processor(), output_dir=tmp_path)
    rows = load_source(tmp_path)
    assert rows["id"] == list("abcd")
    assert {"whisper_transcript", "previous_transcript", "truncated", "duration"} <= set(rows.column_names)
