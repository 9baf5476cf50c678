"""Labelling: one label per readable row, in order, with everything that filter and training need."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Audio, Dataset
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.data.audio import encode_flac, load_audio
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.data.labels import make_labels
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import RowErrors, load_source
from hf_distil_whisper.inference.encoder import window_features
from hf_distil_whisper.inference.generation import GenerationSettings, TokenSequence
from hf_distil_whisper.inference.output import timestamped_text
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.metrics import get_normalizer, word_errors
from hf_distil_whisper.pseudo_labels import labeller
from hf_distil_whisper.pseudo_labels.filtering import EmptyFilterError, filter_by_wer
from hf_distil_whisper.pseudo_labels.labeller import Backend, Packing, pseudo_label_dataset
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.teacher_cache import CacheSettings, TeacherCacheDataset
from talking_models import count_encoder_windows, multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor

SECONDS = (2, 5, 1, 3)
SPEECH = Path(__file__).parents[2].parent / "shared" / "speech"


def flac(seconds: float, seed: int = 0) -> dict:
    return {"bytes": encode_flac(toy_audio(seconds, seed=seed)), "path": None}


def recordings(**columns: list) -> Dataset:
    audio = [flac(length, seed=row) for row, length in enumerate(SECONDS)]
    texts = ["the quick", None, "?!", "jumps over"]
    return Dataset.from_dict({"id": list("abcd"), "audio": audio, "text": texts} | columns)


def label(
    rows: Dataset, folder: Path, teacher: WhisperForConditionalGeneration | int = 4, **settings: object
) -> Dataset:
    """Labels rows with a teacher, or with a toy teacher of this seed."""
    teacher = talking_whisper(teacher) if isinstance(teacher, int) else teacher
    return pseudo_label_dataset(rows, teacher, toy_processor(), output_dir=folder, **settings)


def test_labels_are_the_teachers_transcripts_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """Rows are labelled from long to short: a label beside the wrong recording trains hallucination."""
    dataset = recordings(source=[1, 2, 3, 4])
    # With CPU torch, the decoder that `datasets` would call for an Audio column does not even load.
    labelled = label(dataset.cast_column("audio", Audio()), tmp_path, batch_size=3, return_timestamps=False)
    expected = [one.text for one in transcribe(talking_whisper(4), toy_processor(), list(dataset["audio"]))]
    assert labelled["whisper_transcript"] == expected
    assert len(set(expected)) == 4
    assert labelled["duration"] == list(SECONDS)
    assert labelled["source"] == [1, 2, 3, 4]
    read = load_source(tmp_path)  # a training reads it by the same loader
    assert read["id"] == list("abcd")
    assert read["whisper_transcript"] == expected
    assert {"previous_transcript", "truncated", "duration"} <= set(read.column_names)


def test_settings_come_as_objects_or_as_keywords(tmp_path: Path) -> None:
    """Recipes pass keywords: one that does not reach its object would be ignored silently."""
    generation = GenerationSettings(num_beams=2, max_new_tokens=9, return_timestamps=True)
    as_objects = label(
        recordings(), tmp_path / "a", generation=generation, packing=Packing(max_duration=4.0), backend=Backend()
    )
    keywords = {"num_beams": 2, "max_new_tokens": 9, "max_duration": 4.0, "compute_type": "default"}
    as_keywords = label(recordings(), tmp_path / "a", **keywords)  # the same run: nothing is labelled again
    assert as_keywords.to_dict() == as_objects.to_dict()
    assert len(as_objects) == 5
    with pytest.raises(TypeError, match="unexpected keyword argument 'beams'"):
        label(recordings(), tmp_path, beams=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_does_not_run_the_encoder_that_labelling_has_run(tmp_path: Path, dtype: torch.dtype) -> None:
    """It is the largest part of both; hidden states of another recording would teach nonsense."""
    student, teacher = create_student(talking_whisper(4), decoder_layers=2), talking_whisper(4).to(dtype)
    processor, rows = toy_processor(), recordings(speaker=list("aabb"))
    settings = {"batch_size": 3, "max_duration": 8.0}
    plain = label(rows, tmp_path / "plain", teacher, **settings)
    labelled = label(rows, tmp_path / "labels", teacher, teacher_cache_dir=tmp_path / "cache", **settings)
    assert labelled["whisper_transcript"] == plain["whisper_transcript"]
    collate = DataCollatorSpeechSeq2SeqWithPadding(processor)
    encoded, speech = count_encoder_windows(student), SpeechDataset(labelled, processor)

    def with_cache(folder: Path | None) -> TeacherCacheDataset:
        cache = CacheSettings("both", teacher.dtype, folder and str(folder))
        return TeacherCacheDataset(speech, student, teacher, cache, collate, shares_encoder=True)

    cached = with_cache(tmp_path / "cache")
    assert encoded() == 0
    expected = with_cache(None)
    assert encoded() == len(labelled)
    for row in range(len(labelled)):
        assert cached[row]["labels"] == expected[row]["labels"]
        ours, theirs = cached[row]["encoder_states"].float(), expected[row]["encoder_states"].float()
        # Labelling encodes in the teacher's dtype, training in the student's.
        assert (ours - theirs).norm() < (1e-5 if dtype == torch.float32 else 0.05) * theirs.norm()


def test_rows_of_many_words_are_split_where_their_times_are_known(tmp_path: Path) -> None:
    """AMI's recipe (appendix A); the words go with their pieces."""
    words = [{"word": f"word{index},", "start": 0.5 * index, "end": 0.5 * index + 0.4} for index in range(8)]
    rows = Dataset.from_dict({"id": ["a"], "audio": [flac(4.0)], "words": [words]})
    labelled = label(rows, tmp_path, 2, max_duration=30.0, max_words=3)
    assert [len(text.split()) for text in labelled["text"]] == [3, 3, 2]
    assert sum(labelled["duration"]) == pytest.approx(4.0)


