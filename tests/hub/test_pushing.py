"""Pushes of a training: complete, with their card, one commit each, and nothing that does not belong there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load
from toy_pushes import STUDENT, StopAt, pushing_trainer
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
    save_checkpoint,
)
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.hub.callbacks import ModelCardCallback, PushCheckpointCallback
from hf_distil_whisper.hub.model_card import push_student
from hf_distil_whisper.student import create_student
from hub_server import ALICE, HubServer
from hub_store import Blob
from toy_training import RandomWindows, collate, small_processor, small_whisper


def test_every_push_of_the_trainer_is_a_complete_student_with_its_card(hub: HubServer, tmp_path: Path) -> None:
    """Upstream's pushes lack the files of other runtimes and the card, and hold a pickle with the token."""
    card = ModelCardCallback(name="alice/toy", teacher="openai/whisper-toy.en", license="mit")
    trainer = pushing_trainer(
        tmp_path / "run", card, push_to_hub=True, hub_model_id="alice/toy", hub_token=ALICE, hub_private_repo=True
    )
    trainer.train()
    assert trainer.push_to_hub() is not None
    repo = hub.repo("alice/toy")
    commits = repo.history()[::-1][1:]
    assert repo.private
    for commit in commits:
        assert set(commit.files) - {".gitattributes", "loss_curves.png"} == STUDENT
        assert "mit" in commit.files["README.md"].data.decode()
        assert not [path for path, blob in commit.files.items() if ALICE.encode() in blob.data]
    weights = load(commits[-1].files["model.safetensors"].data)
    assert all(torch.equal(weight, trainer.model.state_dict()[name]) for name, weight in weights.items())
    assert not (tmp_path / "run" / "_push").exists()
    assert load_model("alice/toy").config.use_cache
    assert len(load_processor("alice/toy").tokenizer) == trainer.model.config.vocab_size


def test_the_card_is_that_of_the_step(hub: HubServer, tmp_path: Path) -> None:
    """A card with the scores of another checkpoint is worse than none."""
    pushing = PushCheckpointCallback("alice/toy", card=ModelCardCallback(name="alice/toy"))
    trainer = pushing_trainer(
        tmp_path / "run",
        pushing,
        eval_strategy="steps",
        eval_steps=1,
        hub_always_push=True,
        evaluation={"toy": RandomWindows(4)},
    )
    trainer.train()
    commits = hub.repo("alice/toy").history()[::-1][1:]
    logged = [entry["eval_toy_wer"] for entry in trainer.state.log_history if "eval_toy_wer" in entry]
    assert len(logged) == 2
    assert "Training in progress, step 1" in commits[0].title
    for commit, wer in zip(commits, [*logged, logged[-1]], strict=False):
        (result,) = ModelCard(commit.files["README.md"].data.decode()).data.eval_results
        assert result.metric_value == round(100 * wer, 2)


def test_the_card_of_another_callback_goes_up_with_every_push(hub: HubServer, tmp_path: Path) -> None:
    """The last push is what people read; a card that knows nothing must not replace the one that knows."""
    callbacks = [PushCheckpointCallback("alice/toy"), ModelCardCallback(name="alice/toy", license="mit")]
    pushing_trainer(tmp_path / "run", *callbacks, hub_always_push=True).train()
    for commit in hub.repo("alice/toy").history()[:-1]:
        assert ModelCard(commit.files["README.md"].data.decode()).data.license == "mit"


