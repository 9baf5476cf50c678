"""All scripts: public names only, wrong input refused, nothing compared under two normalisers, names that differ."""

import ast
import importlib
from pathlib import Path

import pytest
from toy_scripts import Refused

import hf_distil_whisper
from hf_distil_whisper import save_checkpoint
from tables import short_names
from talking_models import multilingual_whisper
from toy_files import write_toy_model
from toy_models import toy_processor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: path.stem)
def test_only_public_names_are_imported(path: Path) -> None:
    """A script on private names breaks with the next change of structure, when nobody runs it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_distil_whisper":
            for name in (alias.name for alias in node.names):
                assert not any(part.startswith("_") for part in (*node.module.split("."), name))
                at_top = node.module == "hf_distil_whisper"
                assert at_top == (name in hf_distil_whisper.__all__), f"import {name} from the top level"
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


PAIR = "--model_name_or_path {toys}/student --teacher_model_name_or_path {toys}/teacher --dataset {toys}/corpus "
MODEL = "--model_name_or_path {toys}/teacher --dataset {toys}/corpus "
TEACHER = "--teacher_model_name_or_path {toys}/teacher --dataset {toys}/corpus "
ASSISTED = "--model_name_or_path {toys}/teacher --assistants {toys}/student --dataset {toys}/corpus --dry_run "


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("latency", PAIR + "--samples 0", "--samples: expected whole numbers above 0, got 0"),
        ("latency", PAIR + "--batch_sizes 1 0", "--batch_sizes: expected whole numbers above 0, got [1, 0]"),
        ("latency", PAIR + "--attn_implementations flash", "expected some of sdpa, eager, flash_attention_2"),
        ("latency", PAIR + "--num_tokens 900", "can write 1 to"),
        ("latency", PAIR + "--language de", "--language: "),
        ("latency", PAIR + "--dataset.split none", "no split 'none'"),
        ("latency", "--dataset {toys}/corpus", "--model_name_or_path is missing"),
        ("exports", MODEL + "--exports onnx", "--exports: expected a format and a quantization (ctranslate2/ float32"),
        ("exports", MODEL + "--exports ggml/int8", "got 'ggml/int8'"),
        ("memory", "", "--model_name_or_path is missing"),
        ("memory", "--model_name_or_path toy --minutes 5 5", "--minutes: expected different lengths"),
        ("memory", "--model_name_or_path toy --temperature_fallback", "belongs to --method sequential"),
        ("speculative", ASSISTED + "--samples 0", "--samples: expected whole numbers above 0, got 0"),
        ("speculative", ASSISTED + "--draft_lengths 2 0", "--draft_lengths: expected whole numbers above 0"),
        ("speculative", MODEL + "--draft_lengths 2", "--assistants is missing"),
        ("speculative", MODEL + "--long_form_dataset {toys}/corpus", "--assistants is missing"),
        ("speculative", ASSISTED + "--assistants nowhere", "nowhere"),
        ("speculative", ASSISTED + "--assistants {other}", "4000 tokens"),  # its drafts would mean other words
        ("speculative", ASSISTED + "--language de", "--language"),
        ("labelling", TEACHER + "--rows 0", "--rows: expected whole numbers above 0, got 0"),
        ("labelling", TEACHER + "--rows 4000", "4000 were asked for"),
        ("labelling", "data --rows 9 --fewer_rows 9", "more than 0 and less than 9, got 9"),
        ("training_step", "--longest 500", "expected 1 <= shortest <= longest <= 447"),
        ("training_step", "--rounds 0", "--rounds: expected whole numbers above 0, got 0"),
        ("noise", PAIR + "--snrs 10 300", "`--snrs`: expected a ratio from -100 to 100 dB, got 300"),
        ("noise", PAIR + "--noises nowhere.wav", "--noises: nowhere.wav: no such file"),
        ("noise", PAIR + "--noises babble", "--babble_dataset: "),
        ("noise", PAIR + "--babble_dataset corpus", "--babble_dataset: "),
        ("noise", PAIR + "--batch_size 0", "--batch_size: expected whole numbers above 0, got 0"),
        ("noise", PAIR + "--model_name_or_path nowhere", "nowhere"),
        ("noise", PAIR + "--dataset=", "--dataset is missing"),
        ("noise", PAIR + "--output_dir {toys}", "holds another run already"),
        # The last of 20 settings would fail after the night.
        ("chunk_length", PAIR + "--chunk_lengths 10 40", "--chunk_lengths, --strides: `chunk_length` is 40"),
        ("chunk_length", PAIR + "--chunk_lengths 30 4 --strides 0 2", "--chunk_lengths, --strides: `stride` is 2"),
        ("algorithms", PAIR + "--repeats 0", "--repeats: expected whole numbers above 0, got 0"),
        ("ctc", "--model_name_or_path ctc --dataset {toys}/corpus", "--language is missing"),
        ("early_exit", MODEL + "--thresholds 1.5", "--thresholds: expected numbers from 0 to 1"),
    ],
)
def test_wrong_flags_are_refused(
    script: str, flags: str, message: str, toys: Path, tmp_path: Path, refused: Refused
) -> None:
    other = write_toy_model(tmp_path / "other", vocab_size=4000) if "{other}" in flags else None
    refused(importlib.import_module(script).main, flags.format(toys=toys, other=other).split(), message)


@pytest.mark.parametrize("script", ["noise", "chunk_length", "algorithms", "report"])
def test_a_multilingual_model_is_scored_in_a_language_that_is_named(
    script: str, toys: Path, tmp_path: Path, refused: Refused
) -> None:
    """What counts as an error depends on it."""
    save_checkpoint(multilingual_whisper(), toy_processor(), tmp_path / "multilingual")
    main = importlib.import_module(script).main
    models = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path"]
    argv = [*models, str(tmp_path / "multilingual"), "--dataset", str(toys / "corpus")]
    if script == "report":
        names = f"{{teacher: {tmp_path / 'multilingual'}, student: {toys / 'student'}}}"
        argv = ["--models", names, "--eval_datasets", str(toys / "corpus"), "--output_dir", str(tmp_path / "out")]
    refused(main, argv, "--language is missing: ")
    refused(main, [*argv, "--language", "klingon"], "--language: ")
    main([*argv, "--normalizer", "basic", "--dry_run"])


def test_short_names_are_as_long_as_it_takes_to_be_different(tmp_path: Path) -> None:
    """With two models under one name, the second replaces the first in the table."""
    paths = ["openai/whisper-tiny.en", "runs/a/student", "runs/b/student/", "/mnt/a/student", "."]
    names = ["whisper-tiny.en", "runs/a/student", "b/student", "mnt/a/student", "."]
    assert short_names(paths) == dict(zip(names, paths, strict=True))
    assert list(short_names(["teacher", "runs/teacher", "teacher"])) == ["teacher", "runs/teacher"]
    files = [str(tmp_path / name) for name in ("pub.flac", "street.wav", "street.flac")]
    for file in files[1:]:
        Path(file).touch()
    assert list(short_names(files[:2])) == ["pub.flac", "street"]  # the name of a missing file stays whole
    assert list(short_names(files[1:])) == files[1:]
