"""Dataclasses out of recipes and flags."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import Seq2SeqTrainingArguments

from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    as_sources,
    parse_arguments,
    setting,
    short_names,
    source_setting,
)


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
        self.train_dataset = as_source(self.train_dataset, "train_dataset") if self.train_dataset else None
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


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def parse(*argv: str) -> Arguments:
    (arguments,) = parse_arguments(Arguments, argv=argv)
    return arguments


def test_a_recipe_fills_every_kind_of_field(recipe: str) -> None:
    """A value that keeps YAML's type instead of the field's fails hours later, or is compared as text."""
    arguments = parse(recipe)
    assert arguments == Arguments(
        train_dataset=DataSource("corpus", wer_threshold=0.1),
        eval_datasets={"test": DataSource("corpus", split="test"), "noisy": DataSource("noise", split="dev")},
        layers=[0, -1],
        language="no",
        pack=False,
        threshold=0.2,
    )


def test_flags_win_over_the_recipe(recipe: str) -> None:
    arguments = parse(recipe, "--language", "de", "--layers", "1", "--pack", "--threshold=0.3")
    assert (arguments.language, arguments.layers, arguments.pack, arguments.threshold) == ("de", [1], True, 0.3)


@pytest.mark.parametrize("null", [["--language=null"], ["--language", "null"]])
def test_null_takes_a_value_of_the_recipe_away(recipe: str, null: list[str]) -> None:
    """A language called "null" is none that a model knows."""
    found = parse(recipe, *null, "--train_dataset.wer_threshold", "null", "--threshold", "0.3")
    assert (found.language, found.train_dataset.wer_threshold, found.threshold) == (None, None, 0.3)


def test_a_dotted_flag_replaces_one_key_of_a_dataset(recipe: str) -> None:
    arguments = parse(recipe, "--train_dataset.split", "dev", "--eval_datasets.test.max_samples=5")
    assert arguments.train_dataset == DataSource("corpus", split="dev", wer_threshold=0.1)
    assert arguments.eval_datasets["test"] == DataSource("corpus", split="test", max_samples=5)
    assert arguments.eval_datasets["noisy"].split == "dev"


@pytest.mark.parametrize("dotted_first", [True, False])
def test_a_dataset_and_one_of_its_keys_go_together(dotted_first: bool) -> None:
    """The plain flag used to overrule the whole mapping, and the split was lost."""
    flags = [("--train_dataset", "corpus"), ("--train_dataset.split", "dev")]
    argv = [word for pair in (flags[::-1] if dotted_first else flags) for word in pair]
    assert parse(*argv).train_dataset == DataSource("corpus", split="dev")


def test_a_dataset_may_be_given_as_yaml_text() -> None:
    arguments = parse("--eval_datasets", "{test: {path: corpus, max_samples: 3}}")
    assert arguments.eval_datasets == {"test": DataSource("corpus", split="test", max_samples=3)}


def test_one_saved_dataset_is_read_whole_where_it_is_scored(tmp_path) -> None:
    """What `pseudo-label` writes has one split, so `eval_datasets: {test: folder}` would find no split "test"."""
    (tmp_path / "state.json").write_text("{}")
    assert as_source(str(tmp_path), "eval_datasets.test", split="test").split == "train"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("langage: de", "unknown key 'langage' (did you mean 'language'?)"),
        ("layers: [a]", "invalid int value: 'a'"),
        ("threshold: high", "invalid float value: 'high'"),
        ("train_dataset: {path: x, splt: dev}", "train_dataset: unknown key 'splt' (did you mean 'split'?)"),
        ("train_dataset: {split: dev}", "train_dataset: the key 'path' is missing"),
        ("train_dataset: {path: x, max_samples: 0}", "train_dataset.max_samples: expected a whole number above 0"),
        ("train_dataset: {path: x, wer_threshold: ten}", "train_dataset.wer_threshold: expected a fraction"),
        ("eval_datasets: [a]", "eval_datasets: expected a mapping of names to datasets"),
    ],
)
def test_a_wrong_line_names_file_and_key(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(line + "\n")
    with pytest.raises(InputError) as error:
        parse(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_an_unknown_flag_names_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"unknown argument '--langage' \(did you mean '--language'"):
        parse("--langage", "de")


def test_training_arguments_are_converted_as_well(tmp_path) -> None:
    """`save_strategy: no` arrives as False and `learning_rate: 1e-4` as text when YAML 1.1 reads them."""
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-4\nsave_strategy: no\nlr_scheduler_kwargs: {num_cycles: 2}\nuse_cpu: true\n")
    _, training = parse_arguments(Arguments, Seq2SeqTrainingArguments, argv=[str(path), "--max-steps", "3"])
    assert training.learning_rate == 1e-4
    assert training.save_strategy == "no"
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training.max_steps == 3


def test_a_dry_run_needs_no_accelerator_for_a_bf16_recipe() -> None:
    """TrainingArguments refuses bf16 where there is no GPU, and a recipe could not be checked on a login node."""
    _, training = parse_arguments(Arguments, Seq2SeqTrainingArguments, argv=["--bf16", "--dry_run"])
    assert training.bf16


def test_short_names_are_as_long_as_it_takes_to_tell_places_apart(tmp_path: Path) -> None:
    """Two models under one name: the second takes the place of the first, and nobody is told."""
    places = ["openai/whisper-tiny.en", "runs/a/student", "runs/b/student/", "/mnt/a/student", "."]
    assert short_names(places) == {
        "whisper-tiny.en": "openai/whisper-tiny.en",
        "runs/a/student": "runs/a/student",
        "b/student": "runs/b/student/",
        "mnt/a/student": "/mnt/a/student",
        ".": ".",
    }
    assert short_names(["teacher", "runs/teacher", "teacher"]) == {
        "teacher": "teacher",
        "runs/teacher": "runs/teacher",
    }
    files = [str(tmp_path / name) for name in ("pub.flac", "street.wav", "street.flac")]
    for file in files[1:]:
        Path(file).touch()
    assert list(short_names(files[:2])) == ["pub.flac", "street"]  # what is no file keeps all of its name
    assert list(short_names(files[1:])) == files[1:]
    assert short_names([]) == {}