def test_without_a_card_of_ours_upstreams_stands_in(hub: HubServer, tmp_path: Path) -> None:
    """A card that others wrote stays; one of the trainer is renewed."""
    trainer = pushing_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="alice/toy")
    trainer.train()
    assert "generated_from_trainer" in hub.repo("alice/toy").files()["README.md"].decode()
    (tmp_path / "run" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    trainer.push_to_hub()
    assert hub.repo("alice/toy").files()["README.md"].decode().endswith("Mine.\n")


@pytest.mark.parametrize(
    ("strategy", "folders", "count"),
    [("every_save", set(), 1), ("end", set(), 0), ("checkpoint", {"last-checkpoint"}, 1),
     ("all_checkpoints", {"checkpoint-1", "checkpoint-2"}, 2)],
)  # fmt: skip
def test_strategies_mean_what_they_mean_to_the_trainer(
    hub: HubServer, tmp_path: Path, strategy: str, folders: set[str], count: int
) -> None:
    trainer = pushing_trainer(
        tmp_path / "run", push_to_hub=True, hub_model_id="alice/toy", hub_strategy=strategy, hub_always_push=True,
        hub_token=ALICE,
    )  # fmt: skip
    trainer.train()
    assert (("model", "alice/toy") in hub.repos) == (count > 0)
    trainer.push_to_hub()
    files = hub.repo("alice/toy").files()
    assert {name.split("/")[0] for name in files if "/" in name} == folders
    for folder in folders:
        assert {f"{folder}/optimizer.pt", f"{folder}/scheduler.pt", f"{folder}/rng_state.pth"} <= files.keys()
        assert f"{folder}/training_args.bin" not in files
        assert str(tmp_path) not in files[f"{folder}/trainer_state.json"].decode()


def test_the_best_model_is_tagged(hub: HubServer, tmp_path: Path) -> None:
    """The newest student is on `main`; who wants the best one needs its name."""
    pushing = PushCheckpointCallback("alice/toy")
    trainer = pushing_trainer(
        tmp_path / "run",
        pushing,
        max_steps=4,
        learning_rate=5.0,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
        predict_with_generate=False,
        evaluation=RandomWindows(4, seed=1),
    )
    trainer.train()
    best = load_model("alice/toy", revision="best").state_dict()
    expected = load_model(trainer.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in best.items())
    assert hub.repo("alice/toy").tags.keys() == {"best"}


def test_a_lora_run_pushes_complete_students(hub: HubServer, tmp_path: Path) -> None:
    """Its checkpoints hold an adapter alone, which no pipeline can load."""
    trainer = pushing_trainer(
        tmp_path / "run", PushCheckpointCallback("alice/toy"), lora={"r": 2}, hub_always_push=True
    )
    trainer.train()
    for commit in hub.repo("alice/toy").history()[:-1]:
        assert set(commit.files) >= STUDENT | {"adapter/adapter_model.safetensors"}
        assert not [name for name in load(commit.files["model.safetensors"].data) if "lora" in name]


def test_any_trainer_can_push_complete_students(hub: HubServer, tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(
        str(tmp_path / "run"), use_cpu=True, max_steps=1, save_steps=1, report_to="none", remove_unused_columns=False
    )
    rows = [{**row, "input_features": row["input_features"]} for row in map(RandomWindows(4).__getitem__, range(4))]
    trainer = Seq2SeqTrainer(
        create_student(small_whisper()), args, data_collator=collate, train_dataset=rows,
        processing_class=small_processor(), callbacks=[PushCheckpointCallback("alice/toy")],
    )  # fmt: skip
    trainer.train()
    assert set(hub.repo("alice/toy").files()) - {".gitattributes"} == STUDENT


def test_weights_of_another_layout_are_removed_in_the_same_commit(hub: HubServer, tmp_path: Path) -> None:
    """A loader takes `model.safetensors` before shards, and would load the old weights for ever."""
    repo = hub.create("alice/toy")
    old = Blob(b"old", lfs=True)
    repo.add(
        "main", "old", {"model-00001-of-00002.safetensors": old, "model.safetensors.index.json": old, "a.txt": old}
    )
    save_checkpoint(create_student(small_whisper()), small_processor(), tmp_path / "student")
    push_student(tmp_path / "student", "alice/toy")
    assert set(repo.files()) == STUDENT | {"a.txt"}
    assert len(repo.history()) == 3


def test_a_checkpoint_of_the_hub_is_gone_on_with_on_a_fresh_machine(hub: HubServer, tmp_path: Path) -> None:
    """Another order of rows, or an optimizer that starts anew, shows nowhere but in a worse student."""
    from hf_distil_whisper.hub.resume import (
        fetch_checkpoint,
        find_checkpoint,
    )

    whole = pushing_trainer(tmp_path / "whole", max_steps=6)
    whole.train()
    pushed = {"push_to_hub": True, "hub_model_id": "alice/toy", "hub_strategy": "checkpoint", "max_steps": 6}
    pushing_trainer(tmp_path / "first", StopAt(3), **pushed).train()
    shutil.rmtree(tmp_path / "first")
    for name in ("last-checkpoint", "alice/toy"):
        found = find_checkpoint(name, "alice/toy")
        assert found is not None
        assert (found.step, found.folder) == (3, "last-checkpoint")
    checkpoint = fetch_checkpoint(found, tmp_path / "second")
    resumed = pushing_trainer(tmp_path / "second", **pushed)
    resumed.train(resume_from_checkpoint=checkpoint)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    expected = whole.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.state_dict().items())
    with pytest.raises(ValueError, match=r"checkpoint-9 in alice/toy: it holds last-checkpoint"):
        find_checkpoint("checkpoint-9", "alice/toy")
    with pytest.raises(ValueError, match="alice/none cannot be read"):
        find_checkpoint("alice/none")
    assert find_checkpoint(str(tmp_path / "second")) is None


def test_the_command_completes_what_it_pushes(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student saved by transformers alone lacks files, and whoever pushes by hand forgets the card."""
    student, folder = create_student(small_whisper()), tmp_path / "student"
    student.save_pretrained(folder)
    small_processor().save_pretrained(folder)
    torch.save({}, folder / "optimizer.pt")
    (folder / "training_args.bin").write_bytes(b"secret")
    before = sorted(path.name for path in folder.iterdir())
    assert main(["push", str(folder), "--repo_id", "toy", "--private", "--revision", "v1"]) == 0
    assert f"{hub.endpoint}/alice/toy/commit/" in capsys.readouterr().out
    repo = hub.repo("alice/toy")
    assert repo.private
    assert set(repo.files("v1")) - {".gitattributes"} == STUDENT
    assert set(repo.files("main")) == {".gitattributes"}
    assert sorted(path.name for path in folder.iterdir()) == before
    assert json.loads(repo.files("v1")["generation_config.json"])["num_beams"] == 1


def test_the_command_says_what_is_wrong(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save_checkpoint(create_student(small_whisper()), small_processor(), run / "checkpoint-3")
    for argv, message in (
        ([str(run), "--repo_id", "alice/toy"], "checkpoint-3: push that"),
        ([str(run / "checkpoint-3")], "--repo_id is missing"),
        ([str(run / "checkpoint-3"), "--repo_id", "alice/to--y"], "--repo_id: "),
        (["--repo_id", "alice/toy"], "expected one folder"),
        ([str(run / "checkpoint-3"), "--repo_id", "bob/toy"], "403"),
    ):
        assert main(["push", *argv]) == 2
        assert message in capsys.readouterr().err
    HfApi().create_repo("alice/public")
    assert main(["push", str(run / "checkpoint-3"), "--repo_id", "alice/public", "--private"]) == 2
    assert "is public" in capsys.readouterr().err
