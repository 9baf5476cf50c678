"""Labelled data on the Hub: visible when complete, resumed without a second upload, readable by others."""

import re
from pathlib import Path

import datasets.config
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, load_dataset
from huggingface_hub import DatasetCard, HfApi

from hf_distil_whisper.cli import push_dataset as command
from hf_distil_whisper.cli.filter import run as run_filter
from hf_distil_whisper.data.audio import encode_flac, load_audio
from hf_distil_whisper.data.shards import ShardStore
from hf_distil_whisper.data.sources import load_source
from hf_distil_whisper.hub.dataset_card import push_dataset
from hf_distil_whisper.hub.push import PushError
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset
from hub_server import ALICE, HubServer
from toy_models import SENTENCES, toy_audio, toy_processor, toy_whisper

GOLDEN = Path(__file__).with_name("expected_dataset_card.md")


def write_labels(folder: Path, count: int = 10, paths: Path | None = None, silent: int = 0) -> str:
    """Shards of two rows as labelling writes them, their audio inside, or at `paths`; every third label is wrong.

    The first `silent` rows have no speaker, and of the third file it is the second half that is labelled.
    """
    store, rows = ShardStore(folder), []
    store.open_run({"teacher": "0123456789abcdef", "rows": count, "ids": "x", "num_beams": 1, "language": None})
    for number in range(count):
        sound = {"bytes": encode_flac(toy_audio(0.1, seed=number)), "path": None}
        if paths is not None:
            paths.mkdir(exist_ok=True)
            soundfile.write(paths / f"{number}.wav", toy_audio(0.1, seed=number), 16_000)
            sound = {"bytes": None, "path": str(paths / f"{number}.wav"), "offset": 0.05 if number == 2 else None}
        text, speaker = SENTENCES[number % 3], None if number < silent else "one"
        label = "<|0.00|> Nothing of it.<|0.10|>" if number % 3 == 2 else f"<|0.00|> {text}<|0.10|>"
        row = {"id": f"row-{number}", "audio": sound, "text": text, "whisper_transcript": label, "duration": 36.0}
        rows.append(row | {"speaker": speaker})
    for start in range(0, count, 2):
        shard = Dataset.from_list(rows[start : start + 2])
        info = {"rows": len(shard), "source_rows": len(shard), "hours": 0.01 * len(shard), "lost": []}
        store.commit(f"{start:05d}", lambda folder, shard=shard: shard.to_parquet(folder / "rows.parquet"), info)
    return str(folder)


def uploads(hub: HubServer) -> int:
    """Number of large files that were uploaded so far."""
    return sum(request.startswith("PUT /lfs/") for request in hub.requests)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for every one or two rows."""
    monkeypatch.setattr(datasets.config, "MAX_SHARD_SIZE", "5KB")


def streamed(repo_id: str, config: str | None = None) -> list[dict]:
    rows = load_dataset(repo_id, config, split="train", streaming=True).cast_column("audio", Audio(decode=False))
    return list(rows)


@pytest.mark.usefixtures("small_files")
def test_a_pushed_data_set_is_streamed_back_as_it_was(hub: HubServer, tmp_path: Path) -> None:
    """Labels that only their maker can read are no data set; a reader takes its types from the first file."""
    push_dataset(write_labels(tmp_path / "labelled", silent=2), "alice/labels")
    rows, there = streamed("alice/labels"), load_source(write_labels(tmp_path / "same"))
    assert [row["whisper_transcript"] for row in rows] == there["whisper_transcript"]
    assert [row["speaker"] for row in rows] == [None, None, *["one"] * 8]
    for row, ours in zip(rows, there, strict=True):
        np.testing.assert_array_equal(load_audio(row["audio"]), load_audio(ours["audio"]))
    again = list(load_source("alice/labels", streaming=True))
    assert [row["id"] for row in again] == [f"row-{number}" for number in range(10)]
    assert again[0]["audio"]["bytes"] == there[0]["audio"]["bytes"]


def test_labels_of_a_real_labelling_are_pushed(hub: HubServer, tmp_path: Path) -> None:
    """The manifests and run.json of `pseudo_label_dataset` are what the card is written from."""
    sounds = [{"bytes": encode_flac(toy_audio(0.5, seed)), "path": None} for seed in range(3)]
    rows = Dataset.from_dict({"id": ["0", "1", "2"], "audio": sounds, "text": ["hello"] * 3})
    settings = {"output_dir": tmp_path / "labelled", "rows_per_shard": 2, "max_new_tokens": 8}
    pseudo_label_dataset(rows, toy_whisper(), toy_processor(), **settings)
    push_dataset(tmp_path / "labelled", "alice/labels", teacher="openai/whisper-toy.en")
    card = DatasetCard.load("alice/labels")
    assert "openai/whisper-toy.en" in card.text
    assert "| max_new_tokens | 8 |" in card.text
    assert [row["text"] for row in streamed("alice/labels")] == ["hello"] * 3


def test_recordings_beside_the_labels_go_along_without_their_folders(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Paths of this machine lead nowhere on another one, and tell how it is set up."""
    labelled = write_labels(tmp_path / "labelled", 3, paths=tmp_path / "sound")
    (tmp_path / "sound" / "1.wav").unlink()
    push_dataset(labelled, "alice/labels")
    rows = streamed("alice/labels")
    assert [(row["audio"]["path"], len(load_audio(row["audio"]))) for row in rows] == [("0.wav", 1_600), (None, 800)]
    assert "1 row left out:\n  row-1: its recording 1.wav cannot be read" in caplog.text
    everything = b"".join(hub.repo("alice/labels", "dataset").files().values())
    assert str(tmp_path).encode() not in everything
    assert "1 of the kept rows are missing here" in DatasetCard.load("alice/labels").text


