"""Recipes and flags: how their text becomes values, dataclasses and help."""

import dataclasses
from dataclasses import dataclass

import pytest
from transformers import Seq2SeqTrainingArguments

from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    as_sources,
    find_recipe,
    load_recipe,
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
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-.5", -0.5),
        ("80_000", 80_000),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("010", "010"),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    """YAML 1.1 reads a learning rate of 1e-4 as text, Norwegian as False and 12:30 as 750."""
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps: 1\nmax_steps: 2\n", r"recipe\.yaml.*'max_steps' is given twice"),
        ("- max_steps\n", "expected `key: value` lines, got list"),
    ],
)
def test_a_recipe_holds_every_key_once(tmp_path, text, message):
    """PyYAML keeps the last of two values, so that an edited line above it has no effect."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(recipe)


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


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "train_dataset: {path: corpus, wer_threshold: 0.1}\n"
        "eval_datasets:\n  test: corpus\n  noisy: {path: noise, split: dev}\n"
        "layers: [0, -1]\nlanguage: no\npack: off\nthreshold: 2e-1\n"
    )
    return str(path)


def parse(*argv: str) -> Arguments:
    (arguments,) = parse_arguments(Arguments, argv=argv)
    return arguments


def test_a_recipe_fills_every_kind_of_field(recipe):
    """A value that keeps YAML's type instead of the field's fails hours later, or is compared as text."""
    assert parse(recipe) == Arguments(
        train_dataset=DataSource("corpus", wer_threshold=0.1),
        eval_datasets={"test": DataSource("corpus", split="test"), "noisy": DataSource("noise", split="dev")},
        layers=[0, -1],
        language="no",
        pack=False,
        threshold=0.2,
    )


def test_flags_win_over_the_recipe(recipe):
    arguments = parse(recipe, "--language", "de", "--layers", "1", "--pack", "--threshold=0.3")
    assert (arguments.language, arguments.layers, arguments.pack, arguments.threshold) == ("de", [1], True, 0.3)


@pytest.mark.parametrize("null", [["--language=null"], ["--language", "null"]])
def test_null_removes_a_value_of_the_recipe(recipe, null):
    """A language called "null" is none that a model knows."""
    arguments = parse(recipe, *null, "--train_dataset.wer_threshold", "null", "--threshold", "0.3")
    assert (arguments.language, arguments.train_dataset.wer_threshold, arguments.threshold) == (None, None, 0.3)


def test_a_dotted_flag_replaces_one_key_of_a_dataset(recipe):
    arguments = parse(recipe, "--train_dataset.split", "dev", "--eval_datasets.test.max_samples=5")
    assert arguments.train_dataset == DataSource("corpus", split="dev", wer_threshold=0.1)
    assert arguments.eval_datasets["test"] == DataSource("corpus", split="test", max_samples=5)
    assert arguments.eval_datasets["noisy"].split == "dev"


@pytest.mark.parametrize("order", [1, -1])
def test_a_dataset_and_one_of_its_keys_go_together(order):
    """The plain flag replaced the whole mapping, and the split was lost."""
    flags = [["--train_dataset", "corpus"], ["--train_dataset.split", "dev"]][::order]
    assert parse(*flags[0], *flags[1]).train_dataset == DataSource("corpus", split="dev")


def test_a_dataset_may_be_given_as_yaml_text():
    arguments = parse("--eval_datasets", "{test: {path: corpus, max_samples: 3}}")
    assert arguments.eval_datasets == {"test": DataSource("corpus", split="test", max_samples=3)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("langage: de", "unknown key 'langage' (did you mean 'language'?)"),
        ("layers: [a]", "invalid int value: 'a'"),
        ("threshold: high", "invalid float value: 'high'"),
        ("train_dataset: {path: x, splt: dev}", "train_dataset: unknown key 'splt' (did you mean 'split'?)"),
        ("train_dataset: {split: dev}", "train_dataset: the key 'path' is missing"),
        ("train_dataset: {path: x, max_samples: 0}", "train_dataset.max_samples: expected a whole number above 0"),
        ("train_dataset: {path: x, share: 2}", "train_dataset.share: expected a fraction of the rows"),
        ("train_dataset: {path: x, wer_threshold: ten}", "train_dataset.wer_threshold: expected a fraction"),
        ("train_dataset: {path: x, wer_threshold: 10}", "train_dataset.wer_threshold: expected a fraction up to 1"),
        ("eval_datasets: [a]", "eval_datasets: expected a mapping of names to datasets"),
        ("eval_datasets: {test: null}", "eval_datasets.test: expected a path or a mapping with the key 'path'"),
    ],
)
def test_a_wrong_line_names_file_and_key(tmp_path, line, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(line + "\n")
    with pytest.raises(InputError) as error:
        parse(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_an_unknown_flag_names_the_nearest_one():
    with pytest.raises(InputError, match=r"unknown argument '--langage' \(did you mean '--language'"):
        parse("--langage", "de")


def test_training_arguments_are_converted_as_well(tmp_path):
    """`save_strategy: no` arrives as False and `learning_rate: 1e-4` as text when YAML 1.1 reads them."""
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-4\nsave_strategy: no\nlr_scheduler_kwargs: {num_cycles: 2}\nuse_cpu: true\n")
    _, training = parse_arguments(Arguments, Seq2SeqTrainingArguments, argv=[str(path), "--max-steps", "3"])
    assert (training.learning_rate, training.save_strategy, training.max_steps) == (1e-4, "no", 3)
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_dry_run_needs_no_accelerator_for_a_bf16_recipe():
    """TrainingArguments refuses bf16 where there is no GPU, and a recipe could not be checked on a login node."""
    _, training = parse_arguments(Arguments, Seq2SeqTrainingArguments, argv=["--bf16", "--dry_run"])
    assert training.bf16


def test_the_help_of_train_shows_our_flags_sorted_before_those_of_the_trainer(capsys):
    """166 flags in the order of their fields bury `--train_dataset` under those of transformers."""
    with pytest.raises(SystemExit):
        parse_arguments(TrainArguments, DistillationTrainingArguments, argv=["--help"])
    text = capsys.readouterr().out
    ours, trainers = text.split("Trainer (transformers.Seq2SeqTrainingArguments):")
    headings = [line for line in ours.splitlines() if line.endswith(":") and not line.startswith(" ")]
    keys = "keys of a dataset (--<flag>.<key> value)"
    assert headings == ["options:", *(f"{heading}:" for heading in [*TrainArguments.flag_groups, keys])]
    inherited = {item.name for item in dataclasses.fields(Seq2SeqTrainingArguments)}
    of_training = {item.name for item in dataclasses.fields(DistillationTrainingArguments)}
    grouped = [name for names in TrainArguments.flag_groups.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert {item.name for item in dataclasses.fields(TrainArguments)} | of_training - inherited <= set(grouped)
    assert "--learning_rate float" in trainers
    assert "  wer_threshold " in ours
    assert "(default: None)" not in text
    assert "--no_" not in text
