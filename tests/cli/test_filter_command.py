"""`filter` on labels of a toy teacher."""

import json

from hf_distil_whisper.data.sources import load_source


def test_it_writes_row_indices_and_report_or_ends_with_the_table(labelled, right, tmp_path, printed, refused):
    """A training on nothing would start, or the next step would fail without the reason."""
    output = tmp_path / "filtered"
    message = refused("filter", "--dataset", labelled, "--language", "en", "--output_dir", output)
    assert "nothing is trained" in message
    assert "10.0%   100.0%       0.000  <- used" in message
    assert not output.exists()
    assert "2 of 2 rows kept" in printed("filter", "--dataset", right, "--language", "en", "--output_dir", output)
    assert load_source(output)["id"] == load_source(right)["id"]
    report = json.loads((output / "filter_report.json").read_text())
    assert (report["kept"], report["after"]["speakers"]) == (2, 2)
    assert (output / "wer_histogram.png").read_bytes().startswith(b"\x89PNG")
    assert not list(output.glob("*.arrow"))
