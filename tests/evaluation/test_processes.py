"""Several processes give what one gives, to the last digit, also where one of them has nothing to hear."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from hf_distil_whisper.cli.main import main
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation import evaluate as processes
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    Heard,
    NothingReadError,
    evaluate_shared,
    score,
)
from toy_ctc import write_toy_ctc
from toy_files import spoil, write_toy_corpus, write_toy_model

ROOT = Path(__file__).parents[2]
TIMES = {"rtf", "seconds", "wall_seconds"}


def rows(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})


def evaluate(dataset: Dataset) -> EvaluationResult:
    """Hears "the" in every row; "bad" cannot be read."""
    heard, errors = [], RowErrors()
    for number, row in enumerate(dataset):
        name = row.get("id", str(number))
        if row["text"] == "bad":
            errors.add(name, "broken")
        else:
            heard.append(Heard(name, row["text"], "the", 1.1, False))
    return score(heard, errors, 1.0, language="en")


@pytest.mark.parametrize(
    "texts",
    [
        ["the", "a", "the fox", "bad", "the", "jumps"],
        ["bad", "bad", "bad", "the"],
        ["the"],
        ["bad", "the", "", "over"],
    ],
    ids=["even", "a share unread", "fewer rows than processes", "a missing reference"],
)
def test_shares_together_are_the_whole(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    """The processes in turn, their shares put together by hand, as `gather_object` does."""
    whole = evaluate_shared(rows(texts), evaluate)
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares: list = []
    for rank in range(3):
        state = SimpleNamespace(process_index=rank, num_processes=3)
        monkeypatch.setattr(processes, "PartialState", lambda state=state, **_: state)
        monkeypatch.setattr(processes, "gather_object", lambda share: shares.extend(share) or list(shares))
        try:
            found = evaluate_shared(rows(texts), evaluate)
        except NothingReadError:
            assert rank < 2  # nothing was heard so far
    assert found.rows == whole.rows
    assert [row["id"] for row in found.rows] == [str(n) for n, text in enumerate(texts) if text != "bad"]
    assert list(found.row_errors) == list(whole.row_errors)
    for name in ("errors", "character_errors", "orthographic_errors", "audio_seconds", "empty_references", "unit"):
        assert getattr(found, name) == getattr(whole, name)
    assert found.seconds == sum(isinstance(part, EvaluationResult) for part in shares)
    assert found.wall_seconds is not None


def test_nothing_read_anywhere_is_said_with_every_row() -> None:
    with pytest.raises(NothingReadError, match=r"0: broken[\s\S]*1: broken"):
        evaluate_shared(rows(["bad", "bad"]), evaluate)
    with pytest.raises(NothingReadError, match=r"0: broken[\s\S]*1: broken"):
        processes._together([RowErrors([("0", "broken")]), RowErrors([("1", "broken")])], own=[])


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would hear all rows: the same result at the price of many machines."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "PartialState", lambda **_: SimpleNamespace(process_index=0, num_processes=1))
    with pytest.raises(RuntimeError, match="2 processes were started"):
        evaluate_shared(rows(["the", "a"]), evaluate)


def test_a_row_without_an_id_is_named_by_its_number_in_the_whole_set() -> None:
    """Named by its number in a share, it would meet another noise than in a single process."""
    named = processes._with_ids(Dataset.from_dict({"id": ["a", None, "c"], "text": ["x", "y", "z"]}))
    assert list(named["id"]) == ["a", "1", "c"]
    assert list(named["text"]) == ["x", "y", "z"]


def start_two(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """The command in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", "-m", "hf_distil_whisper.cli.main", *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_evaluate_in_two_processes_gives_what_it_gives_in_one(tmp_path: Path) -> None:
    """Rows heard twice, lost or in another order; a process that waits for ever for one without rows."""
    corpus = write_toy_corpus(tmp_path / "corpus", train=3, test=7)
    spoil(corpus, 7)
    write_toy_corpus(tmp_path / "one", train=1, test=1)
    argv = ["evaluate", "--model_name_or_path", write_toy_model(tmp_path / "student", decoder_layers=2)]
    argv += ["--teacher_model_name_or_path", write_toy_model(tmp_path / "teacher"), "--language", "en"]
    argv += ["--other_models.wav2vec2", write_toy_ctc(tmp_path / "ctc"), "--eval_datasets.read.path", corpus]
    argv += ["--ood_datasets.one.path", str(tmp_path / "one"), "--long_form_datasets.long.path", corpus]
    done = start_two([*argv, "--output_dir", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\nin distribution:") == 1
    assert "In all processes together, 2 rows left out" in done.stderr
    assert main([*argv, "--output_dir", str(tmp_path / "alone")]) == 0
    found, expected = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "alone"))
    assert list(found) == ["read", "one", "long"]
    for name, by_model in expected.items():
        for model, row in by_model.items():
            assert set(row) == set(found[name][model])
            assert {key: value for key, value in row.items() if key not in TIMES} == {
                key: value for key, value in found[name][model].items() if key not in TIMES
            }
            files = [str(tmp_path / folder / f"{name}.{model}.parquet") for folder in ("two", "alone")]
            two, alone = (Dataset.from_parquet(file, cache_dir=str(tmp_path / "cache")).to_list() for file in files)
            assert two == alone
    assert found["read"]["model"]["rows"] == 5


@pytest.mark.slow
def test_noise_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Noise that hangs on a row's place in its share, or a table from each process."""
    corpus = write_toy_corpus(tmp_path / "corpus", train=8, test=5)
    argv = ["evaluate", "noise", "--model_name_or_path", write_toy_model(tmp_path / "student", decoder_layers=2)]
    argv += ["--dataset", corpus, "--noises", "white", "babble", "--babble_dataset", corpus, "--snrs", "10", "0"]
    done = start_two([*argv, "--output_dir", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("| babble | 0 |") == 1
    assert main([*argv, "--output_dir", str(tmp_path / "alone")]) == 0
    found, expected = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "alone"))
    for noise, by_snr in expected["wer_by_noise_and_snr"].items():
        for snr, by_model in by_snr.items():
            for model, row in by_model.items():
                other = found["wer_by_noise_and_snr"][noise][snr][model]
                assert {key: row[key] for key in row.keys() - TIMES} == {key: other[key] for key in row.keys() - TIMES}
                assert row["rows"] == 5
