"""The recipes in configs/: their keys, their headings, and the values that are the paper's."""

import dataclasses
import re
import shlex
from itertools import chain, takewhile
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from hf_distil_whisper.cli.config import (
    Corpus,
    InputError,
    as_source,
    as_training_sources,
    load_corpora,
    load_recipe,
    parse_arguments,
)
from hf_distil_whisper.cli.create_student import CreateStudentArguments
from hf_distil_whisper.cli.evaluate import EvaluateArguments
from hf_distil_whisper.cli.filter import FilterArguments
from hf_distil_whisper.cli.pseudo_label import PseudoLabelArguments
from hf_distil_whisper.cli.push import PushArguments
from hf_distil_whisper.cli.train import TrainArguments
from hf_distil_whisper.cli.transcribe import TranscribeArguments
from hf_distil_whisper.training.args import DistillationTrainingArguments
from latency import LatencyArguments
from report import ReportArguments
from sweep import SweepArguments, sweep_cells

CONFIGS = Path(__file__).parents[1] / "configs"
COMMANDS = {
    "create-student": (CreateStudentArguments,),
    "evaluate": (EvaluateArguments,),
    "filter": (FilterArguments,),
    "pseudo-label": (PseudoLabelArguments,),
    "train": (TrainArguments, DistillationTrainingArguments),
}


def each(pattern: str) -> pytest.MarkDecorator:
    """Runs a test for each of these files in configs/."""
    return pytest.mark.parametrize("path", sorted(CONFIGS.glob(pattern)), ids=lambda path: path.stem)


def parse(recipe: str) -> tuple[TrainArguments, DistillationTrainingArguments]:
    """A recipe as `train` reads it; on a CPU, where bf16 is refused otherwise."""
    args, training_args = parse_arguments(*COMMANDS["train"], argv=[recipe, "--use_cpu"])
    return args, training_args


