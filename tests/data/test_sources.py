"""Every kind of source gives the same columns, as rows and as stream; what is missing is named."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value
from torch.utils.data import DataLoader

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, audio_duration, encode_flac, load_audio
from hf_distil_whisper.data.sources import (
    PLAIN_AUDIO,
    Columns,
    RowErrors,
    load_source,
    tar_features,
    tar_rows,
    write_row_index,
)
from toy_files import tar_sample, write_tar, write_toy_corpus
from toy_models import toy_audio

SPEECH = Path(__file__).parents[2].parent / "shared" / "speech"
needs_speech = pytest.mark.skipif(not SPEECH.is_dir(), reason="../shared/speech with real recordings is missing")
rows_and_stream = pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])


def recording(level: float = 0.25) -> bytes:
    return encode_flac(np.full(SAMPLING_RATE // 10, level, dtype=np.float32))


def dataset(count: int = 3, **columns: list) -> Dataset:
    levels = np.linspace(0.1, 0.9, count, dtype=np.float32)
    audio = [{"bytes": recording(level), "path": f"{row}.flac"} for row, level in enumerate(levels)]
    return Dataset.from_dict({"audio": audio, "text": [f"text {row}" for row in range(count)], **columns})


def saved(folder: Path, count: int = 3, **columns: list) -> Path:
    dataset(count, **columns).save_to_disk(folder)
    return folder


def assert_rows(rows: Dataset, texts: list[str | None]) -> None:
    """The columns are as promised, and the audio decodes with `load_audio`."""
    assert list(rows["text"]) == texts
    assert rows.features["audio"] == PLAIN_AUDIO
    assert rows.features["id"] == rows.features["text"] == Value("string")
    assert all(len(load_audio(row["audio"])) == SAMPLING_RATE // 10 for row in rows)
    assert len(set(rows["id"])) == len(rows)


def write_lines(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    return file


def write_metadata(folder: Path, rows: list[dict], kind: str = "jsonl") -> None:
    """Writes the recordings too."""
    for row in rows:
        file = folder / row["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(recording())
    if kind == "jsonl":
        write_lines(folder / "metadata.jsonl", rows)
    else:
        Dataset.from_list(rows).to_csv(folder / "metadata.csv")


def write_parquet(folder: Path) -> Path:
    """Three files of four rows."""
    folder.mkdir()
    for number in range(3):
        part = dataset(12).shard(3, number).cast_column("audio", Audio(decode=False))
        part.to_parquet(folder / f"train-{number:05d}-of-00003.parquet")
    return folder


# Saved data sets


@pytest.mark.parametrize("decode", [None, False, True])
def test_saved_folders_of_one_or_several_splits_are_read(tmp_path: Path, decode: bool | None) -> None:
    """An `Audio` feature that stays one makes the first `map` fail where torchcodec does not load."""
    train = dataset() if decode is None else dataset().cast_column("audio", Audio(decode=decode))
    DatasetDict({"train.360": train, "test": train.select(range(1))}).save_to_disk(tmp_path / "splits")
    assert_rows(load_source(tmp_path / "splits", split="train.360"), ["text 0", "text 1", "text 2"])
    assert_rows(load_source(str(tmp_path / "splits"), split="test+train.360").select(range(2)), ["text 0", "text 0"])
    train.save_to_disk(tmp_path / "one")
    rows = load_source(tmp_path / "one")
    assert_rows(rows, ["text 0", "text 1", "text 2"])
    assert rows.map(lambda row: {"length": len(row["text"])})["length"] == [6, 6, 6]


def test_the_labelled_data_of_the_reference_scripts_is_read_as_it_is(tmp_path: Path) -> None:
    """Special tokens in the transcripts and lists of token ids as prompts are what people already have on the Hub."""
    transcripts = ["<|startoftranscript|><|0.00|> One.<|1.00|><|endoftext|>", None]
    labelled = dataset(2, whisper_transcript=transcripts, condition_on_prev=[None, [50360, 1, 2]])
    labelled.cast_column("audio", Audio()).save_to_disk(tmp_path)
    rows = load_source(tmp_path)
    assert list(rows["whisper_transcript"]) == transcripts
    assert list(rows["condition_on_prev"]) == [None, [50360, 1, 2]]


def test_audio_as_strings_and_arrays_in_saved_data(tmp_path: Path) -> None:
    """Data sets of paths and of arrays are read too; the decoder takes both."""
    (tmp_path / "a.flac").write_bytes(recording())
    assert_rows(load_source(saved(tmp_path / "paths", 1, audio=[str(tmp_path / "a.flac")])), ["text 0"])
    array = {"array": np.full(800, 0.25).tolist(), "sampling_rate": 8_000}
    assert len(load_audio(load_source(saved(tmp_path / "arrays", 1, audio=[array]))[0]["audio"])) == 1600


# Splits


def test_a_split_that_is_missing_is_named_with_those_that_exist(tmp_path: Path) -> None:
    """Renaming 'train.360' to 'train-360' cost users a KeyError after all GPU hours were spent."""
    DatasetDict({"train.360": dataset(), "dev": dataset()}).save_to_disk(tmp_path / "splits")
    saved(tmp_path / "one")
    (tmp_path / "parquet").mkdir()
    dataset().to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    write_metadata(tmp_path / "column", [{"file_name": "a.flac", "text": "a", "split": "dev"}])
    write_metadata(tmp_path / "folders" / "dev", [{"file_name": "a.flac", "text": "a"}])
    write_metadata(tmp_path / "none", [{"file_name": "a.flac", "text": "a"}])
    for source, existing in (
        ("splits", "train.360, dev"),
        ("one", "train"),
        ("parquet", "train"),
        ("parquet/train-00000-of-00001.parquet", "train"),
        ("column", "dev"),
        ("folders", "dev"),
        ("none", "train"),
    ):
        with pytest.raises(ValueError, match=f"no split 'test'; there is {existing}. Set `split`"):
            load_source(tmp_path / source, split="test")
    assert list(load_source(tmp_path / "column")["split"]) == ["dev"]  # the only one, where none is named


def test_splits_of_metadata_come_from_a_column_or_from_folders(tmp_path: Path) -> None:
    """Reading all rows for every split would train on the test set."""
    splits = ("train", "test")
    write_metadata(tmp_path / "column", [{"file_name": f"{s}.flac", "text": s, "split": s} for s in splits])
    write_metadata(tmp_path / "prefix", [{"file_name": f"{s}/a.flac", "text": s} for s in splits])
    for split in splits:
        write_metadata(tmp_path / "folders" / split, [{"file_name": "a.flac", "text": split}])
        write_tar(tmp_path / "tar" / f"{split}-00000.tar", tar_sample("1", split))
        (tmp_path / "manifests").mkdir(exist_ok=True)
        write_lines(tmp_path / "manifests" / f"{split}.jsonl", [{"path": f"../prefix/{split}/a.flac", "text": split}])
    for source in ("column", "prefix", "folders", "manifests", "tar"):
        for split in splits:
            assert_rows(load_source(tmp_path / source, split=split), [split])
    with pytest.raises(ValueError, match="no split 'dev'; there is test, train"):
        load_source(tmp_path / "manifests", split="dev")


@pytest.mark.parametrize(
    "layout", ["data/{}-00000-of-00001.parquet", "{}-00000-of-00001.parquet", "{}/0000.parquet", "{}.parquet"]
)
def test_parquet_is_read_in_the_layouts_of_load_dataset(tmp_path: Path, layout: str) -> None:
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


def test_shards_and_configurations_of_parquet(tmp_path: Path) -> None:
    """Without its configuration named, a folder of two languages would be read as one."""
    for config in ("en", "de"):
        (tmp_path / config).mkdir()
        for shard in range(2):
            dataset(1, name=[f"{config}{shard}"]).to_parquet(tmp_path / config / f"train-0000{shard}-of-00002.parquet")
    assert list(load_source(tmp_path, config="de")["name"]) == ["de0", "de1"]
    with pytest.raises(ValueError, match=r"configurations \['de', 'en'\]: set `config`"):
        load_source(tmp_path)


# Metadata and manifests


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_with_metadata_gives_absolute_paths_and_all_columns(tmp_path: Path, kind: str) -> None:
    """Paths relative to the metadata fail as soon as another working directory reads the rows."""
    names = ["clips/a.flac", "clips/b.flac"]
    # pandas would take the spoken word "null" for a missing text.
    texts = ["null", "a, b"]
    rows = [
        {"file_name": name, "text": text, "speaker": "s1", "locale": "en"}
        for name, text in zip(names, texts, strict=True)
    ]
    write_metadata(tmp_path, rows, kind)
    loaded = load_source(tmp_path)
    assert_rows(loaded, texts)
    assert loaded.select_columns(list(rows[0])).to_list() == rows
    assert [audio["path"] for audio in loaded["audio"]] == [str(tmp_path / name) for name in names]
    assert list(load_source(tmp_path, id_column="file_name")["id"]) == names


COMMON_VOICE = """client_id\tpath\tsentence\tup_votes
1\ta.flac\t"では"と言った。\t2
1\ta.flac\t"unclosed\t
2\ta.flac\t\"""Good-bye,"" she said."\t2
"""


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("clips.tsv", COMMON_VOICE, ['"では"と言った。', '"unclosed', '"Good-bye," she said.']),
        ("all quoted.tsv", '"path"\t"text"\n"a.flac"\t"one\ttwo"\n', ["one\ttwo"]),
        ("excel.CSV", "path; text\r\na.flac; Ja, so\r\n".encode("utf-16"), ["Ja, so"]),
        ("lines.csv", b'\xef\xbb\xbfpath,text\na.flac,"one\ntwo"\n', ["one\ntwo"]),
        ("nemo.json", '{"audio_filepath": "a.flac", "text": 5}\n{"audio_filepath": "a.flac", "text": ""}', ["5", ""]),
        ("list.json", '[\n  {"audio": "a.flac", "text": "a"},\n  {"audio": "a.flac"}\n]\n', ["a", None]),
        ("lines.jsonl", '{"file_name": "a.flac", "text": "one\u2028two"}\n', ["one\u2028two"]),
    ],
)
def test_manifests_are_read_as_their_makers_write_them(
    tmp_path: Path, name: str, content: str | bytes, texts: list[str | None]
) -> None:
    """A quote of Common Voice swallows the rows up to the next one where it is taken for quoting."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.flac").write_bytes(recording())
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = load_source(tmp_path / name)
    assert_rows(rows, texts)
    if content == COMMON_VOICE:
        assert list(rows["speaker"]) == ["1", "1", "2"]
        named = load_source(tmp_path / name, columns=Columns(audio="path", text="sentence", speaker="client_id"))
        assert [named[column] for column in ("text", "speaker")] == [rows[column] for column in ("text", "speaker")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"audio": "a.wav", "text": "a"}\n{"audio": \n', r"line 2: expected one JSON object"),
        ('["a.wav"]\n', r"line 1: expected a JSON object"),
        ('{"wav": "a.wav", "text": "a"}\n', r"`audio_column`\) or one .*columns \['wav', 'text'\]"),
        ('{"audio": "a.wav", "text": "a"}\n{"audio": "b.wav", "text": [5]}\n', "'text' holds values of diff"),
        ('{"audio": "a.wav", "offset": "0:01"}\n', "no row can.*a.wav: offset: expected seconds, got '0:01'"),
        ('audio,text\na.wav,a\nb.wav,"b\nc.wav,c\n', "line 3: a quoted text does not end where its field does"),
        ('audio,text\na.wav,a\nb.wav,"b\nc.wav,c"\n', "line 3: .*it runs into the next row"),
        ("audio,text\na.wav,Yes, I do.\n", "line 2: 3 fields, the header has 2. Quote texts"),
        ("audio,text\na.wav,é\n".encode("latin-1"), r"line 2: expected UTF-8, got b'.*\\xe9', .*Save it as UTF-8"),
        ("audio,text\na.wav,a\n".encode("utf-16-le"), "expected UTF-8, got null characters.*Save it as UTF-8"),
    ],
)
def test_broken_metadata_is_named_by_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    """A parser's message without the line costs a search through a million of them."""
    content = content if isinstance(content, bytes) else content.encode()
    file = tmp_path / ("m.csv" if content.startswith(b"a") else "m.jsonl")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(file))}.*{message}"):
        load_source(file)


