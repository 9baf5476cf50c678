"""Shards are complete or absent, checked, and of one run only."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_distil_whisper.data.shards import MANIFEST, ShardStore, StaleRunError

IDENTITY = {"teacher": "toy", "num_beams": 1}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ShardStore:
    """An open store on the local disk and one on a file system without renaming."""
    store = ShardStore(tmp_path / "store" if request.param == "local" else f"memory://{tmp_path.name}/store")
    store.open_run(IDENTITY)
    return store


def write(text: str):
    return lambda folder: (folder / "rows.txt").write_text(text)


def test_a_shard_is_written_once_and_read_back_with_its_info(store: ShardStore) -> None:
    store.commit("00001", write("b"), info={"rows": 1})
    store.commit("00000", write("a"), info={"rows": 2})
    assert [(shard.name, shard.info) for shard in store.shards()] == [("00000", {"rows": 2}), ("00001", {"rows": 1})]
    assert store.fs.cat_file(store.path("00000", "rows.txt")) == b"a"
    assert store.shards()[1].files["rows.txt"]["size"] == 1
    assert store.damaged() == {}
    with pytest.raises(FileExistsError, match="a shard is written once"):
        store.commit("00000", write("b"))
    assert store.fs.cat_file(store.path("00000", "rows.txt")) == b"a"


def test_a_run_continues_with_the_same_settings_only(store: ShardStore) -> None:
    store.commit("00000", write("a"))
    store.open_run(dict(reversed(IDENTITY.items())))
    for name, there, other in (("num_beams", 1, 5), ("language", None, "de")):
        with pytest.raises(StaleRunError, match=f"{name}: {there!r} there, {other!r} asked for"):
            store.open_run(IDENTITY | {name: other})


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StaleRunError, match=r"thesis\.txt.*no store of shards"):
        ShardStore(tmp_path).open_run(IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_shard_that_fails_leaves_nothing_behind(store: ShardStore) -> None:
    def full(folder: Path) -> None:
        (folder / "rows.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.commit("00000", full)
    assert store.shards() == []
    assert [path.rsplit("/", 1)[-1] for path in store.fs.ls(store.root, detail=False)] == ["run.json"]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"cut", "3 bytes, 5 were written"), (None, "is missing"), (b"whale", "SHA-256")]
)
def test_a_damaged_shard_is_named_and_left_out_unless_only_its_checksum_tells(store: ShardStore, content, reason):
    for name in ("00000", "00001"):
        store.commit(name, write("whole"))
    store.fs.rm_file(store.path("00000", "rows.txt"))
    if content:
        store.fs.pipe_file(store.path("00000", "rows.txt"), content)
    assert len(store.shards()) == 1 + (content == b"whale")
    assert (list(store.damaged()), reason in store.damaged()["00000"]) == (["00000"], True)
    store.remove("00000")
    assert [shard.name for shard in store.shards()] == ["00001"]
    store.commit("00000", write("again"))
    store.fs.rm_file(store.path("00001", MANIFEST))
    assert [shard.name for shard in store.shards()] == ["00000"]


WRITER = """
import sys
from hf_distil_whisper.data.shards import ShardStore
store, name = ShardStore(sys.argv[1]), sys.argv[2]
store.open_run({"teacher": "toy"})
for number in range(100_000):
    text = f"{name}-{number}" * 1000
    store.commit(f"{name}-{number:06d}", lambda folder: (folder / "rows.txt").write_text(text), {"number": number})
"""


def test_writers_killed_at_any_moment_leave_complete_shards_only(tmp_path: Path) -> None:
    """Two processes at once, killed as hard as can be."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in ("a", "b")]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(tmp_path.glob("[ab]-*"))) < 30:
        time.sleep(0.05)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    store = ShardStore(tmp_path)
    shards = store.shards()
    assert len(shards) >= 30
    assert store.damaged() == {}
    for name in ("a", "b"):
        numbers = [shard.info["number"] for shard in shards if shard.name.startswith(name)]
        assert numbers == list(range(len(numbers)))
    assert json.loads((tmp_path / "run.json").read_text()) == {"teacher": "toy"}
