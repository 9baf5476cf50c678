"""Samples for training and validation, and what happens to rows that cannot be used."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from torch.utils.data import DataLoader

from hf_distil_whisper.data.audio import SAMPLING_RATE, encode_flac, load_audio
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import LabelSettings, SpeechDataset, check_rows
from hf_distil_whisper.data.labels import IGNORE_INDEX
from official_models import needs_files, official_whisper
from toy_models import toy_audio, toy_processor


def embedded(samples: np.ndarray) -> dict:
    return {"bytes": encode_flac(samples), "path": None}


def labelled(count: int = 12, **columns: list) -> Dataset:
    """Rows as the labeller writes them; every second one goes on from the row before."""
    texts = [f"Row {row}." for row in range(count)]
    previous = [texts[row - 1] if row % 2 else None for row in range(count)]
    return Dataset.from_dict(
        {
            "id": [f"id-{row}" for row in range(count)],
            "audio": [embedded(toy_audio(0.2, seed=row)) for row in range(count)],
            "text": [text.lower() for text in texts],
            "whisper_transcript": [f"<|0.00|> {text}<|0.20|>" for text in texts],
            "previous_transcript": previous,
            "condition_on_prev": [text is not None for text in previous],
            **columns,
        }
    )


def samples(dataset: Dataset | None = None, **options: object) -> SpeechDataset:
    return SpeechDataset(labelled() if dataset is None else dataset, toy_processor(), **options)


def read(item: dict) -> str:
    """The decoder's input, written out with its special tokens and timestamps."""
    return toy_processor().tokenizer.decode(item["decoder_input_ids"], decode_with_timestamps=True)


def read_all(data: SpeechDataset) -> list[str]:
    return [read(data.label_item(row)) for row in range(len(data))]


collate = DataCollatorSpeechSeq2SeqWithPadding(toy_processor())


def test_a_sample_holds_the_features_of_its_row_and_labels_of_one_length():
    """Features that are cached, padded or scaled otherwise than the extractor does it are not what Whisper learnt."""
    item, audio = samples()[3], load_audio(labelled()[3]["audio"])
    features = item.pop("input_features")
    extracted = toy_processor().feature_extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    torch.testing.assert_close(features, extracted.input_features[0])  # of one type, too
    assert len(item["decoder_input_ids"]) == len(item["labels"])
    assert "Row 3." in read(item)
    assert samples().label_item(3) == item  # runs with cached encoder outputs train on the same labels


def test_draws_have_their_probabilities_and_differ_between_epochs():
    """Drawn inside `Dataset.map`, the flips are frozen in the cache for all epochs."""
    draw = LabelSettings().draw_variant
    draws = np.array([[draw(42, epoch, index) for index in range(2000)] for epoch in range(2)])
    np.testing.assert_allclose(draws.mean(axis=(0, 1)), [0.5, 0.2], atol=0.03)
    assert (draws[0] != draws[1]).mean() > 0.3
    assert (draws[1] != [draw(43, 0, index) for index in range(2000)]).mean() > 0.3  # not by their sum
    # The two flips of a sample do not go together.
    assert abs(np.corrcoef(draws[0, :, 0], draws[0, :, 1])[0, 1]) < 0.06
    extreme = LabelSettings(timestamp_probability=0.0, condition_on_prev_probability=1.0)
    assert {extreme.draw_variant(0, 0, index) for index in range(50)} == {(False, True)}


def test_the_variants_of_a_row_are_all_that_can_be_drawn_and_nothing_else():
    """A cache that was asked about three of four variants fails in the middle of an epoch, or lies."""
    data, drawn = samples(), []
    for epoch in range(60):
        data.set_epoch(epoch)
        drawn.append(read_all(data))
    for row, texts in enumerate(zip(*drawn, strict=True)):
        assert sorted(read(item) for item in data.variants(row)) == sorted(set(texts))
        assert len(set(texts)) == (4 if row % 2 else 2)  # with the text before it, where it has one
        for count in (1, 3, 16):
            assert [read(item) for item in data.variants(row, count)] == list(dict.fromkeys(texts[:count]))
        assert data.variants(row, 17) == data.variants(row)
    always = samples(timestamp_probability=1.0, condition_on_prev_probability=0.0)
    for data in (always, samples(train=False)):
        assert [read(item) for item in data.variants(1)] == [read(data.label_item(1))]
    assert samples(labelled(2, whisper_transcript=["A word.", None])).variants(1) == []


