"""A stream is labelled file by file: every row once, whoever stops when, without a look at the other files."""

from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset

from hf_distil_whisper.data.shards import (
    ShardStore,
    StaleRunError,
)
from hf_distil_whisper.data.sources import (
    RowErrors,
    load_source,
)
from hf_distil_whisper.pseudo_labels import labeller
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset
from talking_models import talking_whisper
from toy_files import tar_sample, write_tar
from toy_models import toy_processor

FILES = {"train-0.tar": 5, "train-1.tar": 0, "train-2.tar": 4}
"""Samples of each archive."""


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    for number, (name, count) in enumerate(FILES.items()):
        samples = [tar_sample(f"{number}-{row}", "the", {"speaker": "a"}) for row in range(count)]
        write_tar(folder / name, {path: content for sample in samples for path, content in sample.items()})
    return folder


def label(archives: Path | IterableDataset, folder: Path, **changes) -> Dataset:
    settings = {"rows_per_shard": 2, "max_new_tokens": 8, "return_timestamps": False} | changes
    stream = load_source(archives, streaming=True) if isinstance(archives, Path) else archives
    return pseudo_label_dataset(stream, talking_whisper(4), toy_processor(), output_dir=folder, **settings)


def test_a_stream_gets_the_labels_of_the_data_set(archives: Path, tmp_path: Path) -> None:
    labelled = label(archives, tmp_path / "stream")
    rows = pseudo_label_dataset(
        load_source(archives), talking_whisper(4), toy_processor(), output_dir=tmp_path / "rows", max_new_tokens=8,
        return_timestamps=False,
    )  # fmt: skip
    for column in ("id", "whisper_transcript", "wer", "speaker"):
        assert list(labelled[column]) == list(rows[column])
    names = [shard.name for shard in ShardStore(tmp_path / "stream").shards()]
    assert names == [
        "000000-0000000000", "000000-0000000002", "000000-0000000004-end",
        "000001-0000000000-end", "000002-0000000000", "000002-0000000002-end",
    ]  # fmt: skip
    again = load_source(tmp_path / "stream")
    assert list(again["id"]) == list(rows["id"])


@pytest.mark.parametrize("stop", range(5))
def test_a_stopped_stream_goes_on_where_it_was(archives: Path, tmp_path: Path, monkeypatch, stop: int) -> None:
    calls, genuine = [], labeller.feature_batches

    def counted(teacher, processor, rows, *args, **kwargs):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(list(rows["id"]))
        return genuine(teacher, processor, rows, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(labeller, "feature_batches", counted)
        with pytest.raises(KeyboardInterrupt):
            label(archives, tmp_path / "labels")
    with pytest.raises(ValueError, match="files are there, 3 were to be labelled"):
        load_source(tmp_path / "labels")
    monkeypatch.setattr(
        labeller,
        "feature_batches",
        lambda *args, **kwargs: (calls.append(list(args[2]["id"])), genuine(*args, **kwargs))[1],
    )
    labelled = label(archives, tmp_path / "labels")
    seen = [row for call in calls for row in call]
    assert sorted(seen) == sorted(labelled["id"])
    assert len(set(seen)) == sum(FILES.values())


def test_processes_share_the_files(archives: Path, tmp_path: Path, monkeypatch) -> None:
    """Each reads only its own files: what all read whole costs the network as often as there are processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(labeller, "_wait_for_others", lambda *args: None)
    monkeypatch.setattr(labeller, "_read_labels", lambda *args: None)
    for rank, expected in ((1, {"000001"}), (0, {"000000", "000001", "000002"})):
        monkeypatch.setenv("RANK", str(rank))
        label(archives, tmp_path / "labels")
        assert {name.split("-")[0] for name in ShardStore(tmp_path / "labels").names()} == expected
    monkeypatch.undo()
    assert len(label(archives, tmp_path / "labels")) == 9


def test_utterances_of_a_stream_are_joined(archives: Path, tmp_path: Path) -> None:
    labelled = label(archives, tmp_path / "labels", max_duration=0.2, rows_per_shard=4)
    assert [list(ids) for ids in labelled["ids"]] == [
        ["0-0", "0-1"],
        ["0-2", "0-3"],
        ["0-4"],
        ["2-0", "2-1"],
        ["2-2", "2-3"],
    ]
    assert labelled["text"][0] == "the the"


def test_another_stream_is_refused(archives: Path, tmp_path: Path) -> None:
    label(archives, tmp_path / "labels")
    write_tar(archives / "train-3.tar", tar_sample("more"))
    with pytest.raises(StaleRunError, match="files: 3 there, 4 asked for"):
        label(archives, tmp_path / "labels")


def test_an_archive_that_breaks_off_keeps_what_was_labelled(archives: Path, tmp_path: Path) -> None:
    stream, broken = load_source(archives, streaming=True), archives / "train-2.tar"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole.rstrip(b"\0")) // 2])
    with pytest.raises(ValueError, match=r"train-2\.tar: no sound tar archive"):
        label(stream, tmp_path / "labels")
    there = ShardStore(tmp_path / "labels").names()
    assert "000000-0000000004-end" in there
    broken.write_bytes(whole)
    assert len(label(archives, tmp_path / "labels")) == 9


def test_bad_rows_of_a_stream_are_listed(archives: Path, tmp_path: Path) -> None:
    samples = {**tar_sample("2-0"), "2-1.flac": b"no audio", "2-1.txt": b"the", **tar_sample("2-2")}
    write_tar(archives / "train-2.tar", samples)
    errors = RowErrors()
    labelled = label(archives, tmp_path / "labels", errors=errors)
    assert [row for row, _ in errors] == ["2-1"]
    assert len(labelled) == 7
