"""Samples for training and validation, and what happens to rows that cannot be used."""

import copy
import io
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
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import load_source
from toy_models import toy_audio, toy_processor

SPEECH = Path(__file__).parents[2].parent / "shared" / "speech"
needs_speech = pytest.mark.skipif(not SPEECH.is_dir(), reason="../shared/speech with real recordings is missing")


def labelled(count: int = 12, **columns: list) -> Dataset:
    """Rows as the labeller writes them; every second one goes on from the row before."""
    texts = [f"Row {row}." for row in range(count)]
    previous = [texts[row - 1] if row % 2 else None for row in range(count)]
    return Dataset.from_dict(
        {
            "id": [f"id-{row}" for row in range(count)],
            "audio": [{"bytes": encode_flac(toy_audio(0.2, seed=row)), "path": None} for row in range(count)],
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
    item = samples()[3]
    features = toy_processor().feature_extractor(
        load_audio(labelled()[3]["audio"]), sampling_rate=SAMPLING_RATE, return_tensors="pt"
    )
    assert item["input_features"].dtype == torch.float32
    torch.testing.assert_close(item["input_features"], features.input_features[0])
    assert len(item["decoder_input_ids"]) == len(item["labels"])
    assert item["index"] == 3
    assert "Row 3." in read(item)
    # Runs with cached encoder outputs train on the same labels.
    del item["input_features"]
    assert samples().label_item(3) == item


def test_variants_are_drawn_anew_in_each_epoch_and_again_from_the_same_seed():
    """Frozen in a cache, half of the rows would never be trained with timestamps, however many epochs follow."""
    data = samples(condition_on_prev_probability=0.5)

    def epoch(number: int) -> list[str]:
        data.set_epoch(number)
        return read_all(data)

    first, second = epoch(0), epoch(1)
    assert first != second
    assert epoch(0) == first
    assert read_all(samples(condition_on_prev_probability=0.5)) == first
    assert read_all(samples(seed=7, condition_on_prev_probability=0.5)) != first
    for part in ("<|0.20|>", "<|notimestamps|>", "<|startofprev|> Row"):
        assert part in "".join(first + second)


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
    data = samples()
    drawn: dict[int, set[str]] = {0: set(), 1: set()}
    for number in range(60):
        data.set_epoch(number)
        for row in drawn:
            drawn[row].add(read(data.label_item(row)))
    assert [len(texts) for texts in drawn.values()] == [2, 4]  # the first row has no text before it
    for row, texts in drawn.items():
        assert {read(item) for item in data.variants(row)} == texts
        assert len(data.variants(row)) == len(texts)
    epochs = []
    for number in range(16):
        data.set_epoch(number)
        epochs.append(read_all(data))
    for count in (1, 3, 16):
        for row, texts in enumerate(zip(*epochs[:count], strict=True)):
            assert [read(item) for item in data.variants(row, count)] == list(dict.fromkeys(texts))
    assert all(data.variants(row, 17) == data.variants(row) for row in range(12))
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
def test_draws_are_the_same_with_and_without_workers_in_every_epoch(persistent: bool):
    """A worker that outlives its epoch holds a copy of the data set, and would draw epoch 0 for ever."""
    data = samples(labelled(6), condition_on_prev_probability=0.5)
    expected = []
    for epoch in range(2):
        data.set_epoch(epoch)
        expected.append([data.label_item(row)["decoder_input_ids"] for row in range(len(data))])
    assert expected[0] != expected[1]
    loader = DataLoader(data, batch_size=1, num_workers=2, persistent_workers=persistent, collate_fn=collate)
    for epoch in range(2):
        data.set_epoch(epoch)
        assert [batch["decoder_input_ids"][0].tolist() for batch in loader] == expected[epoch]


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
    with pytest.raises(ValueError, match="no column 'lang' \\(`language_column`\\)"):
        samples(rows, language_column="lang")


def test_prompts_come_from_the_row_itself_and_never_from_the_row_before():
    """The reference takes the previous row, of whatever speaker, where there is no better."""
    always = {"condition_on_prev_probability": 1.0, "timestamp_probability": 0.0}
    data = samples(**always)
    assert read(data.label_item(1)).startswith("<|startofprev|> Row 0.<|startoftranscript|>")
    # Integers instead of booleans, as some writers store flags, and a previous text whose flag says no.
    flags = labelled(4, condition_on_prev=[0, 1, 1, 0])
    bare = labelled(4).remove_columns(["previous_transcript"])
    for rows, expected in ((labelled(4), [1, 3]), (flags, [1]), (bare, [])):
        texts = read_all(samples(rows, **always))
        assert [row for row, text in enumerate(texts) if "<|startofprev|>" in text] == expected


def test_prompts_as_token_ids_of_the_reference_scripts_are_used():
    """They hold `<|startofprev|>` already: prepended again it stands there twice."""
    ids = toy_processor().tokenizer("<|startofprev|> Before.", add_special_tokens=False).input_ids
    rows = labelled(2).remove_columns(["previous_transcript", "condition_on_prev"])
    rows = rows.add_column("condition_on_prev", [None, ids])
    data = samples(rows, condition_on_prev_probability=1.0, timestamp_probability=0.0)
    assert "<|startofprev|>" not in read(data.label_item(0))
    assert read(data.label_item(1)).startswith("<|startofprev|> Before.<|startoftranscript|>")
    assert data.label_item(1)["labels"][:2] == [IGNORE_INDEX, IGNORE_INDEX]


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
    rows[1]["audio"] = {"bytes": None, "path": None}
    rows[2]["audio"] = {"bytes": rows[2]["audio"]["bytes"][:-300], "path": None}
    rows[3]["audio"] = {"bytes": wav([0.1, np.nan]), "path": None}
    rows[4]["whisper_transcript"] = None
    rows[5]["whisper_transcript"] = "abc " * 500
    rows[6]["audio"] = {"bytes": encode_flac(np.zeros(30 * SAMPLING_RATE + 1, dtype=np.float32)), "path": None}
    return Dataset.from_list(rows, features=labelled(count).features)


def wav(values: list[float]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.array(values), SAMPLING_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


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
    for (row, message), (name, part) in zip(errors, expected.items(), strict=True):
        assert row == name
        assert part in message
    whole = labelled()
    assert check_rows(whole, toy_processor())[0] is whole
    # Exactly 30 s fit.
    full = [{"bytes": encode_flac(np.zeros(30 * SAMPLING_RATE, dtype=np.float32)), "path": None}]
    assert len(check_rows(labelled(1).remove_columns("audio").add_column("audio", full), toy_processor())[0]) == 1


def test_check_rows_detects_missing_files_and_trusts_measured_durations(tmp_path: Path):
    """Headers of a million embedded recordings need not be read where the labeller has measured them."""
    (tmp_path / "there.flac").write_bytes(encode_flac(toy_audio(0.2)))
    (tmp_path / "empty.flac").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("there.flac", "gone.flac", "empty.flac")]
    rows = labelled(3, audio=[{"bytes": None, "path": path} for path in paths], duration=[0.2, 0.2, 0.2])
    good, errors = check_rows(rows, toy_processor())
    assert list(good["id"]) == ["id-0"]
    assert "no such audio file" in errors.rows[0][1]
    assert "empty (0 bytes)" in errors.rows[1][1]
    embedded = labelled(3, duration=[0.2, 30.5, 30.0])
    assert check_rows(embedded, toy_processor())[1].rows[0][0] == "id-1"
    assert len(check_rows(embedded, toy_processor())[0]) == 2


def test_check_rows_keeps_every_script_and_case():
    """The reference's filter for all-upper-case text drops every script that has no case at all."""
    texts = ["你好", "नमस्ते", "สวัสดี", "مرحبا", "ALL UPPER CASE", "<|0.00|> 你好<|1.00|>", ""]
    good, errors = check_rows(labelled(len(texts), whisper_transcript=texts), toy_processor())
    assert len(good) == len(texts)
    assert not errors


def test_nothing_to_train_on_ends_with_the_reasons():
    """A training on nothing would save an untrained student as a result."""
    rows = broken().select([1, 4])
    with pytest.raises(ValueError, match=r"(?s)none of 2 rows can be used\.\n2 rows left out:.*id-1.*id-4"):
        check_rows(rows, toy_processor())
    for make in (SpeechDataset, check_rows):
        with pytest.raises(ValueError, match="0 rows"):
            make(labelled().select([]), toy_processor())
        message = r"no column 'whisper' \(`transcript_column`\); there are id, audio, text"
        with pytest.raises(ValueError, match=message):
            make(labelled(), toy_processor(), transcript_column="whisper")
        with pytest.raises(ValueError, match=r"no column 'audio' \(`audio_column`\)"):
            make(labelled().remove_columns("audio"), toy_processor())


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


def test_a_last_bad_row_is_replaced_by_the_first_good_one():
    """The search for a good row must not run off the end, and must end where there is none."""
    rows = broken().select([0, 1, 4])
    assert samples(rows)[2]["index"] == 0
    with pytest.raises(ValueError, match=r"none of 2 rows can be used\.\n2 rows left out"):
        samples(rows.select([1, 2]))[0]


def test_indices_are_those_of_a_sequence():
    """Without an IndexError at the end, a plain `for` over the data set never ends."""
    data = samples(labelled(3))
    assert [item["index"] for item in data] == [0, 1, 2]
    assert data[-1]["index"] == 2
    with pytest.raises(IndexError):
        data[3]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestamp_probability": 50}, "`timestamp_probability`: expected a probability between 0 and 1, got 50"),
        ({"condition_on_prev_probability": -0.1}, "`condition_on_prev_probability`"),
        ({"language": "klingon"}, "Whisper knows no 'klingon'"),
        ({"task": "sing"}, "`task`: expected one of"),
    ],
)
def test_impossible_options_fail_before_the_first_sample(options: dict, message: str):
    """In a worker they would fail for each row, and cost all rows one by one."""
    with pytest.raises(ValueError, match=message):
        samples(**options)


@needs_speech
def test_real_recordings_become_batches_from_folder_to_collator():
    """Loading, packing, checking, features and padding on human speech, in the order in which a run does it."""
    windows = list(pack_utterances(load_source(SPEECH / "librispeech", max_samples=12)))
    settings = LabelSettings(transcript_column="text", max_label_length=2000)
    good, errors = check_rows(Dataset.from_list(windows), toy_processor(), settings)
    assert len(good) == len(windows)
    assert not errors
    data = samples(good, settings=settings)
    batch = collate([data[row] for row in range(2)])
    assert batch["input_features"].shape == (2, 80, 3000)
    assert batch["input_features"].isfinite().all()
    text = [token for token in batch["labels"][0].tolist() if token >= 0]
    assert toy_processor().tokenizer.decode(text, skip_special_tokens=True).strip() == windows[0]["text"]
