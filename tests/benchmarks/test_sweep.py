"""Facts of a sweep that decide whether a result is used again."""

import shutil
from pathlib import Path

from hf_distil_whisper import load_source
from sweep import rows_fingerprint
from toy_files import write_toy_corpus


def test_the_fingerprint_of_rows_depends_on_their_content_and_not_on_their_path(tmp_path: Path) -> None:
    """Results would be computed again after every move, or used again after another labelling."""
    corpus = write_toy_corpus(tmp_path / "corpus")
    rows = load_source(corpus)
    expected = rows_fingerprint(rows)
    shutil.move(corpus, tmp_path / "moved")
    moved = load_source(tmp_path / "moved")
    assert rows_fingerprint(moved) == expected
    (tmp_path / "parquet").mkdir()
    moved.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    assert rows_fingerprint(load_source(tmp_path / "parquet")) == expected
    other = rows.map(lambda row: {"text": row["text"].upper()})
    assert len({expected, rows_fingerprint(other), rows_fingerprint(rows.select([0, 1, 2, 3, 5, 4]))}) == 3
