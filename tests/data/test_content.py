"""Keys of rows: equal for equal content, wherever it lies."""

import shutil
from pathlib import Path

from hf_distil_whisper.data.array_store import rows_fingerprint
from hf_distil_whisper.data.sources import load_source
from toy_files import write_toy_corpus


def test_rows_are_told_apart_by_what_they_say_and_not_by_their_place(tmp_path: Path) -> None:
    """What rests on them would be made anew after every move, or kept after a labelling anew."""
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
