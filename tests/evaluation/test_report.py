"""A report as Markdown and as one HTML file."""

from pathlib import Path

import pytest

from figures import wer_over_latency
from report import (
    Section,
    html_page,
    markdown_table,
    write_report,
)


def test_the_html_holds_its_pictures_and_its_tables(tmp_path: Path) -> None:
    """A page that is sent to somebody must not lack its pictures."""
    wer_over_latency({"teacher": (1.0, 5.0), "student": (2.0, 6.0)}, "teacher", "test", tmp_path / "front.svg")
    table = markdown_table("model", {"teacher": {"WER / %": "5.0"}, "student": {"WER / %": "6.0", "RTF": "0.01"}})
    page, html = write_report(tmp_path, "Report", [Section("Front", table, "front.svg", "WER over latency")])
    text = html.read_text()
    assert "![WER over latency](front.svg)" in page.read_text()
    assert "<title>Report</title>" in text
    assert 'src="data:image/svg+xml;base64,' in text
    assert 'alt="WER over latency"' in text
    assert "<td>student</td>" in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_what_is_measured_cannot_become_markup(tmp_path: Path) -> None:
    """The words of a transcript are shown, not run."""
    assert "<script>" not in html_page("# A\n\n<script>alert(1)</script> a & b", tmp_path)


def test_a_missing_cell_is_a_dash() -> None:
    table = markdown_table("set", {"a": {"x": "1"}, "b": {"y": "2"}})
    assert table.splitlines()[2:] == ["| a | 1 | - |", "| b | - | 2 |"]


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PNG|png"):
        html_page("# A\n\n![x](photo.tiff)", tmp_path)