def heading(path: Path) -> str:
    """The comment at the top of a file, without its marks."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return "\n".join(line.removeprefix("#") for line in lines)


@each("sweeps/*.yaml")
def test_every_cell_of_every_sweep_is_a_training(path: Path) -> None:
    """A flag that `train` does not know would fail after the cells before it."""
    (args,) = parse_arguments(SweepArguments, argv=[str(path)])
    assert f"python benchmarks/paper/sweep.py configs/sweeps/{path.name}" in heading(path)
    budgets = set()  # of all but a student that is its teacher: cells of unequal length say nothing of what varies
    for cell in sweep_cells(args):
        training, training_args = cell.arguments(args.recipe)
        if training_args.learning_rate:
            budgets.add((args.minutes, training_args.max_steps, training_args.num_train_epochs))
        assert training_args.seed == cell.seed
        assert training.train_dataset.path == "runs/quickstart/labelled"
    assert len(budgets) == 1


@each("reports/*.yaml")
def test_every_report_has_models_and_sets(path: Path) -> None:
    (args,) = parse_arguments(ReportArguments, argv=[str(path)])
    assert f"python benchmarks/paper/report.py configs/reports/{path.name}" in heading(path)
    assert list(args.models) == ["teacher", "student"]
    assert args.reference in args.eval_datasets


def test_the_corpora_of_the_paper_are_all_there() -> None:
    """Tables 2 and 4: nine to train on, AMI with both of its microphones, and eight to score on."""
    corpora = load_corpora()
    folder = CONFIGS / "corpora"
    training, evaluation = (list(load_recipe(folder / f"{name}.yaml")) for name in ("training", "evaluation"))
    assert len(training) == 9 + 1
    assert len(evaluation) == 8
    assert sum(corpora[name].hours for name in training if name != "ami-sdm") == 21_770
    assert {name for name in training if corpora[name].licence == "LDC"} == {"fisher", "switchboard"}


@pytest.mark.parametrize("corpus", load_corpora().values(), ids=lambda corpus: corpus.name)
def test_every_split_of_a_corpus_is_a_source(corpus: Corpus) -> None:
    """A column that is misspelt here fails after the download of a terabyte."""
    assert corpus.preparation.strip()
    for split in corpus.splits:
        source = as_source(f"corpus:{corpus.name}/{split}", "dataset")
        assert source.path == corpus.source["path"]
    first = as_source(f"corpus:{corpus.name}/{next(iter(corpus.splits))}", "dataset")
    assert as_source(f"corpus:{corpus.name}", "dataset") == first


def test_keys_beside_a_corpus_win_and_an_unknown_one_is_refused_with_those_that_exist() -> None:
    source = as_source({"path": "corpus:librispeech/test.other", "max_samples": 10, "text_column": None}, "dataset")
    assert (source.path, source.config, source.split) == ("openslr/librispeech_asr", "all", "test.other")
    assert (source.max_samples, source.text_column) == (10, None)
    with pytest.raises(InputError, match="no corpus 'librispech' \\(did you mean 'librispeech'\\?\\)"):
        as_source("corpus:librispech", "dataset")
    with pytest.raises(InputError, match=r"dataset: corpus fleurs has no split 'train'\. Splits: validation, test"):
        as_source("corpus:fleurs/train", "dataset")


@each("*.yaml")
def test_a_recipe_has_known_keys_and_is_headed_by_cost_and_commands_that_work(path: Path) -> None:
    """A command in a comment is copied by everyone and run by nobody who changes a flag."""
    args, training_args = parse(str(path))
    assert all(source.path for source in as_training_sources(args.train_dataset, "train_dataset").values())
    assert training_args.output_dir.startswith("runs/")
    text = heading(path).replace("\\\n", " ")
    assert "Cost" in text
    commands = re.findall(r"^.*?hf-distil-whisper (\S+) (.*)$", text, re.MULTILINE)
    assert ("train", path.stem) in commands
    for command, flags in commands:
        argv = shlex.split(re.sub(r"<[^>]*>", "placeholder", flags))
        parse_arguments(*COMMANDS[command], argv=argv + ["--use_cpu"] * (command == "train"))


SCRIPT = "distil-large-v3-script-weights"


@pytest.mark.parametrize("name", ["distil-medium.en", "distil-large-v2", "distil-large-v3", SCRIPT])
def test_the_large_recipes_hold_the_values_of_the_paper(name: str) -> None:
    """Table 15 and sections 4.1, 4.2, 7.2 and B.1; one has the weights of the reference script."""
    args, training = parse(name)
    assert args.teacher_model_name_or_path == name.replace("distil", "openai/whisper").removesuffix("-script-weights")
    assert ("script" in training.output_dir) == (name == SCRIPT)
    assert args.decoder_layers == 2
    assert args.train_dataset.wer_threshold == 0.1
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 256
    assert (training.max_steps, training.warmup_steps, training.eval_steps) == (80_000, 500, 5_000)
    assert (training.learning_rate, training.lr_scheduler_type) == (1e-4, "linear")
    assert (training.kl_weight, training.pl_weight) == ((1.0, 0.8) if name == SCRIPT else (0.8, 1.0))
    assert training.temperature == 2.0
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (training.max_grad_norm, training.weight_decay) == (1.0, 0.0)
    assert (training.bf16, training.freeze_encoder, training.timestamp_probability) == (True, True, 0.5)
    assert (training.metric_for_best_model, training.greater_is_better) == ("macro_wer", False)


def test_the_flags_that_replace_those_of_the_reference_scripts_exist() -> None:
    """A table for newcomers that names a flag of last year sends them to the source."""
    text = (CONFIGS.parent / "docs" / "from_reference_scripts.md").read_text()
    rows = re.findall(r"^\| [^|]* \| ([^|]*) \|$", text, re.MULTILINE)
    named = {flag for row in rows for flag in re.findall(r"--([a-z_0-9]+)", row)}
    kinds = [*chain(*COMMANDS.values()), TranscribeArguments, LatencyArguments, PushArguments]
    known = {item.name for kind in kinds for item in dataclasses.fields(kind)}
    assert len(named) > 30
    assert named <= known


@each("accelerate/*.yaml")
def test_accelerate_reads_its_configurations(path: Path) -> None:
    """`accelerate launch` stops at a key that it does not know, on the machine with the GPUs."""
    config = load_config_from_file(str(path))
    assert config.use_cpu == (path.stem == "cpu")
    assert (config.distributed_type == DistributedType.MULTI_GPU) == (config.num_processes > 1)
    assert config.mixed_precision == "no"
    assert f"configs/accelerate/{path.name} examples/run_distillation.py" in heading(path)