def test_without_recordings_there_is_no_column_that_looks_like_some(hub: HubServer, tmp_path: Path) -> None:
    push_dataset(write_labels(tmp_path / "labelled"), "alice/labels", embed_audio=False)
    rows = list(load_dataset("alice/labels", split="train", streaming=True))
    assert "audio" not in rows[0]
    assert rows[9]["id"] == "row-9"
    assert "join with the source by `id`" in DatasetCard.load("alice/labels").text


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("how", ["refused", "killed"])
def test_a_push_that_failed_shows_nothing_and_is_resumed_by_the_same_command(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """A part looks like a smaller data set; no machine but the Hub remembers which files were uploaded."""
    argv = [write_labels(tmp_path / "labelled"), "--repo_id", "alice/labels"]
    if how == "refused":
        hub.fail("/commit/", 403)
        with pytest.raises(PushError, match="start the same command again") as error:
            command.run(argv)
        assert ALICE not in str(error.value)
    else:
        hub.kill_during_commit(
            "import datasets; datasets.config.MAX_SHARD_SIZE = '5KB'\n"
            f"from hf_distil_whisper.cli import push_dataset; push_dataset.run({argv!r})"
        )
    before = uploads(hub)
    assert before > 2
    assert set(hub.repo("alice/labels", "dataset").files()) == {".gitattributes"}
    for _ in range(2):  # and pushing the same again uploads nothing either
        command.run(argv)
        assert f"{hub.endpoint}/datasets/alice/labels/commit/" in capsys.readouterr().out
    assert uploads(hub) == before
    assert len(streamed("alice/labels")) == 10


@pytest.mark.usefixtures("small_files")
def test_several_sources_are_configurations_which_are_gone_after_another_push(hub: HubServer, tmp_path: Path) -> None:
    """Old files beside new ones would double rows under names that fit both."""
    folders = {"read": write_labels(tmp_path / "read", 4), "spoken": write_labels(tmp_path / "spoken", 2)}
    push_dataset(folders, "alice/labels", licenses={"read": "cc-by-4.0", "spoken": "cc0-1.0"})
    assert len(streamed("alice/labels", "spoken")) == 2
    text = DatasetCard.load("alice/labels").text
    assert "| read | 4 | 0.040 | 4 | 0.040 | 0 | 0.000 | cc-by-4.0 |" in text
    assert "| spoken | 2 | 0.020 | 2 | 0.020 | 0 | 0.000 | cc0-1.0 |" in text
    push_dataset(write_labels(tmp_path / "first"), "alice/labels")
    push_dataset(folders["read"], "alice/labels")
    assert [row["id"] for row in streamed("alice/labels")] == [f"row-{number}" for number in range(4)]
    assert {name.split("/")[0] for name in hub.repo("alice/labels", "dataset").files() if "/" in name} == {"data"}


def test_the_network_fails_and_is_tried_again(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("/commit/", 500)
    hub.fail("/tree/", 429, times=2)
    hub.fail("PUT /lfs/", cut=True, times=2)
    push_dataset(write_labels(tmp_path / "labelled"), "alice/labels")
    assert len(streamed("alice/labels")) == 10


def test_what_the_filter_chose_is_what_is_pushed_and_told(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A golden test of the card; rows that were dropped must not come back through the Hub."""
    write_labels(tmp_path / "labelled")
    flags = ["--dataset", str(tmp_path / "labelled"), "--output_dir", str(tmp_path / "kept")]
    run_filter([*flags, "--threshold", "0.1", "--language", "en"])
    facts = {"teacher": "openai/whisper-toy.en", "language": "en"}
    facts |= {"licenses": "cc-by-4.0", "origins": "openslr/librispeech_asr"}
    push_dataset(tmp_path / "kept", "alice/labels", private=True, **facts)
    assert [row["id"] for row in streamed("alice/labels")] == [f"row-{number}" for number in (0, 1, 3, 4, 6, 7, 9)]
    assert HfApi().dataset_info("alice/labels").private
    text = hub.repo("alice/labels", "dataset").files()["README.md"].decode()
    assert text == GOLDEN.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out == f"<|0.00|> {SENTENCES[0]}<|0.10|>\n"


def test_nothing_goes_up_where_something_is_wrong(hub: HubServer, tmp_path: Path) -> None:
    """Each of these would otherwise be noticed after hours of uploading."""
    labelled, part, empty = write_labels(tmp_path / "labelled"), write_labels(tmp_path / "part"), tmp_path / "empty"
    ShardStore(part).remove("00004")
    empty.mkdir()
    HfApi().create_repo("alice/open", repo_type="dataset")
    for message, folder, repo_id, settings in (
        ("public", labelled, "alice/open", {"private": True}),
        ("licenses", labelled, "alice/labels", {"licenses": "my own"}),
        ("no source is called 'other'", labelled, "alice/labels", {"licenses": {"other": "mit"}}),
        ("this is neither", empty, "alice/labels", {}),
        ("labels of 8 rows are there, 10", part, "alice/labels", {}),
    ):
        with pytest.raises(ValueError, match=message):
            push_dataset(folder, repo_id, **settings)
    for message, *argv in (
        ("--repo_id is missing", labelled),
        ("expected one folder", "--repo_id", "alice/labels"),
        ("--repo_id", labelled, "--repo_id", "a/b/c"),
        ("no such folder.*pseudo-label", str(tmp_path / "none"), "--repo_id", "alice/labels"),
        ("expected {name: folder}", "--folders", "labelled", "--repo_id", "alice/labels"),
    ):
        with pytest.raises(ValueError, match=message):
            command.run(argv)
    assert ("dataset", "alice/labels") not in hub.repos
