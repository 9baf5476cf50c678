"""Recipes and flags: how their text becomes values, dataclasses and help."""

import re
from dataclasses import dataclass, fields, replace

import pytest
from transformers import Seq2SeqTrainingArguments

from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    as_sources,
    find_recipe,
    parse_arguments,
    parse_yaml,
    recipe_names,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.train import TrainArguments
from hf_distil_whisper.training.args import DistillationTrainingArguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, 1e-4) for text in ("1e-4", "1.0e-4")),
        *((text, text) for text in ("no", "off", "yes", "12:30", "2024-01-01", "010")),
        *(("-.5", -0.5), ("80_000", 80_000), ("true", True), ("~", None), ("", None)),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    """YAML 1.1 reads a learning rate of 1e-4 as text, Norwegian as False and 12:30 as 750."""
    assert (parse_yaml(text), type(parse_yaml(text))) == (value, type(value))


def test_recipes_have_a_name_or_a_path(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("max_steps: 1\n")
    assert find_recipe(str(recipe)) == recipe
    assert find_recipe("distil-large-v3").name == "distil-large-v3.yaml"
    assert "distil-medium.en" in recipe_names()
    with pytest.raises(InputError, match="did you mean 'distil-large-v3'"):
        find_recipe("distil-large-v33")
    with pytest.raises(InputError, match=r"missing\.yaml: there is no such recipe file"):
        find_recipe("missing.yaml")


@dataclass
class Arguments:
    """One setting of each kind."""

    train_dataset: DataSource | str | None = source_setting("x")
    eval_datasets: dict[str, DataSource] | str | None = source_setting("x")
    layers: list[int] | None = setting(None, "x")
    language: str | None = setting(None, "x")
    pack: bool = setting(True, "x")
    threshold: float = setting(0.1, "x")
    dry_run: bool = setting(False, "x")

    def __post_init__(self) -> None:
        self.train_dataset = as_source(self.train_dataset, "train_dataset")
        self.eval_datasets = as_sources(self.eval_datasets, "eval_datasets")


RECIPE = """
train_dataset: {path: corpus, wer_threshold: 0.1}
eval_datasets:
  test: corpus
  noisy: {path: noise, split: dev}
layers: [0, -1]
language: no
pack: off
threshold: 2e-1
"""
CORPUS = DataSource("corpus", wer_threshold=0.1)
TEST, NOISY = DataSource("corpus", split="test"), DataSource("noise", split="dev")
OF_RECIPE = Arguments(CORPUS, {"test": TEST, "noisy": NOISY}, [0, -1], "no", pack=False, threshold=0.2)


def parse(*argv: str) -> Arguments:
    (arguments,) = parse_arguments(Arguments, argv=argv)
    return arguments


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ("", {}),
        (
            "--language de --layers 1 --pack --threshold=0.3",
            {"language": "de", "layers": [1], "pack": True, "threshold": 0.3},
        ),
        ("--language=null", {"language": None}),
        (
            "--language null --train_dataset.wer_threshold null --train_dataset.split dev",
            {"language": None, "train_dataset": DataSource("corpus", split="dev")},
        ),
        (
            "--eval_datasets.test.max_samples=5",
            {"eval_datasets": {"test": replace(TEST, max_samples=5), "noisy": NOISY}},
        ),
    ],
)
def test_a_recipe_fills_every_kind_of_field_and_flags_win(tmp_path, flags, changes):
    """A value that keeps YAML's type instead of the field's fails hours later, and a language "null" is none."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert parse(str(tmp_path / "recipe.yaml"), *flags.split()) == replace(OF_RECIPE, **changes)


@pytest.mark.parametrize(
    "flags", ["--train_dataset corpus --train_dataset.split dev", "--train_dataset.split dev --train_dataset corpus"]
)
def test_a_dataset_is_a_path_with_keys_or_yaml_text(flags):
    """The plain flag replaced the whole mapping, and the split was lost."""
    arguments = parse(*flags.split(), "--eval_datasets", "{test: {path: corpus, max_samples: 3}}")
    assert arguments.train_dataset == DataSource("corpus", split="dev")
    assert arguments.eval_datasets == {"test": replace(TEST, max_samples=3)}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        # PyYAML keeps the last of two values, so that an edited line above it has no effect.
        ("threshold: 1\nthreshold: 2", "'threshold' is given twice"),
        ("- max_steps", "expected `key: value` lines, got list"),
        ("langage: de", "unknown key 'langage' (did you mean 'language'?)"),
        ("layers: [a]", "invalid int value: 'a'"),
        ("threshold: high", "invalid float value: 'high'"),
        ("train_dataset: {path: x, splt: dev}", "train_dataset: unknown key 'splt' (did you mean 'split'?)"),
        ("train_dataset: {split: dev}", "train_dataset: the key 'path' is missing"),
        ("train_dataset: {path: x, max_samples: 0}", "train_dataset.max_samples: expected a whole number above 0"),
        ("train_dataset: {path: x, share: 2}", "train_dataset.share: expected a fraction of the rows"),
        ("train_dataset: {path: x, wer_threshold: ten}", "train_dataset.wer_threshold: expected a fraction"),
        ("train_dataset: {path: x, wer_threshold: 10}", "train_dataset.wer_threshold: expected a fraction up to 1"),
        ("train_dataset: {path: x, unit: words}", 'train_dataset.unit: expected "word" or "character"'),
        ("eval_datasets: [a]", "eval_datasets: expected a mapping of names to datasets"),
        ("eval_datasets: {test: null}", "eval_datasets.test: expected a path or a mapping with the key 'path'"),
    ],
)
def test_wrong_lines_name_file_and_key(tmp_path, lines, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(lines + "\n")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        parse(str(path))
    assert str(path) in str(error.value)


def test_training_arguments_are_converted_as_well(tmp_path):
    """`save_strategy: no` arrives as False and `learning_rate: 1e-4` as text when YAML 1.1 reads them."""
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-4\nsave_strategy: no\nlr_scheduler_kwargs: {num_cycles: 2}\nbf16: true\n")
    # A dry run needs no accelerator: TrainingArguments refuses bf16 on a login node.
    argv = [str(path), "--max-steps", "3", "--dry_run"]
    _, training = parse_arguments(Arguments, Seq2SeqTrainingArguments, argv=argv)
    assert (training.learning_rate, training.save_strategy, training.max_steps) == (1e-4, "no", 3)
    assert (training.lr_scheduler_kwargs, training.bf16) == ({"num_cycles": 2}, True)


def test_the_help_of_train_shows_our_flags_sorted_before_those_of_the_trainer(capsys):
    """166 flags in the order of their fields bury `--train_dataset` under those of transformers."""
    with pytest.raises(SystemExit):
        parse_arguments(TrainArguments, DistillationTrainingArguments, argv=["--help"])
    text = capsys.readouterr().out
    ours, trainers = text.split("Trainer (transformers.Seq2SeqTrainingArguments):")
    headings = [line for line in ours.splitlines() if line.endswith(":") and not line.startswith(" ")]
    keys = "keys of a dataset (--<flag>.<key> value)"
    assert headings == ["options:", *(f"{heading}:" for heading in [*TrainArguments.flag_groups, keys])]
    inherited = {item.name for item in fields(Seq2SeqTrainingArguments)}
    of_training = {item.name for item in fields(DistillationTrainingArguments)}
    grouped = [name for names in TrainArguments.flag_groups.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert {item.name for item in fields(TrainArguments)} | of_training - inherited <= set(grouped)
    assert "--learning_rate float" in trainers
    assert "  wer_threshold " in ours
    assert "(default: None)" not in text
    assert "--no_" not in text
