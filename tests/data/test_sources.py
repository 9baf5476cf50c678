"""Every kind of source ends in the same columns; what is missing is named."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, Value

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    encode_flac,
    load_audio,
)
from hf_distil_whisper.data.sources import (
    PLAIN_AUDIO,
    RowErrors,
    load_source,
    without_decoder,
)

SPEECH = Path(__file__).parents[2].parent / "shared" / "speech"
needs_speech = pytest.mark.skipif(not SPEECH.is_dir(), reason="../shared/speech with real recordings is missing")


def recording(seconds: float = 0.1) -> bytes:
    return encode_flac(np.full(int(SAMPLING_RATE * seconds), 0.25, dtype=np.float32))


def dataset(count: int = 3, **columns: list) -> Dataset:
    audio = [{"bytes": recording(), "path": f"{row}.flac"} for row in range(count)]
    return Dataset.from_dict({"audio": audio, "text": [f"text {row}" for row in range(count)], **columns})


def assert_rows(rows: Dataset, texts: list[str | None]) -> None:
    """The columns are as promised, and the audio decodes through the package's own decoder."""
    assert list(rows["text"]) == texts
    assert rows.features["audio"] == PLAIN_AUDIO
    assert rows.features["id"] == Value("string")
    assert rows.features["text"] == Value("string")
    assert all(len(load_audio(row["audio"])) == SAMPLING_RATE // 10 for row in rows)
    assert len(set(rows["id"])) == len(rows)


def write_metadata(folder: Path, rows: list[dict], kind: str = "jsonl") -> Path:
    """Writes the recordings too."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        file = folder / row["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(recording())
    target = folder / f"metadata.{kind}"
    if kind == "jsonl":
        target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        with target.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return target


@pytest.mark.parametrize("decode", [None, False, True])
def test_saved_folders_of_one_or_several_splits_are_read(tmp_path: Path, decode: bool | None):
    """An `Audio` feature that stays one makes the first `map` fail where torchcodec does not load."""
    train = dataset() if decode is None else dataset().cast_column("audio", Audio(decode=decode))
    DatasetDict({"train.360": train, "test": train.select(range(1))}).save_to_disk(tmp_path / "splits")
    assert_rows(load_source(tmp_path / "splits", split="train.360"), ["text 0", "text 1", "text 2"])
    assert_rows(load_source(str(tmp_path / "splits"), split="test+train.360").select(range(2)), ["text 0", "text 0"])
    train.save_to_disk(tmp_path / "one")
    rows = load_source(tmp_path / "one")
    assert_rows(rows, ["text 0", "text 1", "text 2"])
    assert rows.map(lambda row: {"length": len(row["text"])})["length"] == [6, 6, 6]


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path):
    """Renaming 'train.360' to 'train-360' cost users a KeyError after all GPU hours were spent."""
    DatasetDict({"train.360": dataset(), "dev": dataset()}).save_to_disk(tmp_path / "splits")
    dataset().save_to_disk(tmp_path / "one")
    (tmp_path / "parquet").mkdir()
    dataset().to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    write_metadata(tmp_path / "column", [{"file_name": "a.flac", "text": "a", "split": "dev"}])
    write_metadata(tmp_path / "folders" / "dev", [{"file_name": "a.flac", "text": "a"}])
    write_metadata(tmp_path / "none", [{"file_name": "a.flac", "text": "a"}])
    for source, there in (
        ("splits", "train.360, dev"),
        ("one", "train"),
        ("parquet", "train"),
        ("parquet/train-00000-of-00001.parquet", "train"),
        ("column", "dev"),
        ("folders", "dev"),
        ("none", "train"),
    ):
        with pytest.raises(ValueError, match=f"no split 'test'; there is {there}. Set `split`"):
            load_source(tmp_path / source, split="test")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_with_metadata_gives_absolute_paths_and_all_columns(tmp_path: Path, kind: str):
    """Paths relative to the metadata are lost as soon as another working directory reads the rows."""
    rows = [
        {"file_name": "clips/a.flac", "text": "null", "speaker": "s1", "locale": "en"},
        {"file_name": "clips/b.flac", "text": "a, b", "speaker": "s1", "locale": "en"},
    ]
    write_metadata(tmp_path, rows, kind)
    found = load_source(tmp_path)
    # pandas would take the spoken word "null" for a missing text.
    assert_rows(found, ["null", "a, b"])
    assert list(found["speaker"]) == ["s1", "s1"]
    assert list(found["locale"]) == ["en", "en"]
    assert list(found["file_name"]) == ["clips/a.flac", "clips/b.flac"]
    assert [row["path"] for row in found["audio"]] == [str(tmp_path / "clips/a.flac"), str(tmp_path / "clips/b.flac")]
    assert list(load_source(tmp_path, id_column="file_name")["id"]) == ["clips/a.flac", "clips/b.flac"]


def test_splits_of_metadata_come_from_a_column_or_from_folders(tmp_path: Path):
    """Reading all rows for every split would train on the test set."""
    write_metadata(
        tmp_path / "column",
        [{"file_name": f"{name}.flac", "text": name, "split": name} for name in ("train", "test")],
    )
    write_metadata(tmp_path / "prefix", [{"file_name": f"{name}/a.flac", "text": name} for name in ("train", "test")])
    for name in ("train", "test"):
        write_metadata(tmp_path / "folders" / name, [{"file_name": "a.flac", "text": name}])
    for source in ("column", "prefix", "folders"):
        for split in ("train", "test"):
            assert_rows(load_source(tmp_path / source, split=split), [split])


def test_a_manifest_with_its_own_column_names_is_read(tmp_path: Path):
    """Common Voice calls them path and sentence; U+2028 in a text is no end of a line."""
    (tmp_path / "a.flac").write_bytes(recording())
    rows = [
        {"path": "a.flac", "sentence": "one\u2028two", "client_id": 7},
        {"path": str(tmp_path / "a.flac"), "sentence": "three", "client_id": 7, "note": "absolute"},
    ]
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    found = load_source(manifest, audio_column="path", text_column="sentence", speaker_column="client_id")
    assert_rows(found, ["one\u2028two", "three"])
    assert list(found["speaker"]) == [7, 7]
    assert list(found["note"]) == [None, "absolute"]


@pytest.mark.parametrize(
    "layout",
    ["data/{}-00000-of-00001.parquet", "{}-00000-of-00001.parquet", "{}/0000.parquet", "{}.parquet"],
)
def test_parquet_is_found_in_the_layouts_of_load_dataset(tmp_path: Path, layout: str):
    """What `load_dataset` reads, `load_source` has to read too, with the shards in order."""
    for split in ("train", "test"):
        file = tmp_path / layout.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        dataset(1, name=[split]).cast_column("audio", Audio()).to_parquet(file)
    for split in ("train", "test"):
        rows = load_source(tmp_path, split=split)
        assert_rows(rows, ["text 0"])
        assert list(rows["name"]) == [split]
    assert list(load_source(tmp_path / layout.format("test"))["name"]) == ["test"]


def test_shards_and_configurations_of_parquet(tmp_path: Path):
    """Without its configuration named, a folder of two languages would be read as one."""
    for config in ("en", "de"):
        (tmp_path / config).mkdir()
        for shard in range(2):
            dataset(1, name=[f"{config}{shard}"]).to_parquet(tmp_path / config / f"train-0000{shard}-of-00002.parquet")
    assert list(load_source(tmp_path, config="de")["name"]) == ["de0", "de1"]
    with pytest.raises(ValueError, match=r"configurations \['de', 'en'\]: set `config`"):
        load_source(tmp_path)


def test_the_labelled_data_of_the_reference_scripts_is_read_as_it_is(tmp_path: Path):
    """Special tokens in the transcripts and lists of token ids as prompts are what people already have on the Hub."""
    labelled = dataset(
        2,
        whisper_transcript=["<|startoftranscript|><|0.00|> One.<|1.00|><|endoftext|>", None],
        condition_on_prev=[None, [50360, 1, 2]],
    ).cast_column("audio", Audio())
    labelled.save_to_disk(tmp_path)
    rows = load_source(tmp_path)
    assert rows[0]["whisper_transcript"] == "<|startoftranscript|><|0.00|> One.<|1.00|><|endoftext|>"
    assert list(rows["condition_on_prev"]) == [None, [50360, 1, 2]]


def test_columns_are_renamed_and_ids_made_where_they_are_missing(tmp_path: Path):
    """Integer ids and texts would break every message and every normaliser that follows."""
    saved = dataset(3, sentence=[1, None, 3], key=[10, None, 12])
    saved.save_to_disk(tmp_path)
    rows = load_source(tmp_path, text_column="sentence", id_column="key", max_samples=2)
    assert_rows(rows, ["1", None])
    assert list(rows["id"]) == ["10", "train-000001"]
    assert "sentence" not in rows.column_names
    assert list(load_source(tmp_path)["id"]) == ["train-000000", "train-000001", "train-000002"]


def test_recordings_without_transcripts_need_no_text_column(tmp_path: Path):
    """Labelling audio alone must not demand the texts that it is about to write."""
    dataset().remove_columns("text").save_to_disk(tmp_path)
    assert load_source(tmp_path, text_column=None).column_names == ["audio", "id"]
    with pytest.raises(ValueError, match=r"no column 'text' \(`text_column`\); there are audio.*to be None"):
        load_source(tmp_path)


@pytest.mark.parametrize("option", ["audio_column", "text_column", "speaker_column", "id_column"])
def test_a_missing_column_is_named_with_its_option_and_those_that_exist(tmp_path: Path, option: str):
    """'KeyError: sentence' does not say which of four options is wrong."""
    dataset().save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=rf"no column 'nope' \(`{option}`\); there are audio, text"):
        load_source(tmp_path, **{option: "nope"})


def test_missing_paths_and_empty_sources_are_refused(tmp_path: Path):
    """A training on 0 rows ends after 0 steps with exit code 0."""
    for name in (tmp_path / "gone", "./gone", "gone.jsonl", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such folder or file"):
            load_source(name)
    with pytest.raises(FileNotFoundError, match="neither a folder or file here nor"):
        load_source("nobody/no-such-data")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl, split 'train': 0 rows"):
        load_source(tmp_path / "empty.jsonl")
    dataset().select([]).save_to_disk(tmp_path / "rows")
    with pytest.raises(ValueError, match="0 rows"):
        load_source(tmp_path / "rows")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="expected a folder of `save_to_disk`"):
        load_source(tmp_path / "folder")
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got \.wav"):
        load_source(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="`revision` is for data sets on the Hub"):
        load_source(tmp_path / "folder", revision="main")
    with pytest.raises(ValueError, match="max_samples"):
        load_source(tmp_path / "rows", max_samples=0)


def test_broken_metadata_is_named_by_file_and_line(tmp_path: Path):
    """A parser's message without the line costs a search through a million of them."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio": "a.wav", "text": "a"}\n{"audio": \n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: expected one JSON object"):
        load_source(manifest)
    manifest.write_text('["a.wav"]\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1: expected a JSON object"):
        load_source(manifest)
    manifest.write_text('{"wav": "a.wav", "text": "a"}\n')
    with pytest.raises(ValueError, match=r"`audio_column`\) or 'file_name', got the columns \['wav', 'text'\]"):
        load_source(manifest)
    manifest.write_text('{"audio": "a.wav", "text": "a"}\n{"audio": "b.wav", "text": 5}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl: column 'text' holds values of different kinds"):
        load_source(manifest)


def test_a_row_without_its_recording_is_loaded_and_fails_alone(tmp_path: Path):
    """Text without audio has to cost its row where it is decoded, not the loading of all others."""
    (tmp_path / "a.flac").write_bytes(recording())
    rows = [{"audio": "a.flac", "text": "a"}, {"audio": None, "text": "b"}, {"audio": "gone.flac", "text": "c"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_source(tmp_path / "m.jsonl")
    assert len(load_audio(found[0]["audio"])) == 1600
    for row, message in ((1, "got nothing"), (2, "no such audio file")):
        with pytest.raises(AudioError, match=message):
            load_audio(found[row]["audio"])


def test_audio_as_strings_and_arrays_in_saved_data(tmp_path: Path):
    """Data sets of paths and of arrays are read too; the decoder knows both."""
    (tmp_path / "a.flac").write_bytes(recording())
    Dataset.from_dict({"audio": [str(tmp_path / "a.flac")], "text": ["a"]}).save_to_disk(tmp_path / "paths")
    assert_rows(load_source(tmp_path / "paths"), ["a"])
    array = {"array": np.full(800, 0.25).tolist(), "sampling_rate": 8_000}
    Dataset.from_dict({"audio": [array], "text": ["a"]}).save_to_disk(tmp_path / "arrays")
    assert len(load_audio(load_source(tmp_path / "arrays")[0]["audio"])) == 1600


def test_without_decoder_lets_rows_be_read_where_torchcodec_is_missing():
    """Reading a row of an `Audio` feature would import torchcodec, which fails beside a CPU torch."""
    decoding = dataset().cast_column("audio", Audio()).select([2, 0])
    assert set(without_decoder(decoding)[0]["audio"]) == {"bytes", "path"}
    plain = Dataset.from_dict({"text": ["a"]}, features=Features({"text": Value("string")}))
    assert without_decoder(plain) is plain


def test_row_errors_are_counted_and_listed():
    """A count alone cannot be acted on, and a list of a million rows cannot be read."""
    errors = RowErrors()
    assert (len(errors), errors.summary()) == (0, "")
    errors.add("row-1", "row-1: no such audio file")
    errors.add(2, ValueError("label too long"))
    assert errors.summary() == "2 rows left out:\n  row-1: no such audio file\n  2: label too long"
    assert errors.summary(limit=1).endswith("  ... and 1 more")
    assert list(errors) == [("row-1", "row-1: no such audio file"), ("2", "label too long")]


@needs_speech
@pytest.mark.parametrize(("folder", "split", "count"), [("fsdd", "test", 180), ("librispeech", "train", 60)])
def test_real_recordings_load_with_their_columns(folder: str, split: str, count: int):
    """Splits by column (fsdd) and none at all (librispeech), as people's own folders are."""
    rows = load_source(SPEECH / folder, split=split)
    assert len(rows) == count
    assert {"id", "audio", "text", "speaker", "duration", "licence"} <= set(rows.column_names)
    assert Path(rows[0]["audio"]["path"]).is_absolute()
    assert len(load_audio(rows[0]["audio"])) / SAMPLING_RATE == pytest.approx(rows[0]["duration"], abs=2e-3)
    assert soundfile.info(rows[0]["audio"]["path"]).samplerate == (8_000 if folder == "fsdd" else 16_000)


def test_the_hub_is_asked_for_the_split_as_it_is_named(monkeypatch: pytest.MonkeyPatch):
    """Nothing may come between the user's split, configuration, revision and `load_dataset`, nor its message."""
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None, streaming: bool) -> Dataset:
        assert not streaming
        asked.append((name, config, split, revision))
        if split == "nope":
            raise ValueError("Unknown split \"nope\". Should be one of ['train.360'].")
        return dataset().cast_column("audio", Audio())

    monkeypatch.setattr("hf_distil_whisper.data.sources.load_dataset", load_dataset)
    rows = load_source("someone/speech", config="clean", split="train.360", revision="abc")
    assert_rows(rows, ["text 0", "text 1", "text 2"])
    assert asked == [("someone/speech", "clean", "train.360", "abc")]
    with pytest.raises(ValueError, match=r"someone/speech .*`split` 'nope'.*Should be one of \['train\.360'\]"):
        load_source("someone/speech", split="nope")
