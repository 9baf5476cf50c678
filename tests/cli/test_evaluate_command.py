"""`evaluate` on toy models: tables and files, and what cannot be compared."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distil_whisper.checkpoints import save_checkpoint
from talking_models import multilingual_whisper
from toy_models import toy_processor

Command = Callable[..., str]


def test_student_and_teacher_are_scored_side_by_side(toys, tmp_path, printed):
    argv = ["--model_name_or_path", toys / "student", "--teacher_model_name_or_path", toys / "teacher"]
    argv += ["--eval_datasets.toy.path", toys / "corpus", "--long_form_datasets.long.path", toys / "corpus"]
    argv += ["--long_form_datasets.long.max_samples", 1, "--normalizer", "basic", "--output_dir", tmp_path / "out"]
    table = printed("evaluate", *argv)
    assert "WER %" in table
    assert "WER minus the teacher's" in table
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"toy", "long"}
    counts = results["toy"]["teacher"]
    assert counts["hits"] + counts["substitutions"] + counts["deletions"] == 18
    assert set(counts) >= {"character_hits", "orthographic_hits", "wer_interval", "rtf", "wall_seconds"}
    assert "against_teacher" in results["toy"]["model"]
    assert "against_teacher" not in counts
    assert len(Dataset.from_parquet(str(tmp_path / "out" / "toy.model.parquet"))) == 2
    assert "REF:" in (tmp_path / "out" / "toy.model.worst.txt").read_text()


def test_more_models_and_sets_out_of_distribution_are_grouped(toys, tmp_path, printed):
    """Each figure of a comparison is to come from the same rows and normaliser."""
    corpus = toys / "corpus"
    argv = ["evaluate", "--model_name_or_path", toys / "student", "--eval_datasets.read", corpus]
    argv += ["--other_models.small", toys / "teacher", "--ood_datasets.spoken.path", corpus]
    argv += ["--ood_datasets.spoken.max_samples", 1, "--long_form_datasets.long", corpus]
    argv += ["--ood_long_form_datasets.longer", corpus]
    table = printed(*argv, "--language", "en", "--output_dir", tmp_path / "out")
    assert table.index("in distribution:") < table.index("out of distribution:") < table.index("long form:")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    groups = {name: {row["group"] for row in by_model.values()} for name, by_model in results.items()}
    assert groups == {
        "read": {"in distribution"},
        "spoken": {"out of distribution"},
        "long": {"long form"},
        "longer": {"long form out of distribution"},
    }
    averages = json.loads((tmp_path / "out" / "averages.json").read_text())["averages"]
    assert averages["long form, all sets"]["model"]["macro"] == results["long"]["model"]["wer"]
    assert "| small | " in (tmp_path / "out" / "long_form.md").read_text()
    for by_model in results.values():
        assert list(by_model) == ["model", "small"]
        words = [row["hits"] + row["substitutions"] + row["deletions"] for row in by_model.values()]
        assert words[0] == words[1] > 0


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multilingual")
    save_checkpoint(multilingual_whisper(), toy_processor(), folder / "model")
    return folder / "model"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ood_datasets.toy", "CORPUS"], "two sets are called 'toy'"),
        (["--reference", "other"], "--reference: 'other' is not among --eval_datasets, which are toy"),
        (["--reference", "toy"], "give it and --ood_datasets too"),
        (["--other_models.teacher", "MODEL"], "'teacher' is the name of another model"),
        (["--other_models", "{a/b: MODEL}"], "'a/b': is part of a file's name"),
        (["--other_models.a.b", "MODEL"], "other_models: expected a mapping of names to models"),
        (["--other_models.a", "nowhere/nothing"], "--other_models.a: no model at 'nowhere/nothing'"),
        (["--other_models.a", "MANY"], "the models would be normalised differently (model by 'en', a by 'basic')"),
        (["--language", "klingon"], "--language: "),
        (["--long_form_method", "chunked", "--condition_on_prev_tokens"], "belongs to --long_form_method sequential"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_what_has_one_name_or_cannot_be_compared_is_refused(toys, multilingual, refused, flags, message):
    """Noticed after hours, when one set has replaced another in the results."""
    argv = ["evaluate", "--model_name_or_path", toys / "student", "--eval_datasets.toy", toys / "corpus"]
    for name, path in {"CORPUS": toys / "corpus", "MODEL": toys / "student", "MANY": multilingual}.items():
        flags = [flag.replace(name, str(path)) for flag in flags]
    assert message in refused(*argv, *flags, "--dry_run")


def test_a_normaliser_makes_models_comparable(toys, multilingual, printed):
    argv = ["evaluate", "--model_name_or_path", toys / "student", "--eval_datasets.toy", toys / "corpus"]
    printed(*argv, "--other_models.a", multilingual, "--normalizer", "basic", "--dry_run")
