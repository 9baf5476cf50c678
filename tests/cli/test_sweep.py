"""`sweep` on toys: cells are trained, scored, kept, taken up again, and refused where they do not go together."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from torch import Tensor
from transformers import WhisperForConditionalGeneration

import cli_sweep as sweep
import latency_grid
from cli_sweep_plan import (
    SweepArguments,
    plan_sweep,
    sweep_cells,
)
from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.config import InputError, parse_arguments
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.data.sources import load_source
from hf_distil_whisper.evaluation.evaluate import evaluate_model
from hf_distil_whisper.evaluation.noise import evaluate_in_noise
from hf_distil_whisper.inference import encoder as encoder_cache
from hf_distil_whisper.metrics import (
    WordErrors,
    get_normalizer,
)
from toy_files import spoil, write_toy_corpus, write_toy_model
from toy_models import toy_processor, toy_whisper


@pytest.fixture(scope="module")
def toys(toys: Path) -> Path:
    """The folder with a recipe of two steps beside the rest."""
    recipe = {
        "teacher_model_name_or_path": str(toys / "teacher"),
        "decoder_layers": 2,
        "train_dataset": {"path": str(toys / "corpus"), "transcript_column": "text"},
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "output_dir": "unused",
    }
    (toys / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return toys


def write_sweep(toys: Path, folder: Path, **changes: object) -> str:
    """A sweep of two cells; returns its file."""
    settings = {
        "recipe": str(toys / "recipe.yaml"),
        "heading": "Objective",
        "cells": {"PL": {"kl_weight": 0.0}, "PL + KL": {}},
        "seeds": [1],
        "columns": ["steps", "parameters"],
        "eval_datasets": {"seen": {"path": str(toys / "corpus"), "split": "train"}},
        "ood_datasets": {"new": {"path": str(toys / "corpus"), "split": "train", "max_samples": 1}},
        "output_dir": str(folder / "sweep"),
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**settings, **changes}))
    return str(file)


def read_sweep(file: str) -> SweepArguments:
    (args,) = parse_arguments(SweepArguments, argv=[file])
    return args


def change_recipe(toys: Path, folder: Path, **changes: object) -> str:
    """A copy of the recipe with other values; returns its file."""
    recipe = yaml.safe_load((toys / "recipe.yaml").read_text())
    (folder / "changed.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    return str(folder / "changed.yaml")


def write_texts(corpus: Path, text: str) -> None:
    """Another text for every recording of a toy corpus."""
    rows = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    (corpus / "metadata.jsonl").write_text("\n".join(json.dumps({**row, "text": text}) for row in rows))


def test_a_sweep_writes_the_table_of_its_cells(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write_sweep(toys, tmp_path, snrs=[10.0])]) == 0
    folder = tmp_path / "sweep"
    table = (folder / "table.md").read_text()
    rates = "ID Average WER / % | OOD Average WER / % | Average WER / % | WER at 10 dB / %"
    head = f"| Objective | Steps | Params / M | {rates} |"
    assert head in table
    assert head in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| PL")] == ["PL", "PL + KL"]
    found = json.loads((folder / "results.json").read_text())
    assert [one["steps"] for one in found] == [2, 2]
    assert set(found[0]["errors"]) == {"seen", "new"}
    assert (folder / "wer.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "PL-seed1" / "student" / "model.safetensors").is_file()


def test_a_sweep_goes_on_where_it_was_stopped(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of finished cells would be computed again, or a half one counted."""
    file = write_sweep(toys, tmp_path)
    assert main(["sweep", file]) == 0
    before = (tmp_path / "sweep" / "results.json").read_text()
    (tmp_path / "sweep" / "PL-seed1" / "result.json").unlink()  # as if killed while it was scored
    trained = []
    build = sweep.build_trainer
    monkeypatch.setattr(sweep, "build_trainer", lambda *parts: trained.append(parts[1].output_dir) or build(*parts))
    assert main(["sweep", file]) == 0
    assert [Path(folder).parent.name for folder in trained] == ["PL-seed1"]
    assert (tmp_path / "sweep" / "results.json").read_text() == before


def test_a_table_says_how_much_of_the_sweep_is_in_it(toys: Path, tmp_path: Path) -> None:
    """A sweep that was stopped in its first seed would claim the spread of three."""
    args = read_sweep(write_sweep(toys, tmp_path, seeds=[1, 2], cells={"PL": {"kl_weight": 0.0}}, minutes=0.01))
    results, said = [], []
    for result in sweep.run_sweep(args, plan_sweep(args)):
        results.append(result)
        sweep.save_sweep(args, results)
        said.append((tmp_path / "sweep" / "table.md").read_text().splitlines()[-1])
    time = "0.01 min of training for every cell"
    assert said == [f"one seed, {time}, 1 of 2 trainings.", f"2 seeds, mean ± standard deviation, {time}."]