def test_the_key_of_a_row_is_its_recording_wherever_it_is_stored_and_the_extractors_settings(tmp_path: Path):
    """A cache that is keyed by names gives a new recording the states of the old one."""
    data = samples()
    rows = labelled()
    path = tmp_path / "recording.flac"
    path.write_bytes(rows[0]["audio"]["bytes"])
    stored = samples(labelled(1, audio=[{"bytes": None, "path": str(path)}]))
    assert data.audio_key(0) == stored.audio_key(0) != data.audio_key(1)
    other = copy.deepcopy(toy_processor())
    other.feature_extractor.hop_length = 80
    assert SpeechDataset(rows, other).audio_key(0) != data.audio_key(0)
    path.unlink()
    missing = samples(labelled(2, audio=[{"bytes": None, "path": str(path)}] * 2))
    assert missing.audio_key(0) != missing.audio_key(1)


@pytest.mark.parametrize("persistent", [False, True])
def test_draws_are_the_same_with_and_without_workers_and_others_in_every_epoch(persistent: bool):
    """A worker that outlives its epoch holds a copy of the data set, and would draw epoch 0 for ever."""
    data = samples(labelled(6), condition_on_prev_probability=0.5)
    loader = DataLoader(data, batch_size=1, num_workers=2, persistent_workers=persistent, collate_fn=collate)
    epochs = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        epochs.append([data.label_item(row)["decoder_input_ids"] for row in range(len(data))])
        assert [batch["decoder_input_ids"][0].tolist() for batch in loader] == epochs[-1]
    assert epochs[0] == epochs[2] != epochs[1]
    assert read_all(samples(labelled(6), seed=7, condition_on_prev_probability=0.5)) != read_all(data)


def test_each_label_starts_with_the_language_of_its_row():
    """Labels of two languages under one token teach the student to mix them."""
    rows = labelled(4, language=["de", None, "klingon", "Hindi"])
    data = samples(rows, language="en", language_column="language", timestamp_probability=0.0)
    for row, code in ((0, "de"), (1, "en"), (3, "hi")):
        assert f"<|{code}|><|transcribe|>" in read(data[row])
    assert data[2]["index"] == 3
    assert [row for row, _ in data.row_errors()] == ["id-2"]
    good, errors = check_rows(rows, toy_processor(), language="en", language_column="language")
    assert good["id"] == ["id-0", "id-1", "id-3"]
    assert "column 'language'" in next(iter(errors))[1]


@needs_files
def test_labels_of_a_multilingual_whisper_start_with_a_language():
    """Without it the student learns a prefix that no decoding uses; with another's it learns to mix languages."""
    processor, english = (official_whisper(name)[1] for name in ("whisper-tiny", "whisper-tiny.en"))
    rows, settings = labelled(2), {"timestamp_probability": 0.0, "condition_on_prev_probability": 0.0}
    for make in (SpeechDataset, check_rows):
        with pytest.raises(ValueError, match="`language` is missing"):
            make(rows, processor, **settings)
    tagged = rows.map(lambda row: {"whisper_transcript": "<|startoftranscript|><|de|><|transcribe|> Hallo."})
    for data, language, prefix in (
        (labelled(2, language=["nl-NL", "Dutch"]), None, "<|nl|>"),
        (labelled(2, language=["nl", "nl"]), "en", "<|nl|>"),
        (rows, "en", "<|en|>"),
        (tagged, "nl", "<|de|>"),
    ):
        ids = SpeechDataset(data, processor, language=language, **settings)[1]["decoder_input_ids"]
        assert processor.tokenizer.decode(ids).startswith(f"<|startoftranscript|>{prefix}<|transcribe|>")
    ids = SpeechDataset(labelled(2, language=["en", "en"]), english, **settings)[1]["decoder_input_ids"]
    assert english.tokenizer.decode(ids).startswith("<|startoftranscript|><|notimestamps|>")


