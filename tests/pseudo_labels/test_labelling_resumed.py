"""An interrupted labelling loses nothing, does nothing twice, and ends as if it had never been interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.shards import ShardStore, StaleRunError
from hf_distil_whisper.data.sources import RowErrors, load_source
from hf_distil_whisper.pseudo_labels import labeller
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset
from talking_models import talking_whisper
from toy_files import tar_sample, write_tar
from toy_models import toy_audio, toy_processor

SAMPLES = {"train-0.tar": 5, "train-1.tar": 0, "train-2.tar": 4}
"""Number of samples in each archive of a stream."""


def recordings(count: int, broken: tuple[int, ...] = ()) -> Dataset:
    """Short recordings, all different; the `broken` rows cannot be read."""
    audio = [
        {"bytes": b"" if row in broken else encode_flac(toy_audio(1 + row % 3, seed=row)), "path": None}
        for row in range(count)
    ]
    return Dataset.from_dict({"id": [f"row-{row}" for row in range(count)], "audio": audio, "text": ["the"] * count})


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    for file, (name, count) in enumerate(SAMPLES.items()):
        samples = [tar_sample(f"{file}-{row}", "the", {"speaker": "a"}) for row in range(count)]
        write_tar(folder / name, {path: content for sample in samples for path, content in sample.items()})
    return folder


def label(rows: Dataset | IterableDataset | Path, folder: Path, seed: int = 4, **changes) -> Dataset:
    settings = {"rows_per_shard": 2, "max_new_tokens": 8, "return_timestamps": False} | changes
    rows = load_source(rows, streaming=True) if isinstance(rows, Path) else rows
    return pseudo_label_dataset(rows, talking_whisper(seed), toy_processor(), output_dir=folder, **settings)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[list[str]]]:
    """Interrupts labelling after so many shards (None: never); returns the ids of the shards labelled so far."""
    original = labeller.feature_batches

    def start(after: int | None) -> list[list[str]]:
        labelled: list[list[str]] = []

        def counted(teacher, processor, dataset, *args, **kwargs):
            if len(labelled) == after:
                raise KeyboardInterrupt
            labelled.append(list(dataset["id"]))
            return original(teacher, processor, dataset, *args, **kwargs)

        monkeypatch.setattr(labeller, "feature_batches", counted)
        return labelled

    return start


def test_an_interrupted_run_continues_and_ends_like_an_undisturbed_one(tmp_path: Path, interrupt) -> None:
    """The reference script wrote its labels at the end: a crash after a day of labelling lost the day."""
    rows, folder = recordings(7, broken=(3,)), tmp_path / "interrupted"
    expected_errors, errors = RowErrors(), RowErrors()
    expected = label(rows, tmp_path / "undisturbed", errors=expected_errors)
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        label(rows, folder)
    with pytest.raises(ValueError, match=r"labels of 4 rows are there, 7 were to be labelled"):
        load_source(folder)
    again = interrupt(None)
    labelled = label(rows, folder, errors=errors)
    assert [len(shard) for shard in again] == [2, 1]
    assert labelled.to_dict() == expected.to_dict()
    assert [row for row, _ in errors] == [row for row, _ in expected_errors] == ["row-3"]
    assert labelled["id"] == [f"row-{row}" for row in range(7) if row != 3]


def test_labels_of_other_settings_rows_or_teachers_are_refused(tmp_path: Path) -> None:
    """The message names what differs: such runs may be months old."""
    label(recordings(2), tmp_path)
    for rows, changes, message in (
        (recordings(2), {"max_new_tokens": 9}, "max_new_tokens: 8 there, 9 asked for"),
        (recordings(3), {}, r"ids: .* rows: 2 there, 3 asked for"),
        (recordings(2), {"seed": 3}, "teacher: "),
    ):
        with pytest.raises(StaleRunError, match=message):
            label(rows, tmp_path, **changes)
    identity = ShardStore(tmp_path).identity()
    assert identity.pop("teacher")
    assert identity.pop("ids")
    assert identity == {
        "backend": "transformers", "compute_type": "default", "language": None, "max_duration": None,
        "max_new_tokens": 8, "max_words": None, "num_beams": 1, "return_timestamps": False, "rows": 2,
        "rows_per_shard": 2, "second_window": True, "task": "transcribe",
    }  # fmt: skip


def test_a_truncated_shard_is_labelled_again(tmp_path: Path, interrupt) -> None:
    """A full disk or a broken copy truncates files; half a shard would be read as a corrupt dataset."""
    expected = label(recordings(5), tmp_path).to_dict()
    store = ShardStore(tmp_path)
    file = Path(store.path(store.shards()[1].name, "rows.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    again = interrupt(None)
    assert label(recordings(5), tmp_path).to_dict() == expected
    assert again == [["row-2", "row-3"]]


def test_a_source_that_disappears_stops_the_run(tmp_path: Path) -> None:
    """Ten thousand rows listed as unreadable because a disk was unplugged would be lost silently."""
    files = [tmp_path / f"{row}.flac" for row in range(30)]
    for row, file in enumerate(files):
        file.write_bytes(encode_flac(toy_audio(1, seed=row)))
    audio = [{"bytes": None, "path": str(file)} for file in files]
    rows = Dataset.from_dict({"id": [str(row) for row in range(30)], "audio": audio})
    hidden = [file.rename(file.with_suffix(".gone")) for file in files[10:]]
    with pytest.raises(ValueError, match=r"None of the 10 rows of shard 0000000010.*kept: start again"):
        label(rows, tmp_path / "labels", rows_per_shard=10)
    for file in hidden:
        file.rename(file.with_suffix(".flac"))
    assert len(label(rows, tmp_path / "labels", rows_per_shard=10)) == 30


def test_a_stream_gets_the_labels_of_the_dataset(archives: Path, tmp_path: Path) -> None:
    labelled = label(archives, tmp_path / "stream")
    rows = label(load_source(archives), tmp_path / "rows", rows_per_shard=1000)
    for column in ("id", "whisper_transcript", "wer", "speaker"):
        assert list(labelled[column]) == list(rows[column])
    assert [shard.name for shard in ShardStore(tmp_path / "stream").shards()] == [
        "000000-0000000000", "000000-0000000002", "000000-0000000004-end",
        "000001-0000000000-end", "000002-0000000000", "000002-0000000002-end",
    ]  # fmt: skip
    assert list(load_source(tmp_path / "stream")["id"]) == list(rows["id"])
    write_tar(archives / "train-3.tar", tar_sample("more"))  # another stream
    with pytest.raises(StaleRunError, match="files: 3 there, 4 asked for"):
        label(archives, tmp_path / "stream")


@pytest.mark.parametrize("after", range(5))
def test_an_interrupted_stream_continues_where_it_was(archives: Path, tmp_path: Path, interrupt, after: int) -> None:
    before = interrupt(after)
    with pytest.raises(KeyboardInterrupt):
        label(archives, tmp_path / "labels")
    with pytest.raises(ValueError, match="files are there, 3 were to be labelled"):
        load_source(tmp_path / "labels")
    again = interrupt(None)
    labelled = label(archives, tmp_path / "labels")
    ids = [row for shard in before + again for row in shard]
    assert sorted(ids) == sorted(labelled["id"])
    assert len(set(ids)) == sum(SAMPLES.values())


def test_processes_share_the_files_of_a_stream(archives: Path, tmp_path: Path, monkeypatch) -> None:
    """Files that every process reads cost the network as many times as there are processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(labeller, "_wait_for_others", lambda *args: None)
    monkeypatch.setattr(labeller, "_read_labels", lambda *args: None)
    for rank, expected in ((1, {"000001"}), (0, {"000000", "000001", "000002"})):
        monkeypatch.setenv("RANK", str(rank))
        label(archives, tmp_path / "labels")
        assert {name.split("-")[0] for name in ShardStore(tmp_path / "labels").names()} == expected
    monkeypatch.undo()
    assert len(label(archives, tmp_path / "labels")) == 9


