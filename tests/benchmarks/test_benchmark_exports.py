"""The table of exports beside transformers."""

from pathlib import Path

from exports import compare
from toy_files import write_toy_corpus, write_toy_model


def test_a_row_for_transformers_and_each_export(tmp_path: Path) -> None:
    """The first row is what the others are compared with: all texts equal, as fast as itself."""
    model, corpus = write_toy_model(tmp_path / "model"), write_toy_corpus(tmp_path / "corpus")
    lines = compare(model, corpus, "test", "ctranslate2", ["float32", "int8"], 2).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:2] for row in rows] == [
        ["transformers", "float32"], ["ctranslate2", "float32"], ["ctranslate2", "int8"],
    ]  # fmt: skip
    assert rows[0][2] == rows[1][2] == "2 (100.0%)"
    assert rows[0][3] == rows[1][3]
    assert rows[0][6] == "1.00"
    assert float(rows[2][4]) < float(rows[1][4])