def test_stored_transcript_becomes_a_label_of_the_same_words_and_times(tmp_path: Path) -> None:
    """Labelling writes text and training reads it: what one writes and the other drops is never learnt."""
    teacher, tokenizer = talking_whisper(4), toy_processor().tokenizer
    for transcript in label(recordings(), tmp_path, teacher)["whisper_transcript"]:
        assert re.match(r"<\|\d+\.\d\d\|>", transcript)
        assert "<|startoftranscript|>" not in transcript
        labels = make_labels(tokenizer, transcript, timestamps=True).labels[:-1]
        decoded = timestamped_text(labels, tokenizer, timestamp_begin(teacher))
        ours, theirs = (re.sub(r"\s*(<\|[\d.]+\|>)\s*", r"\1", text) for text in (decoded, transcript))
        assert ours == theirs


def test_statistics_and_word_error_rates_stand_beside_the_labels(tmp_path: Path) -> None:
    """They are what bad labels are recognised by; a row without words to compare has no rate."""
    labelled = label(recordings(), tmp_path / "text", 2, return_timestamps=False, max_new_tokens=12)
    alone = transcribe(talking_whisper(2), toy_processor(), list(recordings()["audio"]), max_new_tokens=12)
    assert labelled["truncated"] == [one.statistics.truncated for one in alone]
    assert set(labelled["truncated"]) == {False, True}
    for name in ("mean_log_prob", "no_speech_prob", "compression_ratio"):
        assert labelled[name] == pytest.approx([getattr(one.statistics, name) for one in alone], rel=1e-3)
    pairs = zip(labelled["text"], labelled["whisper_transcript"], strict=True)
    errors = [word_errors(text, label, get_normalizer("en")) if text else None for text, label in pairs]
    for name in ("wer", "hits", "substitutions", "deletions", "insertions"):
        assert labelled[name] == [getattr(errors[0], name), None, None, getattr(errors[3], name)]
    without_text = label(recordings().remove_columns(["text", "id"]), tmp_path / "audio", 0)  # the commonest kind
    assert "wer" not in without_text.column_names
    assert len(without_text) == 4


