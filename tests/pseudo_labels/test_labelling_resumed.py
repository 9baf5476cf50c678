"""A labelling that is stopped at any moment loses nothing, does nothing twice, and goes on as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.data.audio import encode_flac
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
from toy_models import toy_audio, toy_processor


def recordings(number: int, broken: tuple[int, ...] = ()) -> Dataset:
    """Short ones, each its own; the `broken` rows cannot be read."""
    audio = [
        {"bytes": b"" if row in broken else encode_flac(toy_audio(1 + row % 3, seed=row)), "path": None}
        for row in range(number)
    ]
    return Dataset.from_dict({"id": [f"row-{row}" for row in range(number)], "audio": audio, "text": ["the"] * number})


def label(rows: Dataset, folder: Path, **changes) -> Dataset:
    settings = {"rows_per_shard": 2, "max_new_tokens": 8, "return_timestamps": False} | changes
    return pseudo_label_dataset(rows, talking_whisper(4), toy_processor(), output_dir=folder, **settings)


def stop_after(shards: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the labelling fail when it begins with another shard; returns the numbers of rows labelled so far."""
    calls, genuine = [], labeller.feature_batches

    def counted(teacher, processor, rows, *args, **kwargs):
        if len(calls) == shards:
            raise KeyboardInterrupt
        calls.append(len(rows))
        return genuine(teacher, processor, rows, *args, **kwargs)

    monkeypatch.setattr(labeller, "feature_batches", counted)
    return calls


def test_a_stopped_run_goes_on_and_ends_like_an_undisturbed_one(tmp_path: Path, monkeypatch) -> None:
    """The reference script wrote its labels at the end: a crash after a day of labelling lost the day."""
    rows = recordings(7, broken=(3,))
    expected_errors, errors = RowErrors(), RowErrors()
    expected = label(rows, tmp_path / "undisturbed", errors=expected_errors)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            label(rows, tmp_path / "stopped")
    with pytest.raises(ValueError, match=r"labels of 4 rows are there, 7 were to be labelled.*goes on"):
        load_source(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        calls = stop_after(9, patch)
        labelled = label(rows, tmp_path / "stopped", errors=errors)
    assert calls == [2, 1]
    assert labelled.to_dict() == expected.to_dict()
    assert [row for row, _ in errors] == [row for row, _ in expected_errors] == ["row-3"]
    assert labelled["id"] == [f"row-{row}" for row in range(7) if row != 3]


def test_labels_of_other_settings_rows_or_teachers_do_not_mix(tmp_path: Path) -> None:
    """The names of what differs stand in the message: these runs are months old when they are taken up again."""
    label(recordings(3), tmp_path)
    with pytest.raises(StaleRunError, match="max_new_tokens: 8 there, 9 asked for"):
        label(recordings(3), tmp_path, max_new_tokens=9)
    with pytest.raises(StaleRunError, match=r"ids: .* rows: 3 there, 4 asked for"):
        label(recordings(4), tmp_path)
    with pytest.raises(StaleRunError, match="teacher: "):
        pseudo_label_dataset(
            recordings(3), talking_whisper(3), toy_processor(), output_dir=tmp_path, rows_per_shard=2,
            max_new_tokens=8, return_timestamps=False,
        )  # fmt: skip


def test_a_shard_cut_short_is_labelled_again(tmp_path: Path, monkeypatch) -> None:
    """A full disk or a broken copy cuts files; half a shard would be read as a corrupt data set."""
    expected = label(recordings(5), tmp_path).to_dict()
    store = ShardStore(tmp_path)
    file = Path(store.path(store.shards()[1].name, "rows.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    calls = stop_after(9, monkeypatch)
    assert label(recordings(5), tmp_path).to_dict() == expected
    assert calls == [2]


def test_a_source_that_vanishes_stops_the_run_and_keeps_what_was_done(tmp_path: Path) -> None:
    """Ten thousand rows listed as unreadable because a disk was unplugged would be lost without anybody noticing."""
    files = tmp_path / "files"
    files.mkdir()
    for row in range(30):
        (files / f"{row}.flac").write_bytes(encode_flac(toy_audio(1, seed=row)))
    paths = [{"bytes": None, "path": str(files / f"{row}.flac")} for row in range(30)]
    rows = Dataset.from_dict({"id": [str(row) for row in range(30)], "audio": paths})
    hidden = [path.rename(path.with_suffix(".gone")) for path in sorted(files.iterdir()) if int(path.stem) >= 10]
    with pytest.raises(ValueError, match=r"None of the 10 rows of shard 0000000010.*kept: start again"):
        label(rows, tmp_path / "labels", rows_per_shard=10)
    for path in hidden:
        path.rename(path.with_suffix(".flac"))
    assert len(label(rows, tmp_path / "labels", rows_per_shard=10)) == 30


def test_ids_that_stand_for_two_rows_are_refused(tmp_path: Path) -> None:
    """Before the first row is labelled: afterwards nobody knows whose label it is."""
    rows = recordings(3).remove_columns("id").add_column("id", ["a", "b", "a"])
    with pytest.raises(ValueError, match=r"1 ids stand for several rows, a among them.*`id_column`"):
        label(rows, tmp_path)


LABEL = "import sys; from hf_distil_whisper.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_kills_at_random_moments_lose_no_row_and_label_none_twice(tmp_path: Path) -> None:
    """With SIGKILL, and another number of processes each time. `make soak` kills a hundred times."""
    kills, seed = int(os.environ.get("SOAK_KILLS", 3)), int(os.environ.get("SOAK_SEED", 0))
    number, draw = 40 * kills, random.Random(seed)
    save_checkpoint(talking_whisper(4), toy_processor(), tmp_path / "teacher")
    recordings(number).save_to_disk(str(tmp_path / "rows"))
    command = [sys.executable, "-c", LABEL, "pseudo-label", "--teacher_model_name_or_path", str(tmp_path / "teacher")]
    command += ["--dataset", str(tmp_path / "rows"), "--output_dir", str(tmp_path / "labels"), "--rows_per_shard", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(processes: int) -> list[subprocess.Popen]:
        places = [
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} for rank in range(processes)
        ]
        return [subprocess.Popen(command, env=environment | place, stderr=subprocess.DEVNULL) for place in places]

    store, done = ShardStore(tmp_path / "labels"), {}
    for _ in range(kills):
        before, running = len(store.names()), start(draw.choice([1, 2, 2, 3]))
        while len(store.names()) == before and any(process.poll() is None for process in running):
            time.sleep(0.05)  # killed while it starts, nothing would be tried
        time.sleep(draw.uniform(0.0, 1.0))
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
        now = {name: os.stat(store.path(name, "manifest.json")).st_mtime_ns for name in store.names()}
        assert done.items() <= now.items(), "a shard was written twice"
        done = now
    assert all(process.wait(timeout=600) == 0 for process in start(2))
    labelled = load_source(tmp_path / "labels")
    assert labelled["id"] == [f"row-{row}" for row in range(number)]
    assert store.damaged() == {}
