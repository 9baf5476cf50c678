"""Names for the tables of the benchmarks."""

from pathlib import Path

from inputs import short_names


def test_short_names_are_as_long_as_it_takes_to_be_different(tmp_path: Path) -> None:
    """With two models under one name, the second replaces the first in the table."""
    paths = ["openai/whisper-tiny.en", "runs/a/student", "runs/b/student/", "/mnt/a/student", "."]
    assert short_names(paths) == {
        "whisper-tiny.en": "openai/whisper-tiny.en",
        "runs/a/student": "runs/a/student",
        "b/student": "runs/b/student/",
        "mnt/a/student": "/mnt/a/student",
        ".": ".",
    }
    assert short_names(["teacher", "runs/teacher", "teacher"]) == {
        "teacher": "teacher",
        "runs/teacher": "runs/teacher",
    }
    files = [str(tmp_path / name) for name in ("pub.flac", "street.wav", "street.flac")]
    for file in files[1:]:
        Path(file).touch()
    assert list(short_names(files[:2])) == ["pub.flac", "street"]  # the name of a missing file stays whole
    assert list(short_names(files[1:])) == files[1:]
    assert short_names([]) == {}
