"""The benchmark of packing, filter and index: all rows pass, each step in a process of its own."""

import pytest

from cli_benchmark import data_table
from data_speed import (
    StepSpeed,
    measure_data,
)
from hf_distil_whisper.cli.main import main


def test_every_step_is_measured_on_all_rows() -> None:
    found = measure_data(200, seconds=0.1)
    assert list(found) == ["packing", "filter", "index"]
    for step in found.values():
        assert step.rows == 200
        assert step.seconds > 0
        assert step.peak_bytes > 10_000_000


@pytest.mark.slow
def test_filter_and_index_take_no_more_memory_for_more_rows() -> None:
    """A few numbers a row held in arrays are 200 bytes each by the end: 20 MB here, 4 GB for the paper's corpora."""
    few, many = measure_data(20_000, seconds=0.01), measure_data(120_000, seconds=0.01)
    for step in ("filter", "index"):
        assert many[step].peak_bytes - few[step].peak_bytes < 12e6


def test_the_table_says_what_a_row_costs() -> None:
    """Worked by hand: 9 MB more for 900,000 rows more are 10 bytes a row."""
    few, many = StepSpeed(100_000, 2.0, 300_000_000), StepSpeed(1_000_000, 20.0, 309_000_000)
    assert data_table({"filter": few}, {"filter": many}).splitlines()[2:] == [
        "| filter | 1,000,000 | 50,000 | 309 MB | 300 MB (100,000) | 10 |"
    ]


def test_rows_that_tell_nothing_of_growth_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "data", "--rows", "100", "--fewer_rows", "100"]) == 2
    assert "--fewer_rows: expected more than 0 and less than 100, got 100" in capsys.readouterr().err
    assert main(["benchmark", "data", "--dry_run"]) == 0
    assert "send 100,000 and 1,000,000 rows of 0.5 s" in capsys.readouterr().out
    assert main(["benchmark", "data", "--dry_run", "--seconds", "31"]) == 2
    assert "--seconds: expected more than 0 and at most 30" in capsys.readouterr().err
