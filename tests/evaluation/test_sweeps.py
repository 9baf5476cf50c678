"""Sweeps: what their cells are, how results are kept, and the tables of the paper that they make."""

from pathlib import Path

import pytest

from hf_distil_whisper.metrics import WordErrors
from sweeps import (
    CellResult,
    Spread,
    averages,
    begin_cell,
    cells_of,
    noise_rates,
    read_cell,
    sweep_table,
    write_cell,
)


def result(cell: str, seed: int, errors: int, **changes: object) -> CellResult:
    """100 words in each of three sets: so many errors in the first, twice and three times as many in the others."""
    found = {name: WordErrors(100 - n * errors, n * errors) for n, name in enumerate(("a", "b", "new"), 1)}
    facts = {"rows": 90, "rows_dropped": 10, "hours": 1.5, "steps": 1200, "parameters": 2_050_000}
    return CellResult(cell, seed, found, **(facts | changes))


def test_a_grid_holds_every_combination() -> None:
    cells = cells_of({"kl_weight": [0.0, 0.8], "decoder_layers": [1, 2]}, {})
    assert list(cells) == ["0.0, 1", "0.0, 2", "0.8, 1", "0.8, 2"]
    assert cells["0.8, 1"] == {"kl_weight": 0.8, "decoder_layers": 1}


@pytest.mark.parametrize(
    ("grid", "cells", "words"),
    [
        ({}, {}, "neither"),
        ({"seed": [1]}, {"one": {}}, "both"),
        ({"seed": 1}, {}, "grid.seed"),
        ({"seed": []}, {}, "grid.seed"),
        ({}, {"one": 3}, "cells.one"),
    ],
)
def test_what_is_no_grid_is_named(grid: dict, cells: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cells_of(grid, cells)


def test_averages_are_over_sets_and_not_over_words() -> None:
    """Tables 10 to 12 average the sets: a large one must not drown the others."""
    uneven = CellResult("x", 1, {"small": WordErrors(5, 5), "large": WordErrors(900, 100)}, 1, 0, 1.0, 1, 1)
    assert averages([uneven], [])["Average"].mean == pytest.approx(30.0)


def test_the_table_has_the_layout_of_the_paper() -> None:
    results = [result("0.1", 1, 10), result("0.1", 2, 14), result("0.05", 1, 12), result("0.05", 2, 12)]
    table = sweep_table(results, "λ", ["dropped", "steps"], ["new"])
    assert table.splitlines() == [
        "| λ | Data filtered / % | Steps | ID Average WER / % | OOD Average WER / % | Average WER / % |",
        "|---|---|---|---|---|---|",
        "| 0.1 | 10.0 | 1,200 | 18.0 ± 4.2 | 36.0 ± 8.5 | 24.0 ± 5.7 |",
        "| 0.05 | 10.0 | 1,200 | 18.0 ± 0.0 | 36.0 ± 0.0 | 24.0 ± 0.0 |",
    ]


def test_latency_and_noise_have_columns_where_they_were_measured() -> None:
    cells = [result("2", 1, 10, relative_latency=2.34, noise={"10": WordErrors(50, 50)})]
    table = sweep_table(cells, "Layers", ["parameters", "relative_latency"])
    assert "| Layers | Params / M | Rel. latency | ID Average WER / % | Average WER / % | WER at 10 dB / % |" in table
    assert "| 2 | 2.0 | 2.3 | 20.0 | 20.0 | 50.0 |" in table or "| 2 | 2.1 | 2.3 | 20.0 | 20.0 | 50.0 |" in table


def test_what_a_stream_does_not_know_is_left_open() -> None:
    """A 0 would claim that nothing was dropped, and that there was no speech."""
    cells = [result("1", 1, 10, rows=None, rows_dropped=None, hours=None)]
    assert "| 1 | - | - | 1,200 | 20.0 |" in sweep_table(cells, "Seed", ["dropped", "hours", "steps"])


def test_rates_in_noise_are_over_the_seeds_of_a_cell() -> None:
    seeds = [result("a", seed, 1, noise={"10": WordErrors(100 - 20 * seed, 20 * seed)}) for seed in (1, 2)]
    assert noise_rates(seeds)["10"].values == pytest.approx((20.0, 40.0))
    assert noise_rates(seeds)["10"].mean == pytest.approx(30.0)


def test_one_seed_has_no_spread() -> None:
    assert Spread((1.25,)).text() == "1.2"
    assert Spread((1.0, 3.0)).text() == "2.0 ± 1.4"


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    settings = {"cell": "x", "flags": {"seed": 1}}
    cell = result("x", 1, 5, relative_latency=2.0, noise={"0": WordErrors(1, 2, 3, 4)})
    assert read_cell(tmp_path / "x", settings) is None
    begin_cell(tmp_path / "x", settings)
    assert read_cell(tmp_path / "x", settings) is None
    write_cell(tmp_path / "x", cell)
    assert read_cell(tmp_path / "x", settings) == cell


def test_a_result_of_other_settings_is_refused(tmp_path: Path) -> None:
    """One table would hold students of two different recipes."""
    begin_cell(tmp_path, {"minutes": 1, "recipe": "quickstart"})
    with pytest.raises(ValueError, match=r"other settings or data \(minutes\)"):
        read_cell(tmp_path, {"minutes": 2, "recipe": "quickstart"})


def test_the_entry_that_differs_is_named_and_what_is_null_may_be_missing(tmp_path: Path) -> None:
    begin_cell(tmp_path, {"sets": {"test": {"split": "test", "share": None}, "new": {"rows": "ab"}}, "seed": 1})
    assert read_cell(tmp_path, {"sets": {"test": {"split": "test"}, "new": {"rows": "ab"}}, "seed": 1}) is None
    with pytest.raises(ValueError, match=r"\(seed, sets\.new\.rows, sets\.test\.share\)"):
        read_cell(tmp_path, {"sets": {"test": {"split": "test", "share": 0.5}, "new": {"rows": "cd"}}, "seed": 2})


def test_a_flag_that_becomes_null_makes_another_cell(tmp_path: Path) -> None:
    """It takes a value of the recipe away, where a flag that is missing leaves it."""
    begin_cell(tmp_path, {"flags": {}})
    with pytest.raises(ValueError, match=r"\(flags\.normalizer\)"):
        read_cell(tmp_path, {"flags": {"normalizer": None}})


def test_files_that_no_sweep_wrote_are_left_alone(tmp_path: Path) -> None:
    """An unfinished cell is deleted and made anew: a user's own folder must not be."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="files that no sweep wrote"):
        read_cell(tmp_path, {})
