"""Trainings that resume from a checkpoint on the Hub, on a machine that has nothing else of them."""

import json
from pathlib import Path

import pytest
from toy_pushes import TO_HUB, pushing_trainer, train_flags

from hf_distil_whisper.checkpoints import load_model
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.hub.resume import fetch_checkpoint, find_checkpoint
from hub_server import HubServer
from toy_training import assert_same_weights


def losses(folder: Path) -> dict[int, float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def test_a_checkpoint_is_found_by_its_name_or_that_of_its_repository(hub: HubServer, tmp_path: Path) -> None:
    pushing_trainer(tmp_path / "first", **TO_HUB, hub_strategy="checkpoint").train()
    for name in ("last-checkpoint", "alice/toy"):
        on_hub = find_checkpoint(name, "alice/toy")
        assert on_hub is not None
        assert (on_hub.step, on_hub.folder) == (2, "last-checkpoint")
    checkpoint = fetch_checkpoint(on_hub, tmp_path / "second")
    resumed = pushing_trainer(tmp_path / "second", max_steps=3)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"checkpoint-9 in alice/toy: it holds last-checkpoint"):
        find_checkpoint("checkpoint-9", "alice/toy")
    with pytest.raises(ValueError, match="alice/none cannot be read"):
        find_checkpoint("alice/none")
    assert find_checkpoint(str(tmp_path / "second")) is None


def test_train_resumes_from_the_hub_on_a_fresh_machine(
    hub: HubServer, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another order of rows, or an optimizer that starts anew, shows nowhere but in a worse student."""
    pushes = ("--hub_strategy", "all_checkpoints", "--hub_always_push")
    assert main(train_flags(toys, tmp_path / "first", *pushes)) == 0
    second = tmp_path / "second"
    argv = train_flags(toys, second, *pushes, "--resume_from_checkpoint", "checkpoint-2")
    assert main([*argv, "--dry_run"]) == 0
    assert "fetch checkpoint-2 of alice/distil-toy and resume from step 2" in capsys.readouterr().out
    assert not second.exists()
    assert main(argv) == 0
    assert losses(second) == losses(tmp_path / "first")
    assert_same_weights(load_model(second), load_model(tmp_path / "first"))
    assert main(train_flags(toys, tmp_path / "third", "--resume_from_checkpoint", "alice/none")) == 2
    assert "--resume_from_checkpoint: alice/none is no local folder" in capsys.readouterr().err
