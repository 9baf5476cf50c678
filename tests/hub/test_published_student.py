"""The way of a user: `train` with pushes, then the student by its name as a model and as an assistant."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import pipeline

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.hub import push
from hf_distil_whisper.inference.speculative import create_assistant
from hf_distil_whisper.inference.transcribe import transcribe
from hub_server import HubServer
from toy_files import write_toy_corpus, write_toy_model
from toy_models import toy_audio


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    write_toy_model(folder / "teacher")
    write_toy_corpus(folder / "corpus")
    return folder


def training(toys: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("train", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(folder), "--use_cpu"),
        *("--train_dataset.path", str(toys / "corpus"), "--train_dataset.transcript_column", "text"),
        *("--decoder_layers", "2", "--max_steps", "4", "--per_device_train_batch_size", "2", "--logging_steps", "1"),
        *("--save_steps", "2", "--disable_tqdm", "true", "--push_to_hub", "--hub_model_id", "alice/distil-toy"),
        *more,
    ]


def losses(folder: Path) -> dict[int, float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def test_a_student_is_trained_pushed_and_used_by_name(hub: HubServer, toys: Path, tmp_path: Path) -> None:
    """What nobody can load was not published."""
    run, evaluation = tmp_path / "run", json.dumps({"toy": {"path": str(toys / "corpus")}})
    argv = training(toys, run, "--eval_datasets", evaluation, "--generation_max_length", "8", "--license", "mit")
    assert main([*argv, "--hub_always_push", "--hub_private_repo", "true"]) == 0
    titles = [commit.title for commit in hub.repo("alice/distil-toy").history()][::-1]
    assert [title[:28] for title in titles[1:3]] == ["Training in progress, step 2", "Training in progress, step 4"]
    recogniser = pipeline("automatic-speech-recognition", model="alice/distil-toy")
    assert isinstance(recogniser(toy_audio(1.0), generate_kwargs={"max_new_tokens": 5})["text"], str)

    teacher, processor = load_model(toys / "teacher"), load_processor(toys / "teacher")
    assistant = create_assistant("alice/distil-toy", teacher)
    audio = toy_audio(1.0)
    alone, assisted = (transcribe(teacher, processor, audio, assistant=helper)[0].text for helper in (None, assistant))
    assert assisted == alone
    with pytest.raises(FileNotFoundError, match="alice/none"):
        create_assistant("alice/none", teacher)

    card = ModelCard.load("alice/distil-toy")
    scores = json.loads((run / "eval_results.json").read_text())
    assert card.data.eval_results[0].metric_value == round(100 * scores["eval_toy_wer"], 2)
    assert card.data.license == "mit"
    card.validate()
    assert hub.repo("alice/distil-toy").private
    assert str(tmp_path) not in str(card)
    assert str(toys) not in str(card)


def test_train_goes_on_from_the_hub_on_a_fresh_machine(
    hub: HubServer, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same losses as if the first machine had not been lost."""
    pushes = ("--hub_strategy", "all_checkpoints", "--hub_always_push")
    assert main(training(toys, tmp_path / "first", *pushes)) == 0
    second = tmp_path / "second"
    argv = training(toys, second, *pushes, "--resume_from_checkpoint", "checkpoint-2")
    assert main([*argv, "--dry_run"]) == 0
    assert "fetch checkpoint-2 of alice/distil-toy and go on from step 2" in capsys.readouterr().out
    assert not second.exists()
    assert main(argv) == 0
    assert losses(second) == losses(tmp_path / "first")
    expected = load_model(tmp_path / "first").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in load_model(second).state_dict().items())
    assert main(training(toys, tmp_path / "third", "--resume_from_checkpoint", "alice/none")) == 2
    assert "--resume_from_checkpoint: alice/none is no folder here" in capsys.readouterr().err


def test_train_says_in_the_end_what_is_not_on_the_hub(
    hub: HubServer, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night's training is not lost to a network, and a script must not take it for published."""
    monkeypatch.setattr(push, "RETRY_WAITS", (0.01,))
    hub.stop()
    assert main(training(toys, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert f"push {tmp_path / 'run'} --repo_id alice/distil-toy" in said
    assert load_model(tmp_path / "run").config.decoder_layers == 2
    hub.start()
    assert main(["push", str(tmp_path / "run"), "--repo_id", "alice/distil-toy"]) == 0
    assert load_model("alice/distil-toy").config.decoder_layers == 2
