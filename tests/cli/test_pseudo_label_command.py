"""`pseudo-label` on toy models and recordings: what is packed, split, streamed and left out."""

import pytest
from datasets import Dataset

from hf_distil_whisper.cli.pseudo_label import sort_by_speaker
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.sources import load_source
from toy_files import tar_sample, write_tar
from toy_models import toy_audio


def test_utterances_of_one_speaker_are_packed(labelled):
    rows = load_source(labelled)
    assert rows["speaker"][:] == ["speaker-0", "speaker-1"]
    assert rows["duration"][:] == [3.0, 3.0]
    assert rows["ids"][:] == [[f"train-{row:06d}" for row in range(start, 6, 2)] for start in (0, 1)]
    assert {"whisper_transcript", "truncated", "wer", "hits", "previous_transcript"} <= set(rows.column_names)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_recordings_of_unknown_speakers_are_split_and_not_packed_and_bad_ones_listed(
    streaming, toys, tmp_path, printed, caplog
):
    """They were left out for their length; without a speaker nothing says which of them belong together."""
    for name, seconds in (("a", 65.0), ("b", 1.0), ("c", 1.0)):
        (tmp_path / f"{name}.flac").write_bytes(encode_flac(toy_audio(seconds)))
    (tmp_path / "d.flac").write_bytes(b"none")  # rows that are lost while they are packed were counted in a copy
    audio = [str(tmp_path / f"{name}.flac") for name in "abcd"]
    rows = Dataset.from_dict({"id": list("abcd"), "audio": audio, "text": ["much", "yes", "no", "none"]})
    rows.to_parquet(tmp_path / "train.parquet")
    argv = ["pseudo-label", "--teacher_model_name_or_path", toys / "teacher", "--max_duration", 25]
    argv += ["--dataset", tmp_path / "train.parquet", "--output_dir", tmp_path / "labels"]
    assert "split longer recordings, to at most 25 s" in printed(*argv, "--streaming", streaming)
    assert "1 row left out" in caplog.text
    labelled = load_source(tmp_path / "labels")
    pieces = len(labelled) - 2
    assert list(labelled["id"]) == [*(f"a-{number}" for number in range(pieces)), "b", "c"]
    assert pieces >= 3
    assert sum(labelled["duration"]) == pytest.approx(67.0)
    assert max(labelled["duration"]) <= 25
    assert list(labelled["text"]) == [*[None] * pieces, "yes", "no"]


def test_archives_are_read_as_they_come(toys, tmp_path, printed, refused):
    for number in range(2):
        samples = [tar_sample(f"{number}-{row}", "yes", {"speaker": "a"}) for row in range(2)]
        write_tar(tmp_path / "tars" / f"train-{number}.tar", samples[0] | samples[1])
    argv = ["pseudo-label", "--teacher_model_name_or_path", toys / "teacher", "--streaming"]
    argv += ["--dataset", f"file://{tmp_path}/tars/train-*.tar", "--output_dir", tmp_path / "labels"]
    assert "audio: 2 files, read as they come" in printed(*argv, "--dry_run")
    printed(*argv)
    assert list(load_source(tmp_path / "labels")["text"]) == ["yes yes", "yes yes"]
    assert "--dataset: " in refused(*argv, "--dataset.text_column", "words")


def test_only_utterances_of_one_recording_become_neighbours():
    """Two readings by one speaker whose utterances alternate would leave nothing to pack."""
    rows = Dataset.from_dict({"id": list("pqrs"), "speaker": list("abaa"), "recording": list("yxxy")})
    assert sort_by_speaker(rows)["id"][:] == ["r", "p", "s", "q"]
    assert sort_by_speaker(rows.remove_columns("recording"))["id"][:] == ["p", "r", "s", "q"]