@rows_and_stream
@pytest.mark.parametrize("kind", ["nemo.json", "m.csv", "wav.scp"])
def test_rows_pick_parts_and_channels_of_their_recording(
    tmp_path: Path, kind: str, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Every row of a call would train on all of it, both speakers mixed. A command of Kaldi's recipes is not run."""
    halves = np.repeat([[0.1, 0.2], [0.3, 0.4]], SAMPLING_RATE, axis=0)
    soundfile.write(tmp_path / "call.wav", halves, SAMPLING_RATE, subtype="FLOAT")
    (tmp_path / "segments").write_text("u1 call 0 1 1\nu2 call 1 -1 0\nu3 b 0 1\nu4 c 0 1\nu5 call 0\n")
    (tmp_path / "text").write_text("u1 YES\nu2\n")
    content = {
        "nemo.json": '{"audio_filepath": "call.wav", "offset": 0, "duration": 1, "channel": 1, "text": "YES"}\n'
        '{"audio_filepath": "call.wav", "offset": 1.0, "channel": 0, "text": ""}\n',
        "m.csv": "audio,offset,duration,channel,text\ncall.wav,0,1,1,YES\ncall.wav,1.0,,0,\n",
        "wav.scp": "call call.wav\nb flac -c -d -s b.flac |\n",
    }
    (tmp_path / kind).write_text(content[kind])
    rows = list(load_source(tmp_path if kind == "wav.scp" else tmp_path / kind, streaming=streaming))
    assert [row["text"] for row in rows] == ["YES", None if kind == "m.csv" else ""]
    assert len({row["id"] for row in rows}) == 2
    for row, level in zip(rows, (0.2, 0.3), strict=True):
        np.testing.assert_array_equal(load_audio(row["audio"]), np.full(SAMPLING_RATE, level, np.float32))
    left_out = "u3: the command 'flac -c", "u4: its recording 'c' is not in wav.scp", "u5: expected a recording, start"
    assert all(message in caplog.text for message in left_out) == (kind == "wav.scp")


@pytest.mark.parametrize(
    ("first", "note"),
    [
        ({"duration": 0.5}, "a.wav is 2.00 s long and its row says 0.5 s: all of it is read"),
        ({"channel": "A"}, "channel: expected numbers from 0, got 'A'; all channels are mixed to one"),
        ({"start": 0.5}, "2 rows share 1 recordings, and each gets all of its own"),
    ],
)
def test_columns_that_pick_nothing_are_named(
    tmp_path: Path, first: dict, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A duration alone is the length of the row, as in labels; other columns may be meant to pick a part."""
    soundfile.write(tmp_path / "a.wav", np.full(2 * SAMPLING_RATE, 0.1), SAMPLING_RATE)
    rows = load_source(write_lines(tmp_path / "m.jsonl", [{"audio": "a.wav", **first}, {"audio": "a.wav"}]))
    assert [audio_duration(row["audio"]) for row in rows] == [2.0, 2.0]
    assert note in caplog.text


def test_recordings_alone_are_a_data_set_with_the_texts_beside_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Natural order keeps the chapters of a book in theirs; what is not read is said once."""
    for name in ("s/10.flac", "s/2.flac", "s/3.FLAC", ".hidden/x.flac", "._2.flac", "s/2.lab"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(recording())
    (tmp_path / "s" / "2.txt").write_text("two\nlines\n")
    (tmp_path / "s" / "3.txt").write_bytes(b"caf\xe9")
    (tmp_path / "s" / "4.txt").write_text("four")
    rows = load_source(tmp_path)
    assert_rows(rows, ["two lines", None])
    assert list(rows["id"]) == ["s/2.flac", "s/10.flac"]
    for note in (
        "1 of 3 recordings have no .txt",
        "not read: 1 .lab, 1 .txt",
        f"1 row left out:\n  s/3.FLAC: {tmp_path}/s/3.txt, line 1: expected UTF-8",
    ):
        assert note in caplog.text


def test_a_row_without_its_recording_is_loaded_and_fails_alone(tmp_path: Path) -> None:
    """Text without audio has to cost its row where it is decoded, not the loading of all others."""
    (tmp_path / "a.flac").write_bytes(recording())
    rows = [{"audio": "a.flac", "text": "a"}, {"audio": None, "text": "b"}, {"audio": "gone.flac", "text": "c"}]
    loaded = load_source(write_lines(tmp_path / "m.jsonl", rows))
    assert len(load_audio(loaded[0]["audio"])) == 1600
    for row, message in ((1, "got nothing"), (2, "no such audio file")):
        with pytest.raises(AudioError, match=message):
            load_audio(loaded[row]["audio"])


def test_missing_paths_and_empty_sources_are_refused(tmp_path: Path) -> None:
    """A training on 0 rows ends after 0 steps with exit code 0."""
    for name in (tmp_path / "gone", "./gone", "gone.jsonl", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such folder or file"):
            load_source(name)
    with pytest.raises(FileNotFoundError, match="neither a folder or file here nor"):
        load_source("nobody/no-such-data")
    (tmp_path / "empty.jsonl").write_text("")
    dataset().select([]).save_to_disk(tmp_path / "rows")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.wav").write_bytes(b"")
    for name, options, message in (
        ("empty.jsonl", {}, r"empty\.jsonl, split 'train': 0 rows"),
        ("rows", {}, "0 rows"),
        ("rows", {"streaming": True}, "0 rows"),
        ("folder", {}, "expected a folder of `save_to_disk`"),
        ("a.wav", {}, r"got \.wav"),
        ("folder", {"revision": "main"}, "`revision` is for data sets on the Hub"),
        ("rows", {"max_samples": 0}, "max_samples"),
    ):
        with pytest.raises(ValueError, match=message):
            load_source(tmp_path / name, **options)


# Columns


def test_columns_are_renamed_and_ids_made_where_they_are_missing(tmp_path: Path) -> None:
    """Integer ids and texts would break every message and every normaliser that follows."""
    saved(tmp_path, 3, sentence=[1, None, 3], key=[10, None, 12])
    rows = load_source(tmp_path, text_column="sentence", id_column="key", max_samples=2)
    assert_rows(rows, ["1", None])
    assert list(rows["id"]) == ["10", "train-000001"]
    assert "sentence" not in rows.column_names
    assert list(load_source(tmp_path)["id"]) == ["train-000000", "train-000001", "train-000002"]


@rows_and_stream
def test_recordings_without_transcripts_need_no_text_column(
    tmp_path: Path, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Labelling audio alone must not demand the texts that it is about to write, nor drop others without a word."""
    dataset(sentence=["a", "b", "c"]).remove_columns("text").save_to_disk(tmp_path)
    rows = load_source(tmp_path, streaming=streaming)
    assert set(rows.column_names) == {"audio", "id", "sentence"}
    assert "no column 'text' (`text_column`), so no references; there are audio, sentence" in caplog.text


@rows_and_stream
@pytest.mark.parametrize("option", ["audio_column", "text_column", "speaker_column", "id_column"])
def test_a_missing_column_is_named_with_its_option_and_those_that_exist(
    tmp_path: Path, option: str, streaming: bool
) -> None:
    """'KeyError: sentence' does not say which of four options is wrong."""
    with pytest.raises(ValueError, match=rf"no column 'nope' \(`{option}`\); there are audio, text"):
        load_source(saved(tmp_path), streaming=streaming, **{option: "nope"})


@rows_and_stream
def test_columns_are_named_by_an_object_or_by_keywords(tmp_path: Path, streaming: bool) -> None:
    saved(tmp_path, 3, sentence=["a", "b", "c"], who=["x", "y", "z"])
    for names in (
        {"columns": Columns(text="sentence", speaker="who")},
        {"text_column": "sentence", "speaker_column": "who"},
        {"columns": Columns(text="sentence"), "speaker_column": "who"},
    ):
        rows = load_source(tmp_path, max_samples=2, streaming=streaming, **names)
        assert [(row["text"], row["speaker"]) for row in rows] == [("a", "x"), ("b", "y")]
    with pytest.raises(TypeError, match="unexpected keyword argument 'words_column'; the columns are audio_column, "):
        load_source(tmp_path, streaming=streaming, words_column="who")


@rows_and_stream
def test_the_language_of_each_row_is_a_text(tmp_path: Path, streaming: bool) -> None:
    """Corpora store it under many names, some as indices of a class."""
    rows = dataset(3, lang=[1, 0, None]).cast_column("lang", ClassLabel(names=["de", "english"]))
    rows.save_to_disk(tmp_path)
    loaded = load_source(tmp_path, language_column="lang", streaming=streaming)
    assert loaded.features["language"] == Value("string")
    assert [row["language"] for row in loaded] == ["english", "de", None]


def test_texts_and_ids_that_are_numbers_become_strings_in_a_stream(tmp_path: Path) -> None:
    rows = [{"file_name": "a.wav", "text": 12, "id": 7}, {"file_name": "b.wav", "text": 3}]
    write_lines(tmp_path / "metadata.jsonl", rows)
    stream = load_source(tmp_path, streaming=True)
    assert [(row["text"], len(row["id"])) for row in stream] == [("12", 1), ("3", 16)]


def test_row_errors_are_counted_and_listed() -> None:
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
def test_real_recordings_load_with_their_columns(folder: str, split: str, count: int) -> None:
    """Splits by column (fsdd) and none at all (librispeech), as people's folders are."""
    rows = load_source(SPEECH / folder, split=split)
    assert len(rows) == count
    assert {"id", "audio", "text", "speaker", "duration", "licence"} <= set(rows.column_names)
    assert Path(rows[0]["audio"]["path"]).is_absolute()
    for seconds in (len(load_audio(rows[0]["audio"])) / SAMPLING_RATE, audio_duration(rows[0]["audio"])):
        assert seconds == pytest.approx(rows[0]["duration"], abs=2e-3)
    assert soundfile.info(rows[0]["audio"]["path"]).samplerate == (8_000 if folder == "fsdd" else 16_000)


# The Hub


@rows_and_stream
def test_the_hub_is_asked_for_the_split_as_it_is_named(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    """Nothing may come between the user's split, configuration, revision and `load_dataset`, nor its message."""
    requests = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None, streaming: bool) -> object:
        requests.append((name, config, split, revision, streaming))
        if split == "nope":
            raise ValueError("Unknown split \"nope\". Should be one of ['train.360'].")
        rows = dataset().cast_column("audio", Audio())
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr("hf_distil_whisper.data.sources.load_dataset", load_dataset)
    options = {"config": "clean", "revision": "abc", "streaming": streaming}
    rows = load_source("someone/speech", split="train.360", **options)
    assert [row["text"] for row in rows] == ["text 0", "text 1", "text 2"]
    assert rows.features["audio"] == PLAIN_AUDIO
    assert requests == [("someone/speech", "clean", "train.360", "abc", streaming)]
    with pytest.raises(ValueError, match=r"someone/speech: no split 'nope'; there is train\.360"):
        load_source("someone/speech", split="nope", **options)


# Streams


@pytest.mark.parametrize("kind", ["parquet", "tar", "saved", "index", "corpus"])
def test_streams_of_every_kind_hold_the_rows_of_the_data_set(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        write_parquet(tmp_path / kind)
    elif kind == "tar":
        for n in range(2):
            write_tar(tmp_path / kind / f"train-{n:05d}.tar", tar_sample(str(n), f"text {n}", {"speaker": "a"}))
    elif kind == "corpus":
        write_toy_corpus(tmp_path / kind)
    else:
        saved(tmp_path / "saved", 5, id=[f"row {row}" for row in range(5)])
        write_row_index(tmp_path / "index", {"name_or_path": str(tmp_path / "saved")}, 5, [0, 3])
    stream, rows = load_source(tmp_path / kind, streaming=True), load_source(tmp_path / kind)
    assert stream.features is not None
    assert (stream.features["audio"], stream.features["id"]) == (PLAIN_AUDIO, Value("string"))
    streamed = list(stream)
    assert [row["text"] for row in streamed] == list(rows["text"])
    assert [row["audio"] for row in streamed] == list(rows["audio"])
    assert len({row["id"] for row in streamed}) == len(streamed)


def test_workers_share_the_files_and_a_stream_continues_from_its_state(tmp_path: Path) -> None:
    """A loader whose workers do not share a stream gives every row as often as there are workers."""
    stream = load_source(write_parquet(tmp_path / "parquet"), streaming=True)
    assert stream.num_shards == 3
    texts = [row["text"][0] for row in DataLoader(stream.select_columns(["text"]), num_workers=2)]
    assert sorted(texts) == sorted(f"text {row}" for row in range(12))
    whole = [row["id"] for row in stream]
    rows = iter(stream)
    for _ in range(5):
        next(rows)
    again = load_source(tmp_path / "parquet", streaming=True)
    again.load_state_dict(stream.state_dict())
    assert [row["id"] for row in again] == whole[5:]


@rows_and_stream
def test_urls_with_wildcards_lead_to_files(tmp_path: Path, streaming: bool) -> None:
    for number in range(2):
        write_tar(tmp_path / f"train-{number}.tar", tar_sample(str(number), f"text {number}"))
    rows = load_source(f"file://{tmp_path}/train-*.tar", streaming=streaming)
    assert [row["text"] for row in rows] == ["text 0", "text 1"]
    with pytest.raises(FileNotFoundError, match="no such files"):
        load_source(f"file://{tmp_path}/none-*.tar", streaming=streaming)


# Tar archives


def test_samples_of_an_archive_become_rows_with_the_fields_of_their_json(tmp_path: Path) -> None:
    """One of them has no text: the `webdataset` builder refuses such an archive."""
    samples = {**tar_sample("x/1", "Été", {"speaker": "a", "words": [1]}), **tar_sample("x/2", None)}
    file = write_tar(tmp_path / "a.tar", samples)
    rows = list(tar_rows([file]))
    expected = [("x/1", "Été", "a"), ("x/2", None, None)]
    assert [(row["id"], row.get("text"), row.get("speaker")) for row in rows] == expected
    assert rows[0]["audio"]["path"] == "x/1.flac"
    assert len(load_audio(rows[1]["audio"])) == SAMPLING_RATE // 10
    features = tar_features([file])
    strings = {name: Value("string") for name in ("id", "text", "speaker")}
    assert features == Features({**strings, "audio": PLAIN_AUDIO, "words": features["words"]})


def test_a_key_ends_at_the_first_dot_and_a_text_file_wins_over_the_field_of_that_name(tmp_path: Path) -> None:
    """Whichever file comes later would decide otherwise."""
    first = tar_sample("1", "file", {"text": "field"})
    turned = dict(reversed(tar_sample("2", "file", {"text": "field"}).items()))
    dotted = {"a.b/1.16k.flac": tar_sample("1")["1.flac"], "a.b/1.txt": b"yes"}
    rows = list(tar_rows([write_tar(tmp_path / "a.tar", first | turned | dotted)]))
    assert [row["text"] for row in rows] == ["file", "file", "yes"]
    assert (rows[2]["id"], rows[2]["audio"]["path"]) == ("a.b/1", "a.b/1.16k.flac")


def test_an_archive_that_was_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    """`datasets` says only that an error occurred while generating the dataset, `tarfile` nothing at all."""
    samples = [tar_sample(f"{number:03d}") for number in range(40)]
    file = write_tar(tmp_path / "a.tar", {name: content for files in samples for name, content in files.items()})
    os.truncate(file, 30 * os.path.getsize(file) // 40 + 700)  # behind the samples that the features are read from
    with pytest.raises(ValueError, match=r"a\.tar: no sound tar archive"):
        load_source(file)
    Path(file).write_bytes(b"this is no archive" * 100)
    with pytest.raises(ValueError, match="Copy it again"):
        load_source(file)


def test_a_cut_within_a_header_and_an_archive_behind_another_are_noticed(tmp_path: Path) -> None:
    """Both look like the end of an archive to `tarfile`, and to the `webdataset` builder that uses it."""
    first, second = (Path(write_tar(tmp_path / f"{key}.tar", tar_sample(key))) for key in "12")
    whole = first.read_bytes()
    content = len(whole.rstrip(b"\0"))
    (tmp_path / "cut.tar").write_bytes(whole[: -(-content // 512) * 512] + b"2.flac")
    (tmp_path / "both.tar").write_bytes(whole + bytes(20_480) + second.read_bytes())
    for name, message in (("cut", "its end is missing"), ("both", "a second archive follows")):
        with pytest.raises(ValueError, match=message):
            list(tar_rows([str(tmp_path / f"{name}.tar")]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.txt": b"text"}, "expected samples with audio"),
        ({"1.json": b"[]"}, "1.json: expected a JSON object"),
        ({"1.json": b"{"}, "1.json: expected JSON, got"),
    ],
)
def test_archives_without_audio_or_with_other_json_are_refused(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tar_features([write_tar(tmp_path / "a.tar", files)])


def test_an_archive_that_was_rewritten_is_read_again(tmp_path: Path) -> None:
    """The cache of `datasets` identifies a generator by the names of its files."""
    for text in ("old", "new"):
        file = write_tar(tmp_path / "a.tar", tar_sample("1", text))
        if text == "new":
            os.utime(file, ns=(1, 1))
        assert list(load_source(file)["text"]) == [text]


@pytest.mark.parametrize("streaming", [False, True])
def test_each_channel_of_a_call_is_a_row(tmp_path: Path, streaming: bool) -> None:
    """Mixed, two people speak at once; a transcript of the call is of neither."""
    left, right = (toy_audio(1.0, seed=seed) for seed in (0, 1))
    soundfile.write(tmp_path / "call.wav", np.stack([left, right], axis=1), 16_000)
    soundfile.write(tmp_path / "mono.wav", left, 16_000)
    for name in ("call", "mono"):
        (tmp_path / f"{name}.txt").write_text("the dog")
    rows = list(load_source(tmp_path, channel="each", streaming=streaming))
    assert [row["text"] for row in rows] == [None, None, "the dog"]
    assert [row["id"][-2:] for row in rows[:2]] == ["-0", "-1"]
    for row, samples in zip(rows, (left, right, left), strict=True):
        np.testing.assert_allclose(load_audio(row["audio"]), samples, atol=1e-4)
    first = list(load_source(tmp_path, channel=0, streaming=streaming))
    assert [row["text"] for row in first] == ["the dog"] * 2
    np.testing.assert_allclose(load_audio(first[0]["audio"]), left, atol=1e-4)
    with pytest.raises(ValueError, match="expected a number from 0 on"):
        load_source(tmp_path, channel="left", streaming=streaming)
