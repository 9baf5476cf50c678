"""Archives in the layout of WebDataset are read whole, or refused."""

import os
from pathlib import Path

import pytest
from datasets import Features, Value

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    load_audio,
)
from hf_distil_whisper.data.sources import (
    PLAIN_AUDIO,
    load_source,
    tar_features,
    tar_rows,
)
from toy_files import tar_sample, write_tar


def test_samples_become_rows_with_the_fields_of_their_json(tmp_path: Path) -> None:
    file = write_tar(
        tmp_path / "a.tar", {**tar_sample("x/1", "Été", {"speaker": "a", "words": [1]}), **tar_sample("x/2", None)}
    )
    rows = list(tar_rows([file]))
    assert [(row["id"], row.get("text"), row.get("speaker")) for row in rows] == [
        ("x/1", "Été", "a"),
        ("x/2", None, None),
    ]
    assert rows[0]["audio"]["path"] == "x/1.flac"
    assert len(load_audio(rows[1]["audio"])) == SAMPLING_RATE // 10
    features = tar_features([file])
    assert features == Features(
        {"id": Value("string"), "audio": PLAIN_AUDIO, "text": Value("string"), "speaker": Value("string"),
         "words": features["words"]}
    )  # fmt: skip


def test_a_text_file_wins_over_the_field_of_that_name(tmp_path: Path) -> None:
    """Whichever file comes later would decide otherwise."""
    first = tar_sample("1", "file", {"text": "field"})
    turned = dict(reversed(tar_sample("2", "file", {"text": "field"}).items()))
    assert [row["text"] for row in tar_rows([write_tar(tmp_path / "a.tar", first | turned)])] == ["file", "file"]


def test_a_key_may_hold_more_than_one_dot_behind_it(tmp_path: Path) -> None:
    (row,) = tar_rows(
        [write_tar(tmp_path / "a.tar", {"a.b/1.16k.flac": tar_sample("1")["1.flac"], "a.b/1.txt": b"yes"})]
    )
    assert (row["id"], row["text"], row["audio"]["path"]) == ("a.b/1", "yes", "a.b/1.16k.flac")


def test_an_archive_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    """`tarfile` in a loop of its own would end without a word, and the rest of the corpus be missing."""
    file = write_tar(tmp_path / "a.tar", {**tar_sample("1"), **tar_sample("2")})
    size = os.path.getsize(file)
    os.truncate(file, size - 10_240 + 700)
    with pytest.raises(ValueError, match=r"a\.tar: no sound tar archive"):
        list(tar_rows([file]))
    Path(file).write_bytes(b"this is no archive" * 100)
    with pytest.raises(ValueError, match="Copy it again"):
        load_source(file)


def test_an_archive_cut_short_behind_the_first_samples_is_refused_by_name(tmp_path: Path) -> None:
    """`datasets` says only that an error occurred while generating the dataset."""
    samples = [tar_sample(f"{number:03d}") for number in range(40)]
    file = write_tar(tmp_path / "a.tar", {name: content for files in samples for name, content in files.items()})
    os.truncate(file, 30 * os.path.getsize(file) // 40 + 700)
    with pytest.raises(ValueError, match=r"a\.tar: no sound tar archive"):
        load_source(file)


def test_a_cut_within_a_header_and_an_archive_behind_another_are_noticed(tmp_path: Path) -> None:
    """Both look like the end of an archive to `tarfile`."""
    first = Path(write_tar(tmp_path / "a.tar", tar_sample("1")))
    second = Path(write_tar(tmp_path / "b.tar", tar_sample("2")))
    whole = first.read_bytes()
    content = len(whole.rstrip(b"\0"))
    (tmp_path / "cut.tar").write_bytes(whole[: -(-content // 512) * 512] + b"2.flac")
    with pytest.raises(ValueError, match="its end is missing"):
        list(tar_rows([str(tmp_path / "cut.tar")]))
    (tmp_path / "both.tar").write_bytes(whole + bytes(20_480) + second.read_bytes())
    with pytest.raises(ValueError, match="a second archive follows"):
        list(tar_rows([str(tmp_path / "both.tar")]))


def test_archives_without_audio_or_with_other_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected samples with audio"):
        tar_features([write_tar(tmp_path / "a.tar", {"1.txt": b"text"})])
    with pytest.raises(ValueError, match=r"1.json: expected a JSON object"):
        list(tar_rows([write_tar(tmp_path / "b.tar", {"1.json": b"[]"})]))
    with pytest.raises(ValueError, match=r"1.json: expected JSON, got"):
        list(tar_rows([write_tar(tmp_path / "c.tar", {"1.json": b"{"})]))


def test_a_folder_of_archives_is_a_source_with_splits(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"train-{number:05d}.tar", tar_sample(f"{number}", f"train {number}", {"speaker": "a"}))
    write_tar(tmp_path / "test-00000.tar", tar_sample("9", "test", {"speaker": "b"}))
    train = load_source(tmp_path, split="train")
    assert list(train["text"]) == ["train 0", "train 1"]
    assert train.features["audio"] == PLAIN_AUDIO
    assert list(load_source(tmp_path, split="test")["speaker"]) == ["b"]
    with pytest.raises(ValueError, match="no split 'dev'; there is test, train"):
        load_source(tmp_path, split="dev")


def test_an_archive_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    """The library's cache knows a generator by the names of its files."""
    file = write_tar(tmp_path / "a.tar", tar_sample("1", "old"))
    assert list(load_source(file)["text"]) == ["old"]
    write_tar(tmp_path / "a.tar", tar_sample("1", "new"))
    os.utime(file, ns=(1, 1))
    assert list(load_source(file)["text"]) == ["new"]
