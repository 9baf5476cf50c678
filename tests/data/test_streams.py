"""A stream has the rows and columns of the data set that `load_source` gives, and goes on exactly where it was."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Audio, ClassLabel, Dataset, Value
from torch.utils.data import DataLoader

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    encode_flac,
)
from hf_distil_whisper.data.sources import (
    PLAIN_AUDIO,
    load_source,
    stream_source,
    write_row_index,
)
from toy_files import tar_sample, write_tar, write_toy_corpus


def dataset(count: int, **columns: list) -> Dataset:
    levels = np.linspace(0.1, 0.9, count, dtype=np.float32)
    audio = [{"bytes": encode_flac(np.full(SAMPLING_RATE // 10, level)), "path": None} for level in levels]
    return Dataset.from_dict({"audio": audio, "text": [f"text {row}" for row in range(count)], **columns})


def write_parquet(folder: Path, files: int = 3, rows: int = 4) -> Path:
    folder.mkdir()
    whole = dataset(files * rows)
    for number in range(files):
        part = whole.select(range(number * rows, (number + 1) * rows)).cast_column("audio", Audio(decode=False))
        part.to_parquet(folder / f"train-{number:05d}-of-{files:05d}.parquet")
    return folder


@pytest.mark.parametrize("load", [load_source, stream_source])
def test_the_language_of_each_row_is_a_text(load, tmp_path: Path) -> None:
    """Corpora store it under many names, some as numbers of a class."""
    kinds = ClassLabel(names=["de", "english"])
    rows = dataset(3, lang=[1, 0, None]).cast_column("lang", kinds)
    rows.save_to_disk(tmp_path / "saved")
    found = load(tmp_path / "saved", language_column="lang")
    assert found.features["language"] == Value("string")
    assert [row["language"] for row in found] == ["english", "de", None]


def test_streams_of_every_kind_hold_the_rows_of_the_data_set(tmp_path: Path) -> None:
    tar = tmp_path / "tar"
    for number in range(2):
        write_tar(tar / f"train-{number:05d}.tar", tar_sample(str(number), f"text {number}", {"speaker": "a"}))
    saved = tmp_path / "saved"
    dataset(5, id=[f"row {row}" for row in range(5)]).save_to_disk(saved)
    index = tmp_path / "index"
    write_row_index(index, {"name_or_path": str(saved)}, 5, [0, 3])
    corpus = write_toy_corpus(tmp_path / "corpus")
    for source in (write_parquet(tmp_path / "parquet"), tar, saved, index, Path(corpus)):
        stream, rows = stream_source(source), load_source(source)
        assert stream.features is not None
        assert (stream.features["audio"], stream.features["id"]) == (PLAIN_AUDIO, Value("string"))
        found = list(stream)
        assert [row["text"] for row in found] == list(rows["text"])
        assert [row["audio"] for row in found] == list(rows["audio"])
        assert len({row["id"] for row in found}) == len(found)


def test_columns_are_renamed_as_in_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    dataset(3, sentence=["a", "b", "c"], who=["x", "y", "z"]).save_to_disk(folder)
    rows = list(stream_source(folder, text_column="sentence", speaker_column="who", max_samples=2))
    assert [(row["text"], row["speaker"]) for row in rows] == [("a", "x"), ("b", "y")]
    with pytest.raises(ValueError, match="no column 'words' \\(`text_column`\\); there are audio, text"):
        stream_source(folder, text_column="words")


def test_texts_and_ids_that_are_numbers_become_strings(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lines = [json.dumps({"file_name": "a.wav", "text": 12, "id": 7}), json.dumps({"file_name": "b.wav", "text": 3})]
    (tmp_path / "a" / "metadata.jsonl").write_text("\n".join(lines))
    rows = list(stream_source(tmp_path / "a"))
    assert [(row["text"], len(row["id"])) for row in rows] == [("12", 1), ("3", 16)]


def test_workers_share_the_files_and_each_row_comes_once(tmp_path: Path) -> None:
    """A loader with workers over a stream that does not know of them gives every row as often as there are workers."""
    stream = stream_source(write_parquet(tmp_path / "parquet"))
    assert stream.num_shards == 3
    texts = [row["text"][0] for row in DataLoader(stream.select_columns(["text"]), num_workers=2)]
    assert sorted(texts) == sorted(f"text {row}" for row in range(12))


def test_a_stream_goes_on_where_its_state_was_taken(tmp_path: Path) -> None:
    stream = stream_source(write_parquet(tmp_path / "parquet"))
    whole = [row["id"] for row in stream]
    rows = iter(stream)
    for _ in range(5):
        next(rows)
    state = stream.state_dict()
    again = stream_source(tmp_path / "parquet")
    again.load_state_dict(state)
    assert [row["id"] for row in again] == whole[5:]


def test_urls_with_wildcards_lead_to_files(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"train-{number}.tar", tar_sample(str(number), f"text {number}"))
    url = f"file://{tmp_path}/train-*.tar"
    assert [row["text"] for row in stream_source(url)] == list(load_source(url)["text"]) == ["text 0", "text 1"]
    with pytest.raises(FileNotFoundError, match="no such files"):
        stream_source(f"file://{tmp_path}/none-*.tar")


def test_the_hub_is_streamed_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None, streaming: bool) -> object:
        assert (name, config, split, revision, streaming) == ("someone/speech", "clean", "test", "abc", True)
        return dataset(3).cast_column("audio", Audio()).to_iterable_dataset()

    monkeypatch.setattr("hf_distil_whisper.data.sources.load_dataset", load_dataset)
    rows = list(stream_source("someone/speech", config="clean", split="test", revision="abc"))
    assert [row["text"] for row in rows] == ["text 0", "text 1", "text 2"]