def test_the_picture_of_a_sweep_in_noise_shows_the_noise(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report copies this picture alone: what the sweep was run for would be missing there."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    file = write_sweep(toys, tmp_path, snrs=[10.0, 0.0], seeds=[1, 2], cells={"PL": {"kl_weight": 0.0}})
    assert main(["sweep", file]) == 0
    averages, noise = drawn[-1].axes
    assert [text.get_text() for text in averages.get_xticklabels()] == ["PL"]
    assert noise.get_title() == "white noise"
    found = [one["noise"] for one in json.loads((tmp_path / "sweep" / "results.json").read_text())]
    (line,) = noise.lines
    assert line.get_xdata().tolist() == [10.0, 0.0]
    means = [sum(100 * WordErrors(**one[snr]).wer for one in found) / 2 for snr in ("10", "0")]
    assert line.get_ydata() == pytest.approx(means)
    assert [text.get_text() for text in noise.get_legend().get_texts()] == ["PL"]


def test_the_normaliser_of_the_recipe_scores(toys: Path, tmp_path: Path) -> None:
    """Digit strings would be one word in the English one, and half of the errors gone."""
    write_texts(Path(write_toy_corpus(tmp_path / "digits", train=1, test=2)), "one two three")
    recipe = change_recipe(toys, tmp_path, normalizer="basic")
    sets = {"digits": {"path": str(tmp_path / "digits"), "split": "test"}}
    settings = {"recipe": recipe, "eval_datasets": sets, "ood_datasets": {}, "snrs": [10.0], "cells": {"PL": {}}}
    assert main(["sweep", write_sweep(toys, tmp_path, **settings)]) == 0
    (found,) = json.loads((tmp_path / "sweep" / "results.json").read_text())
    student, processor = (load(tmp_path / "sweep" / "PL-seed1" / "student") for load in (load_model, load_processor))
    rows, basic = load_source(str(tmp_path / "digits"), split="test"), get_normalizer("basic")
    clean = evaluate_model(student, rows, processor, normalizer=basic).errors
    assert clean.num_words == 6
    assert found["errors"]["digits"] == vars(clean)
    (noisy,) = evaluate_in_noise(student, rows, processor, snrs=[10.0], normalizer=basic).values()
    assert found["noise"]["10"] == vars(noisy.errors)


def test_a_stream_is_trained_on_and_its_size_left_open(toys: Path, tmp_path: Path) -> None:
    """Its rows are nowhere counted: the first training would be lost over a column of the table."""
    (tmp_path / "stream").mkdir()
    load_source(str(toys / "corpus"), split="train").to_parquet(str(tmp_path / "stream" / "train.parquet"))
    source = {"path": str(tmp_path / "stream"), "transcript_column": "text"}
    recipe = change_recipe(toys, tmp_path, streaming=True, train_dataset=source)
    file = write_sweep(toys, tmp_path, recipe=recipe, cells={"PL + KL": {}}, columns=["hours", "dropped", "steps"])
    assert main(["sweep", file]) == 0
    assert "| PL + KL | - | - | 2 |" in (tmp_path / "sweep" / "table.md").read_text()


def test_null_takes_a_setting_of_the_recipe_away(toys: Path, tmp_path: Path) -> None:
    """A filter of "None", a language of "None": what was to be without them would not begin."""
    source = {"path": str(toys / "corpus"), "transcript_column": "text", "wer_threshold": 0.1}
    recipe = change_recipe(toys, tmp_path, train_dataset=source, normalizer="basic")
    grid = {"train_dataset.wer_threshold": [None, 0.05], "normalizer": [None]}
    cells = sweep_cells(read_sweep(write_sweep(toys, tmp_path, grid=grid, cells={})))
    parsed = [cell.arguments(recipe) for cell in cells]
    assert [training.train_dataset.wer_threshold for training, _ in parsed] == [None, 0.05]
    assert [training_args.normalizer for _, training_args in parsed] == [None, None]


def test_the_plan_says_what_room_the_encoder_states_take(toys: Path, tmp_path: Path) -> None:
    """2 cells of one encoder hear 6 rows, clean and at 2 ratios, and 1 row more: 16 numbers of 4 bytes a frame."""
    cells = {"PL": {"kl_weight": 0.0}, "PL + KL": {}}
    args = read_sweep(write_sweep(toys, tmp_path, snrs=[10.0, 0.0], cells=cells))
    size = (6 * 3 + 1) * 1500 * 16 * 4 / 1e6
    assert plan_sweep(args).figures["encoder states"].startswith(f"{size:.0f} MB in {tmp_path}/sweep/states")
    trained = read_sweep(write_sweep(toys, tmp_path, cells={"trained": {"freeze_encoder": False}}))
    assert "encoder states" not in plan_sweep(trained).figures


def test_a_cell_of_other_data_or_weights_is_refused(toys: Path, tmp_path: Path) -> None:
    """All of it may change at the same place: the table would mix both without a word."""
    shutil.copytree(toys / "teacher", tmp_path / "teacher")
    shutil.copytree(toys / "corpus", tmp_path / "corpus")
    source = {"path": str(tmp_path / "corpus"), "transcript_column": "text"}
    facts = {"train_dataset": source, "teacher_model_name_or_path": str(tmp_path / "teacher")}
    seen = {"path": str(tmp_path / "corpus"), "split": "train"}
    settings = {"cells": {"PL": {}}, "eval_datasets": {"seen": seen}, "ood_datasets": {}}

    def refused(recipe: dict[str, object], **changes: object) -> str:
        file = change_recipe(toys, tmp_path, **facts, **recipe)
        args = read_sweep(write_sweep(toys, tmp_path, recipe=file, **{**settings, **changes}))
        return "\n".join(plan_sweep(args).problems)

    args = read_sweep(write_sweep(toys, tmp_path, recipe=change_recipe(toys, tmp_path, **facts), **settings))
    list(sweep.run_sweep(args, plan_sweep(args)))
    assert refused({"output_dir": "elsewhere", "seed": 7}) == ""  # a cell has its own
    assert "settings or data (recipe.learning_rate)" in refused({"learning_rate": 0.5})
    fewer = {"seen": {**seen, "max_samples": 2}}
    assert "(sets.seen.max_samples, sets.seen.rows)" in refused({}, eval_datasets=fewer)
    write_toy_model(tmp_path / "teacher", seed=1)
    assert "settings or data (teacher_weights)" in refused({})
    write_texts(tmp_path / "corpus", "Said by another teacher.")
    assert "settings or data (sets.seen.rows, teacher_weights, training_rows)" in refused({})


def test_the_relative_latency_is_the_teachers_time_over_the_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upside down, a student would be as slow as it is fast; and a broken file would end a cell after its training."""
    timed: list[tuple[str | None, int]] = []

    def one_second_a_layer(model: WhisperForConditionalGeneration, batches: object, **settings: object) -> object:
        windows = sum(len(batch) for batch in batches)
        timed.append((settings["language"], windows))
        return float(model.config.decoder_layers * windows), [1] * windows

    monkeypatch.setattr(latency_grid, "timed_pass", one_second_a_layer)
    corpus = write_toy_corpus(tmp_path / "corpus", train=12)
    spoil(corpus, row=1)
    rows, (student, teacher) = load_source(corpus), (toy_whisper(decoder_layers=layers) for layers in (1, 4))
    errors = evaluate_model(student, rows, toy_processor(), max_new_tokens=1).row_errors
    heard = sweep.readable(rows, errors)
    assert heard["id"] == [rows["id"][number] for number in (0, *range(3, 10))]
    assert sweep.relative_latency(student, teacher, toy_processor(), heard, "en") == 4.0
    assert timed == [("en", 1)] * 2 + [("en", sweep.LATENCY_WINDOWS)] * 2 * 5


def test_the_column_of_relative_latencies_is_filled_despite_a_broken_file(toys: Path, tmp_path: Path) -> None:
    corpus = write_toy_corpus(tmp_path / "corpus", train=4)
    spoil(corpus, row=0)
    settings = {"eval_datasets": {"seen": {"path": corpus, "split": "train"}}, "columns": ["relative_latency"]}
    assert main(["sweep", write_sweep(toys, tmp_path, cells={"PL": {}}, **settings)]) == 0
    assert json.loads((tmp_path / "sweep" / "results.json").read_text())[0]["relative_latency"] > 0


def test_other_settings_are_refused_before_anything_is_deleted(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table must not hold cells of two recipes."""
    assert main(["sweep", write_sweep(toys, tmp_path, cells={"PL": {"kl_weight": 0.0}})]) == 0
    changed = write_sweep(toys, tmp_path, cells={"PL": {"kl_weight": 0.0, "learning_rate": 0.5}})
    assert main(["sweep", changed]) == 2
    assert "other settings or data (flags.learning_rate)" in capsys.readouterr().err
    assert (tmp_path / "sweep" / "PL-seed1" / "result.json").is_file()


def test_every_cell_is_checked_before_the_first_training(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third cell's spelling mistake would show after two hours."""
    cells = {"PL": {}, "typo": {"kl_wieght": 0.0}, "layers": {"decoder_layers": 99}}
    assert main(["sweep", write_sweep(toys, tmp_path, cells=cells)]) == 2
    error = capsys.readouterr().err
    assert "cell 'typo'" in error
    assert "did you mean '--kl_weight'" in error
    assert "cell 'layers'" in error
    assert not (tmp_path / "sweep").exists()


def test_cells_hear_the_sets_once_and_score_as_without_a_cache(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hearing takes most of the time of scoring a student: every cell would pay for what the first knows."""
    heard = []
    encode = encoder_cache.encode

    def counted(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
        heard.append(len(input_features))
        return encode(model, input_features)

    monkeypatch.setattr(encoder_cache, "encode", counted)
    assert main(["sweep", write_sweep(toys, tmp_path, snrs=[10.0])]) == 0
    rows = load_source(str(toys / "corpus"), split="train")
    assert sum(heard) == len(rows) + len(rows)  # seen, of which new is one, and seen in noise, by the first cell alone
    folder = tmp_path / "sweep"
    assert not (folder / "states").exists()
    student, processor = load_model(folder / "PL-seed1" / "student"), load_processor(folder / "PL-seed1" / "student")
    plain = evaluate_model(student, rows, processor).errors
    assert json.loads((folder / "results.json").read_text())[0]["errors"]["seen"] == vars(plain)


def test_a_cell_that_trains_its_encoder_is_heard_by_itself(toys: Path, tmp_path: Path) -> None:
    """States of another encoder would be scored as if they were its own."""
    cells = {"frozen": {}, "trained": {"freeze_encoder": False, "learning_rate": 0.01}}
    assert main(["sweep", write_sweep(toys, tmp_path, cells=cells)]) == 0
    folder = tmp_path / "sweep"
    student, processor = (load(folder / "trained-seed1" / "student") for load in (load_model, load_processor))
    plain = evaluate_model(student, load_source(str(toys / "corpus"), split="train"), processor).errors
    assert json.loads((folder / "results.json").read_text())[1]["errors"]["seen"] == vars(plain)


def test_a_cell_of_lora_leaves_a_whole_student(toys: Path, tmp_path: Path) -> None:
    """Weights with adapters among them load as nothing but noise."""
    cells = {"LoRA": {"lora": {"r": 2}}}
    assert main(["sweep", write_sweep(toys, tmp_path, cells=cells, columns=["parameters"])]) == 0
    folder = tmp_path / "sweep"
    student = load_model(folder / "LoRA-seed1" / "student")
    assert json.loads((folder / "results.json").read_text())[0]["parameters"] == student.num_parameters()


def test_cells_of_equal_time_train_for_it(toys: Path, tmp_path: Path) -> None:
    file = write_sweep(toys, tmp_path, minutes=0.02, grid={"train_dataset.share": [0.5, 1.0]}, cells={})
    assert main(["sweep", file]) == 0
    found = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [one["cell"] for one in found] == ["0.5", "1.0"]
    assert all(one["steps"] > 2 for one in found)
    assert found[0]["rows"] < found[1]["rows"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": ["hour"]}, "did you mean 'hours'"),
        ({"minutes": 0.0}, "minutes: expected more than 0"),
        ({"cells": {}}, "neither"),
        ({"grid": {"seed": 3}, "cells": {}}, "grid.seed"),
        ({"recipe": None}, "--recipe is missing"),
        ({"ood_datasets": {"seen": "x"}}, "'seen' is also the name"),
        ({"seeds": [42, 42]}, "--seeds: expected at least one, and each once, got [42, 42]"),
        ({"snrs": [10.0, 200.0]}, "--snrs: `snrs`: expected a ratio from -100 to 100 dB, got 200"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, words: str
) -> None:
    assert main(["sweep", write_sweep(toys, tmp_path, **changes)]) == 2
    assert words in capsys.readouterr().err


def test_a_sweep_without_a_seed_is_none() -> None:
    with pytest.raises(InputError, match="--seeds: expected at least one"):
        SweepArguments(seeds=[])
