"""Tables 10 to 12 and 21: cells are trained, scored, taken up again, and refused where they do not go together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from toy_scripts import Refused, write_texts

import latency
import sweep
from hf_distil_whisper import evaluate_model, get_normalizer, load_model, load_processor, load_source, run_script
from hf_distil_whisper.cli.config import InputError, parse_arguments
from hf_distil_whisper.evaluation.noise import evaluate_in_noise
from hf_distil_whisper.inference import encoder
from hf_distil_whisper.metrics import WordErrors
from inputs import LoadedModel, load_sets
from sweep import CellResult, SweepArguments, read_cell, start_cell, sweep_table
from toy_files import spoil, write_toy_corpus, write_toy_model
from toy_models import toy_processor, toy_whisper
from toy_training import logged, small_trainer, small_whisper


@pytest.fixture
def write_sweep(toys: Path, tmp_path: Path) -> Any:
    """Writes a sweep of two cells, trainings of two steps; returns its file. `training` changes the recipe."""

    def write(training: dict[str, Any] | None = None, **changes: object) -> str:
        corpus = str(toys / "corpus")
        recipe = {
            "teacher_model_name_or_path": str(toys / "teacher"), "decoder_layers": 2, "max_steps": 2,
            "train_dataset": {"path": corpus, "transcript_column": "text"}, "per_device_train_batch_size": 2,
            "save_strategy": "no", "use_cpu": True, "report_to": "none", "output_dir": "unused",
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **(training or {})}))
        settings = {
            "recipe": str(tmp_path / "recipe.yaml"), "heading": "Objective", "seeds": [1],
            "cells": {"PL": {"kl_weight": 0.0}, "PL + KL": {}}, "columns": ["steps", "parameters"],
            "eval_datasets": {"seen": {"path": corpus, "split": "train"}},
            "ood_datasets": {"new": {"path": corpus, "split": "train", "max_samples": 1}},
            "output_dir": str(tmp_path / "sweep"),
        }  # fmt: skip
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**settings, **changes}))
        return str(tmp_path / "sweep.yaml")

    return write


def read_sweep(file: str) -> SweepArguments:
    (args,) = parse_arguments(SweepArguments, argv=[file])
    return args


def run(file: str) -> dict[str, dict[str, Any]]:
    """Results by cell."""
    assert run_script(sweep.main, [file]) == 0
    content = json.loads(Path(file).with_name("sweep").joinpath("results.json").read_text())
    return {one["cell"]: one for one in content}


def load(folder: Path) -> tuple[Any, Any]:
    return load_model(folder / "student"), load_processor(folder / "student")


def scored(folder: Path, rows: Any, **options: Any) -> dict[str, int]:
    student, processor = load(folder)
    return vars(evaluate_model(student, rows, processor, **options).errors)


def result(cell: str, seed: int, errors: int, **changes: object) -> CellResult:
    """100 words in each of three sets: so many errors in the first, twice and three times as many in the others."""
    counts = {name: WordErrors(100 - n * errors, n * errors) for n, name in enumerate(("a", "b", "new"), 1)}
    facts = {"rows": 90, "rows_dropped": 10, "hours": 1.5, "steps": 1200, "parameters": 2_050_001}
    return CellResult(cell, seed, counts, **(facts | changes))


def test_a_sweep_scores_by_the_normaliser_of_its_recipe_and_goes_on_where_it_was_stopped(
    write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Figure]
) -> None:
    """Hours of finished cells would be computed again, or a half one counted; the encoder runs for the first only."""
    windows, started = [], []
    encode, build = encoder.encode, sweep.build_trainer
    monkeypatch.setattr(encoder, "encode", lambda model, x: windows.append(len(x)) or encode(model, x))
    monkeypatch.setattr(sweep, "build_trainer", lambda plan: started.append(plan.training_args) or build(plan))
    # Digit strings would be one word in the English normaliser, and half of the errors gone.
    digits = write_texts(write_toy_corpus(tmp_path / "digits", train=2), "one two three")
    seen = {"path": digits, "split": "train"}
    sets = {"eval_datasets": {"seen": seen}, "ood_datasets": {"new": {**seen, "max_samples": 1}}}
    # The recipe's two steps, but for the flags of all cells.
    file = write_sweep({"normalizer": "basic"}, flags={"max_steps": 3}, snrs=[10.0], **sets)
    folder = tmp_path / "sweep"
    results = run(file)
    rates = "ID Average WER / % | OOD Average WER / % | Average WER / % | WER at 10 dB / %"
    assert f"| Objective | Steps | Params / M | {rates} |" in (folder / "table.md").read_text()
    assert {name: one["steps"] for name, one in results.items()} == {"PL": 3, "PL + KL": 3}
    # The report copies this picture alone: the noise must be in it.
    assert [axes.get_title() for axes in drawn[-1].axes] == ["", "white noise"]
    rows, options = load_source(seen["path"]), {"normalizer": get_normalizer("basic")}
    assert sum(windows) == 2 * len(rows)  # seen, of which new is one, and seen in noise
    assert not (folder / "states").exists()
    assert results["PL"]["errors"]["seen"] == scored(folder / "PL-seed1", rows, **options)
    assert WordErrors(**results["PL"]["errors"]["seen"]).num_words == 6
    student, processor = load(folder / "PL-seed1")
    (noisy,) = evaluate_in_noise(student, rows, processor, snrs=[10.0], **options).values()
    assert results["PL"]["noise"]["10"] == vars(noisy.errors)
    (folder / "PL-seed1" / "result.json").unlink()  # as if killed while it was scored
    started.clear()
    assert run(file) == results
    assert [Path(args.output_dir).parent.name for args in started] == ["PL-seed1"]


def test_the_table_shows_how_much_of_the_sweep_is_in_it(write_sweep: Any, tmp_path: Path) -> None:
    """A sweep that was stopped in its first seed would claim the spread of three."""
    args = read_sweep(write_sweep(seeds=[1, 2], cells={"PL": {}}, minutes=0.01))
    (tmp_path / "sweep").mkdir()
    for number, note in (
        (1, "one seed, 0.01 min of training for every cell, 1 of 2 trainings."),
        (2, "2 seeds, mean ± standard deviation, 0.01 min of training for every cell."),
    ):
        sweep.save_sweep(args, [result("PL", seed, 10) for seed in (1, 2)][:number])
        assert (tmp_path / "sweep" / "table.md").read_text().splitlines()[-1] == note


def test_cells_of_every_kind_are_trained_for_an_equal_time(write_sweep: Any, toys: Path, tmp_path: Path) -> None:
    """LoRA leaves a whole student, a trained encoder is not scored with another's outputs, a stream has no size."""
    rows = load_source(str(toys / "corpus"), split="train")
    (tmp_path / "stream").mkdir()
    rows.to_parquet(str(tmp_path / "stream" / "train.parquet"))
    cells = {
        "frozen": {"train_dataset.share": 0.5},
        "trained": {"freeze_encoder": False, "learning_rate": 0.01},
        "LoRA": {"lora": {"r": 2}},
        "stream": {"streaming": True, "train_dataset.path": str(tmp_path / "stream")},
    }
    results = run(write_sweep(cells=cells, columns=["hours", "dropped", "parameters"], minutes=0.05))
    assert all(one["steps"] > 2 for one in results.values())
    assert results["frozen"]["rows"] < results["trained"]["rows"]
    assert results["trained"]["errors"]["seen"] == scored(tmp_path / "sweep" / "trained-seed1", rows)
    adapted, _ = load(tmp_path / "sweep" / "LoRA-seed1")
    assert results["LoRA"]["parameters"] == adapted.num_parameters() == results["frozen"]["parameters"]
    assert "| stream | - | - |" in (tmp_path / "sweep" / "table.md").read_text()