def test_bad_rows_are_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One broken file after a night of labelling must not lose the night."""
    audio = {
        "good-1": flac(1),
        "missing": {"bytes": None, "path": "nowhere.flac"},
        "empty": {"bytes": b"", "path": None},
        "truncated": {"bytes": flac(3)["bytes"][:20_000], "path": None},
        "none": None,
        "long": flac(30.5),
        "very-long": flac(90),
        "good-2": flac(30),
    }
    dataset = Dataset.from_list([{"id": name, "audio": value} for name, value in audio.items()])
    errors = RowErrors()
    with caplog.at_level("WARNING", logger="hf_distil_whisper"):
        labelled = label(dataset, tmp_path / "some", 0, max_new_tokens=5, errors=errors)
    assert labelled["id"] == ["good-1", "good-2"]
    assert {row for row, _ in errors} == {"missing", "empty", "truncated", "none", "long", "very-long"}
    assert "6 rows left out" in caplog.text
    assert "at most the model's window of 30 s" in errors.summary()
    # A training would report an empty dataset, without the reason.
    with pytest.raises(ValueError, match=r"None of 1 rows could be labelled[\s\S]*nowhere\.flac"):
        label(dataset.select([1]), tmp_path / "nothing")
    with pytest.raises(ValueError, match="0 rows"):
        load_source(tmp_path / "nothing")


def test_previous_text_follows_the_packing(tmp_path: Path) -> None:
    """The reference scripts gave nearly every row the row before as prompt, across speakers and recordings."""
    utterances = [
        {"id": str(row), "audio": toy_audio(12, seed=row), "text": "the", "speaker": speaker}
        for row, speaker in enumerate("aaaaabb")
    ]
    packed = Dataset.from_list(list(pack_utterances(utterances)))
    assert packed["condition_on_prev"] == [False, True, True, False]
    labelled = label(packed, tmp_path, return_timestamps=False, max_new_tokens=20)
    texts = labelled["whisper_transcript"]
    assert labelled["truncated"][:3] == [False] * 3
    assert labelled["previous_transcript"] == [None, texts[0], texts[1], None]


def test_previous_text_is_unknown_behind_a_lost_or_truncated_row(tmp_path: Path) -> None:
    """The row two before is not what was said right before, and half a transcript ends elsewhere."""
    dataset = recordings(condition_on_prev=[False, True, True, True])
    without_b = Dataset.from_list([{**row, "audio": None} if row["id"] == "b" else row for row in dataset])
    lost = label(without_b, tmp_path / "lost")
    assert lost["id"] == ["a", "c", "d"]
    assert [previous is None for previous in lost["previous_transcript"]] == [True, True, False]
    truncated = label(dataset, tmp_path / "truncated", 3, max_new_tokens=2)
    assert truncated["truncated"] == [True] * 4
    assert truncated["previous_transcript"] == [None] * 4


def test_labels_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    """Relabelling must neither fail nor return the old column; token ids mark a continued row."""
    old = recordings(whisper_transcript=["old"] * 4, duration=[9.0] * 4, condition_on_prev=[None, [5, 6], None, [7]])
    labelled = label(old, tmp_path, return_timestamps=False)
    assert "old" not in labelled["whisper_transcript"]
    assert labelled["duration"] == list(SECONDS)
    assert [previous is None for previous in labelled["previous_transcript"]] == [True, False, True, False]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (recordings(), {"backend": "onnx"}, "`backend` is 'onnx', expected one of transformers"),
        (recordings(), {"language": "de"}, "English-only"),
        (recordings(), {"max_words": 30}, "`max_words` is 30, but no row is split without `max_duration`"),
        (recordings(), {"batch_size": 0}, "`batch_size` is 0, expected at least 1"),
        (recordings(), {"rows_per_shard": 0}, "`rows_per_shard` is 0, expected at least 1"),
        (recordings().remove_columns("audio"), {}, r"no column 'audio'.*id, text"),
        (recordings().select([]), {}, "0 rows"),
        (recordings(id=list("abab")), {}, r"2 ids stand for several rows, a, b among them.*`id_column`"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(tmp_path: Path, rows: Dataset, settings: dict, message: str) -> None:
    """Each before the first row is labelled, with what was expected."""
    with pytest.raises(ValueError, match=message):
        label(rows, tmp_path, 0, **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_files_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "labels.arrow").write_text("of another run")
    with pytest.raises(FileExistsError, match=r"holds something already.*Name another folder"):
        label(recordings(), tmp_path, None)


@pytest.mark.parametrize("backend", ["transformers", "ctranslate2"])
def test_each_row_is_labelled_in_its_language(backend: str, tmp_path: Path) -> None:
    """A corpus of several languages in one run: detection on short clips would mix other ones into the labels."""
    if backend == "ctranslate2":
        pytest.importorskip("ctranslate2")
    teacher, errors = multilingual_whisper(4), RowErrors()
    settings = {"backend": backend, "batch_size": 3, "return_timestamps": False}
    rows = recordings(language=["de", "Hindi", "klingon", None], condition_on_prev=[False, False, False, True])
    labelled = label(rows, tmp_path, teacher, language="en", errors=errors, **settings)
    expected = [
        transcribe(teacher, toy_processor(), rows[row]["audio"], language=code)[0].text
        for row, code in ((0, "de"), (1, "hi"), (3, "en"))
    ]
    assert labelled["id"] == ["a", "b", "d"]
    assert labelled["whisper_transcript"] == expected
    assert labelled["language"] == ["de", "hi", "en"]
    assert labelled["language_prob"] == [None] * 3
    assert labelled["previous_transcript"] == [None, None, None]  # the row before it was lost
    assert [row for row, _ in errors] == ["c"]
    assert "'klingon'" in next(iter(errors))[1]
    detected = label(rows.remove_columns("language"), tmp_path / "detected", teacher, **settings)
    languages = {code for row in rows["audio"] for code in detected_languages(teacher, row["bytes"])}
    assert set(detected["language"]) == languages
    assert all(0 < probability < 1 for probability in detected["language_prob"])


def detected_languages(teacher: WhisperForConditionalGeneration, recording: bytes) -> list[str]:
    features = window_features(teacher, toy_processor(), [load_audio(recording)])
    codes = {token: name.strip("<|>") for name, token in teacher.generation_config.lang_to_id.items()}
    return [codes[token] for token in teacher.detect_language(features).tolist()]


OPEN, CLOSED = "<|0.00|> the<|4.00|><|4.00|>", "<|0.00|> fox<|2.00|>"


@pytest.mark.parametrize(
    ("windows", "settings", "transcript", "truncated"),
    [
        ([OPEN, CLOSED], {}, "<|0.00|> the<|4.00|><|4.00|> fox<|6.00|>", False),
        ([OPEN, OPEN, CLOSED], {}, "<|0.00|> the<|4.00|><|4.00|> the<|8.00|><|8.00|> fox<|10.00|>", False),
        ([OPEN, OPEN, OPEN], {}, "<|0.00|> the<|4.00|><|4.00|> the<|8.00|><|8.00|> the<|12.00|><|12.00|>", True),
        (["<|0.00|> the<|4.00|><|5.00|>", CLOSED], {}, "<|0.00|> the<|4.00|><|4.00|> fox<|6.00|>", False),
        ([OPEN], {"second_window": False}, OPEN, True),
        (["<|0.00|> the<|19.60|><|19.60|>"], {}, "<|0.00|> the<|19.60|>", False),
        (["<|0.00|> the<|19.60|>"], {}, "<|0.00|> the<|19.60|>", False),
        ([OPEN, "silence"], {}, "<|0.00|> the<|4.00|>", False),
        ([OPEN, "<|0.00|><|9.00|>"], {}, "<|0.00|> the<|4.00|>", False),
        ([OPEN, CLOSED], {"max_new_tokens": 4}, "<|0.00|> the<|4.00|><|4.00|>", True),
    ],
)
def test_a_label_holds_all_that_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    windows: list[str],
    settings: dict,
    transcript: str,
    truncated: bool,
) -> None:
    """Whisper leaves off in many windows of nearly 30 s: a student of such labels stops amid speech."""
    teacher, processor, samples = talking_whisper(4), toy_processor(), toy_audio(20.0)
    answers, inputs = iter(windows), []

    def generate(_: object, input_features: torch.Tensor, **__: object) -> list[TokenSequence]:
        inputs.append(input_features)
        text, quiet = next(answers), (-0.2, 0.1)
        if text == "silence":
            text, quiet = " you", (-1.5, 0.9)
        return [TokenSequence(processor.tokenizer(text, add_special_tokens=False).input_ids, False, *quiet)]

    monkeypatch.setattr(labeller, "generate_tokens", generate)
    rows = Dataset.from_dict({"audio": [{"bytes": encode_flac(samples), "path": None}]})
    (row,) = label(rows, tmp_path, teacher, **settings)
    assert row["whisper_transcript"] == transcript
    assert row["truncated"] == truncated
    assert next(answers, None) is None
    for number, window in enumerate(inputs):  # each from where the one before has left off
        rest = load_audio(encode_flac(samples))[number * 4 * 16_000 :]
        torch.testing.assert_close(window, window_features(teacher, processor, [rest]))


@pytest.mark.parametrize(("corpus", "hours"), [("librispeech", 0.128), ("ljspeech", 0.29)])
@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not at ../shared/speech")
def test_labels_of_a_random_teacher_on_human_speech_are_all_dropped(tmp_path: Path, corpus: str, hours: float) -> None:
    """Instead of an error, training on them would end with a random student."""
    utterances, errors = load_source(SPEECH / corpus), RowErrors()
    rows = Dataset.from_list(list(pack_utterances(utterances, errors=errors)))
    labelled = label(rows, tmp_path, 2, max_new_tokens=20, errors=errors)
    assert not errors
    assert sum(len(ids) for ids in labelled["ids"]) == len(utterances)
    assert sum(labelled["duration"]) / 3600 == pytest.approx(hours, abs=0.01)
    with pytest.raises(EmptyFilterError, match=rf"None of {len(labelled)} rows") as error:
        filter_by_wer(labelled, language="en")
    assert "hours kept" in str(error.value)