def test_utterances_of_a_stream_are_joined_and_unreadable_ones_listed(archives: Path, tmp_path: Path) -> None:
    samples = {**tar_sample("2-0"), "2-1.flac": b"no audio", "2-1.txt": b"the", **tar_sample("2-2")}
    write_tar(archives / "train-2.tar", samples)
    errors = RowErrors()
    labelled = label(archives, tmp_path / "labels", max_duration=0.2, rows_per_shard=4, errors=errors)
    assert [list(row) for row in labelled["ids"]] == [["0-0", "0-1"], ["0-2", "0-3"], ["0-4"], ["2-0"], ["2-2"]]
    assert labelled["text"][0] == "the the"
    assert [row for row, _ in errors] == ["2-1"]


def test_labels_before_a_truncated_archive_are_not_lost(archives: Path, tmp_path: Path) -> None:
    stream, broken = load_source(archives, streaming=True), archives / "train-2.tar"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content.rstrip(b"\0")) // 2])
    with pytest.raises(ValueError, match=r"train-2\.tar: no sound tar archive"):
        label(stream, tmp_path / "labels")
    assert "000000-0000000004-end" in ShardStore(tmp_path / "labels").names()
    broken.write_bytes(content)
    assert len(label(archives, tmp_path / "labels")) == 9


LABEL = "import sys; from hf_distil_whisper.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_kills_at_random_moments_lose_no_row_and_label_none_twice(tmp_path: Path) -> None:
    """With SIGKILL, and another number of processes each time. `make soak` kills a hundred times."""
    kills, seed = int(os.environ.get("SOAK_KILLS", 3)), int(os.environ.get("SOAK_SEED", 0))
    count, draw = 40 * kills, random.Random(seed)
    save_checkpoint(talking_whisper(4), toy_processor(), tmp_path / "teacher")
    recordings(count).save_to_disk(str(tmp_path / "rows"))
    command = [sys.executable, "-c", LABEL, "pseudo-label", "--teacher_model_name_or_path", str(tmp_path / "teacher")]
    command += ["--dataset", str(tmp_path / "rows"), "--output_dir", str(tmp_path / "labels"), "--rows_per_shard", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(processes: int) -> list[subprocess.Popen]:
        ranks = [
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} for rank in range(processes)
        ]
        return [subprocess.Popen(command, env=environment | rank, stderr=subprocess.DEVNULL) for rank in ranks]

    store, committed = ShardStore(tmp_path / "labels"), {}
    for _ in range(kills):
        before, running = len(store.names()), start(draw.choice([1, 2, 2, 3]))
        while len(store.names()) == before and any(process.poll() is None for process in running):
            time.sleep(0.05)  # killed while it starts, nothing would be tested
        time.sleep(draw.uniform(0.0, 1.0))
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
        now = {name: os.stat(store.path(name, "manifest.json")).st_mtime_ns for name in store.names()}
        assert committed.items() <= now.items(), "a shard was written twice"
        committed = now
    assert all(process.wait(timeout=600) == 0 for process in start(2))
    labelled = load_source(tmp_path / "labels")
    assert labelled["id"] == [f"row-{row}" for row in range(count)]
    assert store.damaged() == {}