def test_a_grid_holds_every_combination_and_null_takes_a_setting_of_the_recipe_away(
    write_sweep: Any, toys: Path
) -> None:
    """A filter of "None", a language of "None": the training without them would not start."""
    source = {"path": str(toys / "corpus"), "transcript_column": "text", "wer_threshold": 0.1}
    grid = {"train_dataset.wer_threshold": [None, 0.05], "normalizer": [None, "de"]}
    args = read_sweep(write_sweep({"train_dataset": source, "normalizer": "basic"}, grid=grid, cells={}))
    cells = sweep.sweep_cells(args)
    assert [cell.name for cell in cells] == ["None, None", "None, 0.05", "de, None", "de, 0.05"]
    parsed = [cell.arguments(args.recipe) for cell in cells]
    assert [training.train_dataset.wer_threshold for training, _ in parsed] == [None, 0.05] * 2
    assert [training_args.normalizer for _, training_args in parsed] == [None, None, "de", "de"]


def test_a_cell_of_other_settings_data_or_weights_is_refused(write_sweep: Any, toys: Path, tmp_path: Path) -> None:
    """All of it may change in the same folder: the table would mix both without a word."""
    for name in ("teacher", "corpus"):
        shutil.copytree(toys / name, tmp_path / name)
    source = {"path": str(tmp_path / "corpus"), "transcript_column": "text"}
    facts = {"train_dataset": source, "teacher_model_name_or_path": str(tmp_path / "teacher")}
    seen = {"path": str(tmp_path / "corpus"), "split": "train"}
    settings = {"cells": {"PL": {}}, "eval_datasets": {"seen": seen}, "ood_datasets": {}}

    def start(training: dict[str, object], **changes: object) -> list[CellResult]:
        args = read_sweep(write_sweep({**facts, **training}, **{**settings, **changes}))
        sets = load_sets(args.eval_datasets)
        return list(sweep.run_cells(args, sets, sweep.dependencies(args, sets)))

    def differing(training: dict[str, object], **changes: object) -> str:
        with pytest.raises(InputError, match="other settings or data") as error:
            start(training, **changes)
        return str(error.value).partition("(")[2].partition(")")[0]

    (first,) = start({})
    assert start({"output_dir": "elsewhere", "seed": 7}) == [first]  # a cell replaces both
    assert differing({"learning_rate": 0.5}) == "recipe.learning_rate"
    assert differing({}, cells={"PL": {"learning_rate": 0.5}}) == "flags.learning_rate"
    fewer = {"seen": {**seen, "max_samples": 2}}
    assert differing({}, eval_datasets=fewer) == "sets.seen.max_samples, sets.seen.rows"
    write_toy_model(tmp_path / "teacher", seed=1)
    assert differing({}) == "teacher_weights"
    write_texts(str(tmp_path / "corpus"), "Said by another teacher.")
    assert differing({}) == "sets.seen.rows, teacher_weights, training_rows"
    assert (tmp_path / "sweep" / "PL-seed1" / "result.json").is_file()


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        # The third cell's spelling mistake would show after two hours.
        (
            {"cells": {"PL": {}, "typo": {"kl_wieght": 0.0}, "layers": {"decoder_layers": 99}}},
            ["cell 'typo'", "did you mean '--kl_weight'", "cell 'layers'"],
        ),
        ({"columns": ["hour"]}, ["did you mean 'hours'"]),
        ({"minutes": 0.0}, ["minutes: expected more than 0"]),
        ({"cells": {}}, ["neither"]),
        ({"grid": {"seed": [1]}}, ["both"]),
        ({"grid": {"seed": 3}, "cells": {}}, ["grid.seed"]),
        ({"cells": {"one": 3}}, ["cells.one"]),
        ({"flags": "fast"}, ["flags: expected a mapping, got 'fast'"]),
        ({"flags": {"max_step": 1}}, ["did you mean '--max_steps'"]),
        ({"recipe": None}, ["--recipe is missing"]),
        ({"ood_datasets": {"seen": "x"}}, ["'seen' is also the name"]),
        ({"seeds": [42, 42]}, ["--seeds: expected at least one, and each once, got [42, 42]"]),
        ({"snrs": [10.0, 200.0]}, ["expected a ratio from -100 to 100 dB, got 200"]),
    ],
)
def test_what_is_wrong_is_named_before_the_first_training(
    write_sweep: Any, tmp_path: Path, changes: dict, messages: list[str], refused: Refused
) -> None:
    refused(sweep.main, [write_sweep(**changes)], *messages)
    assert not (tmp_path / "sweep").exists()


