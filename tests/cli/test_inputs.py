"""Checks that several commands share: plans, devices, settings of long form."""

import pytest
import torch

from hf_distil_whisper.cli.config import InputError
from hf_distil_whisper.cli.inputs import as_fallback, best_device
from hf_distil_whisper.data.sources import load_source
from hf_distil_whisper.inference.transcribe import TemperatureFallback
from toy_files import write_toy_corpus


@pytest.mark.parametrize("command", ["create-student", "pseudo-label", "train", "evaluate"])
def test_a_dry_run_prints_steps_and_costs_and_writes_nothing(command, toys, tmp_path, printed, training):
    """A wrong path costs the time in the queue, and a run that is too large the night."""
    output = tmp_path / "output"
    teacher, corpus = ["--teacher_model_name_or_path", str(toys / "teacher")], str(toys / "corpus")
    argv = {
        "create-student": [command, *teacher],
        "pseudo-label": [command, *teacher, "--dataset", corpus],
        "train": training(output, "--decoder_layers", "2", "--bf16", "--use_cpu", "false"),
        "evaluate": [command, *teacher, "--model_name_or_path", str(toys / "student"), "--eval_datasets", corpus],
    }[command]
    text = printed(*argv, "--output_dir", output, "--dry_run")
    assert "  1. " in text
    assert "memory expected: " in text
    assert ("audio" in text) == (command != "create-student")
    assert text.endswith("dry run: the inputs are ready, nothing was written\n")
    assert not output.exists()


def test_all_problems_are_listed_at_once(tmp_path, refused):
    """One problem per start costs a start per problem."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    argv = ["--model_name_or_path", tmp_path / "model", "--teacher_model_name_or_path", tmp_path / "none"]
    argv += ["--eval_datasets.test.path", tmp_path / "corpus", "--output_dir", tmp_path]
    message = refused("evaluate", *argv)
    for problem in (
        "--model_name_or_path: ",
        "is a 'bert' model, expected a Whisper",
        "--teacher_model_name_or_path: no model at",
        "--eval_datasets.test: ",
        f"--output_dir: {tmp_path} holds another run already",
    ):
        assert problem in message


def test_a_dataset_of_one_split_needs_no_name_for_it(toys, tmp_path, printed, refused, training):
    """A folder without splits is all "train", and an evaluation would ask it for "test"; a validation is refused."""
    corpus = write_toy_corpus(tmp_path / "corpus", train=2, test=0)
    load_source(corpus).save_to_disk(tmp_path / "saved")
    argv = ["evaluate", "--model_name_or_path", toys / "student", "--dry_run"]
    sets = ["--eval_datasets.one", corpus, "--eval_datasets.two", tmp_path / "saved"]
    assert printed(*argv, *sets).count("in 2 rows") == 2
    assert "no split 'test'; there is train" in refused(*argv, *sets, "--eval_datasets.one.split", "test")
    assert "'train', which is trained on" in refused(*training(tmp_path, "--train_dataset.path", corpus, *sets[:2]))


def test_several_processes_are_refused_where_one_does_the_work(toys, tmp_path, monkeypatch, refused):
    """Each would write the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ["--teacher_model_name_or_path", toys / "teacher", "--output_dir", tmp_path / "student"]
    assert "works in one process" in refused("create-student", *argv)


def test_processes_of_one_machine_take_different_accelerators(monkeypatch):
    """Without an index, all of them would load their teacher onto the first one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert best_device() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert best_device() == torch.device("cuda", 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, False) for value in (None, "false", False)),
        *((value, True) for value in ("true", True)),
        ("{logprob_threshold: -0.8}", TemperatureFallback(logprob_threshold=-0.8)),
        ({"temperatures": [0.0, 0.5]}, TemperatureFallback(temperatures=(0.0, 0.5))),
        ({"temperatures": 0.0, "no_speech_threshold": None}, TemperatureFallback((0.0,), no_speech_threshold=None)),
    ],
)
def test_a_fallback_is_a_switch_or_its_settings(value, expected):
    assert as_fallback(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("talk.wav", "expected true, false or a mapping"),
        ("{logprob_treshold: -1}", "did you mean 'logprob_threshold'"),
        ("{logprob_threshold: low}", "logprob_threshold: expected a number or null, got 'low'"),
        ("{temperatures: [0, warm]}", "temperatures: expected numbers such as"),
        ("{temperatures: [-1]}", "at least 0"),
    ],
)
def test_a_wrong_fallback_names_its_key(value, message):
    with pytest.raises(InputError, match=message):
        as_fallback(value)
