"""`evaluate` on toy models: tables and files, and what cannot be compared."""

import json

import pytest
from datasets import Dataset

from toy_files import write_toy_model


def test_models_are_scored_side_by_side_on_sets_of_four_groups(toys, tmp_path, printed):
    """Each figure of a comparison is to come from the same rows and normaliser."""
    corpus, small = toys / "corpus", write_toy_model(tmp_path / "small", decoder_layers=1)
    argv = ["--model_name_or_path", toys / "student", "--teacher_model_name_or_path", toys / "teacher"]
    argv += ["--other_models.small", small, "--eval_datasets.read.path", corpus, "--ood_datasets.spoken", corpus]
    argv += ["--ood_datasets.spoken.max_samples", 1, "--long_form_datasets.long", corpus]
    argv += ["--ood_long_form_datasets.longer", corpus, "--normalizer", "basic", "--output_dir", tmp_path / "out"]
    table = printed("evaluate", *argv)
    assert table.index("in distribution:") < table.index("out of distribution:") < table.index("long form:")
    assert "WER minus the teacher's" in table
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    groups = {name: {row["group"] for row in by_model.values()} for name, by_model in results.items()}
    assert groups == {
        "read": {"in distribution"},
        "spoken": {"out of distribution"},
        "long": {"long form"},
        "longer": {"long form out of distribution"},
    }
    for by_model in results.values():
        assert list(by_model) == ["model", "teacher", "small"]
        words = {row["hits"] + row["substitutions"] + row["deletions"] for row in by_model.values()}
        assert len(words) == 1
    assert ["against_teacher" in row for row in results["read"].values()] == [True, False, True]
    assert results["read"]["model"]["wall_seconds"] > 0
    assert words == {18}
    averages = json.loads((tmp_path / "out" / "averages.json").read_text())["averages"]
    assert averages["long form, all sets"]["model"]["macro"] == results["long"]["model"]["wer"]
    assert "| small | " in (tmp_path / "out" / "long_form.md").read_text()
    assert len(Dataset.from_parquet(str(tmp_path / "out" / "read.model.parquet"))) == 2


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
        (["--other_models.a", "MANY"], "--language is missing: a would detect it"),
        (["--language", "klingon"], "--language: "),
        (["--long_form_method", "chunked", "--condition_on_prev_tokens"], "belongs to --long_form_method sequential"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_what_has_one_name_or_cannot_be_compared_is_refused(toys, multilingual, printed, refused, flags, message):
    """Noticed after hours, when one set has replaced another in the results."""
    argv = ["evaluate", "--model_name_or_path", toys / "student", "--eval_datasets.toy", toys / "corpus", "--dry_run"]
    for name, path in {"CORPUS": toys / "corpus", "MODEL": toys / "student", "MANY": multilingual}.items():
        flags = [flag.replace(name, str(path)) for flag in flags]
    assert message in refused(*argv, *flags)
    if "would detect it" in message:
        printed(*argv, *flags, "--normalizer", "basic")