def test_the_relative_latency_is_the_teachers_time_over_the_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upside down, a student would be as slow as it is fast; and a broken file would end a cell after its training."""
    windows: list[int] = []

    def one_second_a_layer(model: Any, batches: Any, language: str, **settings: Any) -> tuple[float, list[int]]:
        assert language == "en"
        windows.append(sum(map(len, batches)))
        return float(model.config.decoder_layers * windows[-1]), [1] * windows[-1]

    monkeypatch.setattr(latency, "timed_pass", one_second_a_layer)
    corpus = write_toy_corpus(tmp_path / "corpus", train=12)
    spoil(corpus, row=1)
    rows, models = load_source(corpus), [LoadedModel(toy_whisper(decoder_layers=n), toy_processor()) for n in (1, 4)]
    errors = evaluate_model(models[0].model, rows, toy_processor(), max_new_tokens=1).row_errors
    chosen = sweep.timed_rows(rows, errors)
    assert chosen["id"] == [rows["id"][index] for index in (0, *range(3, 10))]
    assert sweep.relative_latency(*models, chosen, "en") == 4.0
    assert windows == [1] * 2 + [sweep.LATENCY_ROWS] * 2 * 5


def test_the_table_has_the_layout_of_the_paper_and_averages_over_sets() -> None:
    """A large set must not drown the others; a 0 for the size of a stream would claim that there was no speech."""
    uneven = CellResult("x", 1, {"small": WordErrors(5, 5), "large": WordErrors(900, 100)}, 1, 0, 1.0, 1, 1)
    assert sweep.averages([uneven], [])["Average"].mean == pytest.approx(30.0)
    results = [result("0.1", 1, 10), result("0.1", 2, 14), result("0.05", 1, 12), result("0.05", 2, 12)]
    assert sweep_table(results, "λ", ["dropped", "steps"], ["new"]).splitlines() == [
        "| λ | Data filtered / % | Steps | ID Average WER / % | OOD Average WER / % | Average WER / % |",
        "|---|---|---|---|---|---|",
        "| 0.1 | 10.0 | 1,200 | 18.0 ± 4.2 | 36.0 ± 8.5 | 24.0 ± 5.7 |",
        "| 0.05 | 10.0 | 1,200 | 18.0 ± 0.0 | 36.0 ± 0.0 | 24.0 ± 0.0 |",
    ]
    noisy = [result("2", 1, 10, relative_latency=2.34, noise={"10": WordErrors(50, 50)})]
    table = sweep_table(noisy, "Layers", ["parameters", "relative_latency"])
    assert "| Layers | Params / M | Rel. latency | ID Average WER / % | Average WER / % | WER at 10 dB / % |" in table
    assert "| 2 | 2.1 | 2.3 | 20.0 | 20.0 | 50.0 |" in table
    stream = [result("1", 1, 10, rows=None, rows_dropped=None, hours=None)]
    assert "| 1 | - | - | 1,200 | 20.0 |" in sweep_table(stream, "Seed", ["dropped", "hours", "steps"])
    seeds = [result("a", seed, 1, noise={"10": WordErrors(100 - 20 * seed, 20 * seed)}) for seed in (1, 2)]
    assert sweep.noise_rates(seeds)["10"].values == pytest.approx((20.0, 40.0))


def test_a_cell_folder_is_read_as_it_was_written_and_another_one_left_alone(tmp_path: Path) -> None:
    """An unfinished cell is deleted and made anew: a folder of the user's must not be."""
    settings = {"cell": "x", "sets": {"test": {"share": None}, "new": {"rows": "ab"}}, "flags": {}, "seed": 1}
    cell, folder = result("x", 1, 5, relative_latency=2.0, noise={"0": WordErrors(1, 2, 3, 4)}), tmp_path / "x"
    assert read_cell(folder, settings) is None
    start_cell(folder, settings)
    assert read_cell(folder, {**settings, "sets": {"test": {}, "new": {"rows": "ab"}}}) is None
    sweep.write_cell(folder, cell)
    assert read_cell(folder, settings) == cell
    # In flags null takes a value of the recipe away, a missing one leaves it; in sets both are the same.
    other = {"sets": {"test": {"share": 0.5}, "new": {"rows": "cd"}}, "flags": {"normalizer": None}, "seed": 2}
    with pytest.raises(InputError, match=r"\(flags\.normalizer, seed, sets\.new\.rows, sets\.test\.share\)"):
        read_cell(folder, {**settings, **other})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="files that no sweep wrote"):
        read_cell(tmp_path, {})