def test_prompts_come_from_the_row_itself_and_never_from_the_row_before():
    """The reference takes the row before, of whatever speaker, and ids with `<|startofprev|>` in them as a text."""
    # Integers instead of booleans, as some writers store flags, and a previous text whose flag says no.
    flags = labelled(4, condition_on_prev=[0, 1, 1, 0])
    bare = labelled(4).remove_columns("previous_transcript")
    ids = toy_processor().tokenizer("<|startofprev|> Row 0.", add_special_tokens=False).input_ids
    with_ids = bare.remove_columns("condition_on_prev").add_column("condition_on_prev", [None, ids, None, None])
    for rows, expected in ((labelled(4), [1, 3]), (flags, [1]), (bare, []), (with_ids, [1])):
        data = samples(rows, condition_on_prev_probability=1.0, timestamp_probability=0.0)
        assert [row for row, text in enumerate(read_all(data)) if "<|startofprev|>" in text] == expected
        for row in expected[:1]:
            assert read(data.label_item(row)).startswith("<|startofprev|> Row 0.<|startoftranscript|>")
            assert data.label_item(row)["labels"][:2] == [IGNORE_INDEX, IGNORE_INDEX]


def test_truncated_transcripts_are_not_taught_to_end():
    """The labeller marks generations that hit their limit."""
    data = samples(labelled(2, truncated=[True, False]))
    end = toy_processor().tokenizer.eos_token_id
    assert [end in data.label_item(row)["labels"] for row in range(2)] == [False, True]


def test_validation_has_plain_labels_and_the_reference_text():
    """Draws in a validation would make two evaluations of one model differ."""
    data = samples(train=False, condition_on_prev_probability=1.0, timestamp_probability=1.0)
    for epoch in range(2):
        data.set_epoch(epoch)
        item = data[1]
        assert read(item) == "<|startoftranscript|><|notimestamps|> Row 1."
        assert item["reference"] == "row 1."
    without_text = samples(labelled().remove_columns("text"), train=False)
    assert without_text[1]["reference"] == "Row 1."
    assert "reference" not in samples()[1]


def broken(count: int = 8) -> Dataset:
    """Row 1 has no audio, 2 a truncated file, 3 NaN, 4 no transcript, 5 too long a label, 6 too long audio."""
    rows = labelled(count).to_list()
    wav = io.BytesIO()
    soundfile.write(wav, np.array([0.1, np.nan]), SAMPLING_RATE, format="WAV", subtype="FLOAT")
    rows[1]["audio"] = {"bytes": None, "path": None}
    rows[2]["audio"] = {"bytes": rows[2]["audio"]["bytes"][:-300], "path": None}
    rows[3]["audio"] = {"bytes": wav.getvalue(), "path": None}
    rows[4]["whisper_transcript"] = None
    rows[5]["whisper_transcript"] = "abc " * 500
    rows[6]["audio"] = embedded(np.zeros(30 * SAMPLING_RATE + 1, dtype=np.float32))
    return Dataset.from_list(rows, features=labelled(count).features)


def test_check_rows_leaves_out_rows_with_an_unusable_header_or_text():
    """Found in a worker after hours, such a row would end the run; here it costs itself."""
    good, errors = check_rows(broken(), toy_processor())
    assert list(good["id"]) == ["id-0", "id-2", "id-3", "id-7"]
    expected = {
        "id-1": "got nothing",
        "id-4": "no text in 'whisper_transcript'",
        "id-5": "more than the 448 positions",
        "id-6": "longer than the window of 30 s",
    }
    assert [name for name, _ in errors] == list(expected)
    assert all(part in message for (_, message), part in zip(errors, expected.values(), strict=True))
    with pytest.raises(ValueError, match=r"(?s)none of 2 rows can be used\.\n2 rows left out:.*id-1.*id-4"):
        check_rows(broken().select([1, 4]), toy_processor())  # it would save an untrained student


def test_check_rows_keeps_every_script_and_case_and_exactly_30_seconds():
    """The reference's filter for all-upper-case text drops every script that has no case at all."""
    texts = ["你好", "नमस्ते", "สวัสดี", "مرحبا", "ALL UPPER CASE", "<|0.00|> 你好<|1.00|>", ""]
    audio = [embedded(np.zeros(30 * SAMPLING_RATE, dtype=np.float32))] * len(texts)
    rows = labelled(len(texts), whisper_transcript=texts, audio=audio)
    good, errors = check_rows(rows, toy_processor())
    assert good is rows
    assert not errors