def test_a_training_ends_when_its_time_is_up_and_its_learning_rate_has_come_down(tmp_path: Path) -> None:
    """Cells that stop at a high rate are compared unfinished; the clock moves on by 0.1 s each time it is read."""
    now = iter(range(1, 100_000))
    trainer = small_trainer(tmp_path, small_whisper(), small_whisper(1), max_steps=1000, learning_rate=1.0)
    budget = sweep.limit_time(trainer, minutes=0.2, clock=lambda: 0.1 * next(now))
    trainer.train()
    rates = logged(trainer, "learning_rate")
    assert 20 < trainer.state.global_step < 120
    assert budget.used == 1
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9
    assert trainer.lr_scheduler.get_last_lr()[0] < 0.05
    # The clock starts with the first step: filling a cache that all cells share would shorten the first training.
    assert sweep.TimeBudget(1, lambda: 1e6).used == 0


def test_the_fingerprint_of_rows_depends_on_their_content_and_not_on_their_path(tmp_path: Path) -> None:
    """Results would be computed again after every move, or used again after another labelling."""
    rows = load_source(write_toy_corpus(tmp_path / "corpus"))
    expected = sweep.rows_fingerprint(rows)
    moved = load_source(shutil.move(tmp_path / "corpus", tmp_path / "moved"))
    assert sweep.rows_fingerprint(moved) == expected
    (tmp_path / "parquet").mkdir()
    moved.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    assert sweep.rows_fingerprint(load_source(tmp_path / "parquet")) == expected
    others = rows.map(lambda row: {"text": row["text"].upper()}), rows.select([0, 1, 2, 3, 5, 4])
    assert len({expected, *map(sweep.rows_fingerprint, others)}) == 3