def test_check_rows_detects_missing_files_and_trusts_measured_durations(tmp_path: Path):
    """Headers of a million embedded recordings need not be read where the labeller has measured them."""
    (tmp_path / "there.flac").write_bytes(encode_flac(toy_audio(0.2)))
    (tmp_path / "empty.flac").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("there.flac", "gone.flac", "empty.flac")]
    files = labelled(3, audio=[{"bytes": None, "path": path} for path in paths], duration=[0.2, 0.2, 0.2])
    good, errors = check_rows(files, toy_processor())
    assert list(good["id"]) == ["id-0"]
    assert "no such audio file" in errors.rows[0][1]
    assert "empty (0 bytes)" in errors.rows[1][1]
    assert list(check_rows(labelled(3, duration=[0.2, 30.5, 30.0]), toy_processor())[0]["id"]) == ["id-0", "id-2"]


ROWS = labelled(2)


@pytest.mark.parametrize("make", [SpeechDataset, check_rows])
@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS.select([]), {}, "the data set has 0 rows"),
        (ROWS, {"transcript_column": "x"}, r"no column 'x' \(`transcript_column`\); there are id, audio, text"),
        (ROWS.remove_columns("audio"), {}, r"no column 'audio' \(`audio_column`\)"),
        (ROWS, {"language_column": "lang"}, r"no column 'lang' \(`language_column`\)"),
        (ROWS, {"timestamp_probability": 50}, "`timestamp_probability`: expected a probability .*, got 50"),
        (ROWS, {"condition_on_prev_probability": -0.1}, "`condition_on_prev_probability`"),
        (ROWS, {"language": "klingon"}, "Whisper knows no 'klingon'"),
        (ROWS, {"task": "sing"}, "`task`: expected one of"),
    ],
)
def test_missing_columns_and_impossible_options_fail_before_the_first_sample(
    make: Callable, rows: Dataset, options: dict, message: str
):
    """In a worker they would fail for each row, and cost all rows one by one."""
    with pytest.raises(ValueError, match=message):
        make(rows, toy_processor(), **options)


def test_a_row_that_fails_in_a_worker_is_replaced_counted_and_named(caplog: pytest.LogCaptureFixture):
    """One truncated file among a million must not end a run of days, nor go by unseen because a worker met it."""
    data = samples(broken())
    loader = DataLoader(data, batch_size=4, num_workers=1, collate_fn=collate)
    assert sum(len(batch["labels"]) for batch in loader) == 8
    # This process knows the rows that a worker skipped.
    assert [row for row, _ in data.row_errors()] == [f"id-{row}" for row in range(1, 7)]
    summary = data.row_errors().summary()
    for part in ("got nothing", "cut short", "NaN", "no text", "448 positions", "longer than the window"):
        assert part in summary
    assert data[2]["index"] == 7
    assert data.label_item(2)["index"] == 7
    # In a fresh data set this process skips and logs the row.
    assert samples(broken())[3]["index"] == 7
    assert "row id-3 is replaced by the next one: id-3: 1 of 2 samples are NaN" in caplog.text


def test_a_last_bad_row_is_replaced_by_the_first_good_one_and_indices_are_those_of_a_sequence():
    """The search for a good row must end where there is none, and a plain `for` over the data set behind the last."""
    rows = broken().select([0, 1, 4])
    assert samples(rows)[2]["index"] == 0
    data = samples(labelled(3))
    assert [item["index"] for item in (*data, data[-1])] == [0, 1, 2, 2]
    with pytest.raises(ValueError, match=r"none of 2 rows can be used\.\n2 rows left out"):
        samples(rows.select([1, 2]))[0]


def test_data_sets_with_audio_features_are_decoded_without_torchcodec():
    """`datasets` would use torchcodec, which does not load beside a CPU torch."""
    rows = labelled(2).cast_column("audio", Audio())
    torch.testing.assert_close(samples(rows)[1]["input_features"], samples(labelled(2))[1]["input_features"])
    assert len(check_rows(rows, toy_processor())[0]) == 2


def test_settings_are_an_object_or_keywords():
    settings = LabelSettings(transcript_column="text", timestamp_probability=0.0)
    for options in (
        {"settings": settings},
        {"transcript_column": "text", "timestamp_probability": 0.0},
        {"settings": LabelSettings(transcript_column="text"), "timestamp_probability": 0.0},
    ):
        assert samples(labelled(2), **options).settings == settings
