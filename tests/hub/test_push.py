"""Pushes: complete students with their card in one commit each, and every fault on the way to the Hub survived."""

import json
import logging
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load
from toy_pushes import STUDENT, pushing_trainer, train_flags
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    pipeline,
)

from hf_distil_whisper.checkpoints import load_model, load_processor, save_checkpoint
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.hub import push
from hf_distil_whisper.hub.callbacks import ModelCardCallback, PushCheckpointCallback
from hf_distil_whisper.hub.model_card import push_student
from hf_distil_whisper.hub.push import PushError, Repository, Snapshot, StudentPushCallback, redact
from hf_distil_whisper.inference.speculative import create_assistant
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.student import create_student
from hub_server import ALICE, READER, Blob, HubServer
from toy_models import toy_audio
from toy_training import (
    RandomWindows,
    assert_same_weights,
    collate,
    logged,
    small_args,
    small_processor,
    small_whisper,
)

TO_HUB = {"push_to_hub": True, "hub_model_id": "alice/toy"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(push, "RETRY_WAITS", (0.01, 0.02, 0.03))
    caplog.set_level(logging.INFO)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A folder with a complete student, without a card."""
    save_checkpoint(create_student(small_whisper()), small_processor(), tmp_path / "student")
    return tmp_path / "student"


# What is pushed


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
    assert not (tmp_path / "run" / "_push").exists()
    loaded = load_model("alice/toy")
    assert loaded.config.use_cache
    assert_same_weights(loaded, trainer.model)
    assert len(load_processor("alice/toy").tokenizer) == trainer.model.config.vocab_size


def test_the_card_is_that_of_the_step_by_whatever_callback(hub: HubServer, tmp_path: Path) -> None:
    """A card with the scores of another checkpoint, or one that knows nothing, is worse than none."""
    callbacks = [PushCheckpointCallback("alice/toy"), ModelCardCallback(name="alice/toy", license="mit")]
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "evaluation": {"toy": RandomWindows(4)}}
    trainer = pushing_trainer(tmp_path / "run", *callbacks, hub_always_push=True, **evaluation)
    trainer.train()
    commits = hub.repo("alice/toy").history()[::-1][1:]
    rates = logged(trainer, "eval_toy_wer")
    assert len(rates) == 2
    assert "Training in progress, step 1" in commits[0].title
    for commit, wer in zip(commits, [*rates, rates[-1]], strict=False):
        data = ModelCard(commit.files["README.md"].data.decode()).data
        assert data.license == "mit"
        assert data.eval_results[0].metric_value == round(100 * wer, 2)


def test_without_another_card_the_trainers_is_pushed(hub: HubServer, tmp_path: Path) -> None:
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
def test_strategies_are_those_of_the_trainer(
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
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    trainer = pushing_trainer(
        tmp_path / "run", PushCheckpointCallback("alice/toy"), max_steps=4, learning_rate=5.0, **evaluation,
        predict_with_generate=False, evaluation=RandomWindows(4, seed=1),
    )  # fmt: skip
    trainer.train()
    best = load_model("alice/toy", revision="best")
    assert_same_weights(best, load_model(trainer.state.best_model_checkpoint))
    assert hub.repo("alice/toy").tags.keys() == {"best"}


def test_a_lora_run_pushes_complete_students(hub: HubServer, tmp_path: Path) -> None:
    """Its checkpoints hold an adapter alone, which no pipeline can load."""
    pushing = PushCheckpointCallback("alice/toy", card=ModelCardCallback(name="alice/toy", license="mit"))
    pushing_trainer(tmp_path / "run", pushing, lora={"r": 2}, hub_always_push=True).train()
    for commit in hub.repo("alice/toy").history()[:-1]:
        assert set(commit.files) >= STUDENT | {"adapter/adapter_model.safetensors"}
        assert not [name for name in load(commit.files["model.safetensors"].data) if "lora" in name]
        assert ModelCard(commit.files["README.md"].data.decode()).data.license == "mit"


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


def test_weights_of_another_layout_are_removed_in_the_same_commit(hub: HubServer, student: Path) -> None:
    """A loader takes `model.safetensors` before shards, and would load the old weights for ever."""
    repo = hub.create("alice/toy")
    names = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "a.txt")
    repo.add("main", "old", dict.fromkeys(names, Blob(b"old", lfs=True)))
    push_student(student, "alice/toy")
    assert set(repo.files()) == STUDENT | {"a.txt"}
    assert len(repo.history()) == 3


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


def test_a_student_is_trained_pushed_and_used_by_name(hub: HubServer, toys: Path, tmp_path: Path) -> None:
    """What nobody can load was not published."""
    run, evaluation = tmp_path / "run", json.dumps({"toy": {"path": str(toys / "corpus")}})
    argv = train_flags(toys, run, "--eval_datasets", evaluation, "--generation_max_length", "8", "--license", "mit")
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


# Faults


class AtStep(TrainerCallback):
    """Does something when a step is done."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def is_complete(hub: HubServer) -> bool:
    return all(set(commit.files) >= STUDENT for commit in hub.repo("alice/toy").history()[:-1])


def test_a_refused_connection_costs_no_step_and_is_finished_by_hand(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stock Trainer does not even start without a network."""
    hub.stop()
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.push_to_hub() is None
    failed = [message for message in warnings_of(caplog) if "failed" in message]
    assert len(failed) == 1
    assert "The training goes on" in failed[0]
    command = f"hf-distil-whisper push {tmp_path / 'run'} --repo_id alice/toy"
    assert trainer.push_error is not None
    assert command in trainer.push_error
    assert command in caplog.text
    assert main(["push", str(tmp_path / "run"), "--repo_id", "alice/toy"]) == 2
    assert "is not on the Hub" in capsys.readouterr().err
    hub.start()
    assert main(command.split()[1:]) == 0
    assert set(hub.repo("alice/toy").files()) >= STUDENT


def test_a_failed_push_is_repeated_at_the_end(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("POST /api/repos/create", 500, times=1 + len(push.RETRY_WAITS))
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB, max_steps=1)
    trainer.train()
    assert trainer.push_error is None
    assert hub.repo("alice/toy").history()[0].title.startswith("Training in progress, step 1")
    assert len([message for message in warnings_of(caplog) if "failed" in message]) == 1


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("hf_expiredTokenToRecognise0123456789", ["401", "give a token that may write there"]),
        (READER, ["403", "give a token that may write there"]),
        (ALICE, ["429"]),
    ],
    ids=["401", "403", "wait an hour"],
)
def test_a_refused_push_ends_the_run_well_and_soon(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str, expected: list[str]
) -> None:
    """The message says what to do, the token stays a secret, and nobody waits for an hour."""
    hub.fail("POST .*/commit/", 429, retry_after=3600, times=100)
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB, hub_token=token)
    start = time.monotonic()
    trainer.train()
    assert time.monotonic() - start < 60
    assert trainer.state.global_step == 2
    assert all(text in str(trainer.push_error) for text in expected)
    assert token not in caplog.text
    assert token not in str(trainer.push_error)
    assert token == ALICE or not hub.repos
    requests = [request for request in hub.requests if request == "POST /api/repos/create"]
    assert len(requests) <= 3  # each push once, and once more at the end: a refusal is not tried again


@pytest.mark.parametrize(
    "fault",
    [
        {"pattern": "POST .*/commit/", "status": 409, "times": 2},
        {"pattern": "POST .*/commit/", "status": 429, "retry_after": 0.4},
        {"pattern": "POST .*/preupload/", "status": 429, "retry_after": 1},
        {"pattern": "POST .*/commit/", "status": 500, "times": 3},
        {"pattern": "POST .*/objects/batch", "status": 500, "times": 8},
        {"pattern": "GET /api/models/alice/toy$", "status": 503, "times": 2},
        {"pattern": "PUT /lfs/", "cut": True, "times": 2},
        {"pattern": "PUT /lfs/", "cut": True, "times": 8},
        {"pattern": "POST .*/commit/", "cut": True},
        {"pattern": "POST .*/tag/", "status": 500},
    ],
    ids=str,
)
def test_transient_failures_are_retried(hub: HubServer, student: Path, fault: dict) -> None:
    """A busy server in the night is no reason to find nothing in the morning."""
    hub.fail(**fault)
    start = time.monotonic()
    push_student(student, "alice/toy")
    assert time.monotonic() - start >= (fault.get("retry_after", 0) if "commit" in fault["pattern"] else 0)
    assert set(hub.repo("alice/toy").files()) >= STUDENT
    assert len(hub.repo("alice/toy").history()) == 2
    assert is_complete(hub)


def test_a_repository_is_never_half_written(hub: HubServer, student: Path) -> None:
    """Weights that do not come through must not leave a new config beside old weights."""
    hub.fail("PUT /lfs/", cut=True, times=1000)
    with pytest.raises(PushError, match="is not on the Hub") as error:
        push_student(student, "alice/toy")
    assert "hf-distil-whisper push" in str(error.value)
    assert set(hub.repo("alice/toy").files()) == {".gitattributes"}


def test_steps_go_on_while_a_push_is_under_way_and_the_end_waits_for_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub.hold("POST .*/commit/") as released:
        pushing = PushCheckpointCallback("alice/toy")
        seen = []

        def finish(args) -> bool:
            released.set()
            return PushCheckpointCallback.finish(pushing, args)

        # Not before the end: a step's student pushed by then is that of the end, and leaves nothing to commit.
        monkeypatch.setattr(pushing, "finish", finish)
        pushing_trainer(tmp_path / "run", pushing, AtStep(5, lambda: seen.append(pushing.busy)), max_steps=5).train()
        assert seen == [True]
    assert pushing.error is None
    assert hub.repo("alice/toy").history()[0].title == "End of training"
    assert is_complete(hub)
    assert not (tmp_path / "run" / "_push").exists()


def test_a_run_that_breaks_off_finishes_the_push_under_way(hub: HubServer, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    pushing = PushCheckpointCallback("alice/toy")
    with hub.hold("POST .*/commit/"):
        trainer = pushing_trainer(tmp_path / "run", pushing, AtStep(2, fail))
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.train()
    assert pushing.finish(trainer.args)
    assert "step 1" in hub.repo("alice/toy").history()[0].title


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_pushed_repository(hub: HubServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hub.kill_during_commit(
        "from toy_pushes import pushing_trainer\n"
        f"pushing_trainer({str(run)!r}, push_to_hub=True, hub_model_id='alice/toy', max_steps=1000).train()"
    )
    assert list((run / "_push").iterdir())
    assert set(hub.repo("alice/toy").files()) == {".gitattributes"}
    pushing_trainer(run, **TO_HUB).train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert is_complete(hub)
    assert not (run / "_push").exists()


def test_two_runs_that_push_to_one_repository_are_warned_and_mix_nothing(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of two students in one repository load without an error and transcribe noise."""
    others = {name: Blob(b"other", lfs=False) for name in ("config.json", "a.txt")}
    pushing = PushCheckpointCallback("alice/toy")

    def commit_of_others() -> None:
        repo = hub.repo("alice/toy")
        repo.add("main", "another run", {**repo.commit("main").files, **others})

    def commit_between() -> None:
        hub.wait_for_commit()
        commit_of_others()
        released.set()

    with hub.hold("POST .*/commit/") as released:
        thread = threading.Thread(target=commit_between)
        thread.start()
        trainer = pushing_trainer(tmp_path / "run", pushing)
        trainer.train()
        thread.join()
    history = hub.repo("alice/toy").history()
    assert history[0].files["config.json"].data != b"other"
    assert history[0].files["a.txt"].data == b"other"
    assert pushing.error is None
    commit_of_others()
    for _ in range(2):
        pushing.push_student(trainer.args, trainer.state, "again", tmp_path / "run", trainer.model, small_processor())
        trainer.save_model()
    assert pushing.finish(trainer.args)
    assert "somebody else has committed" in caplog.text
    assert hub.repo("alice/toy").files()["config.json"] != b"other"


def test_offline_nothing_is_asked_of_the_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB)
    trainer.train()
    assert trainer.push_to_hub() is None
    assert trainer.push_error is None
    assert not hub.requests
    assert f"hf-distil-whisper push {tmp_path / 'run'} --repo_id alice/toy" in caplog.text
    assert main(["push", str(tmp_path / "run"), "--repo_id", "alice/toy"]) == 2
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert main(["push", str(tmp_path / "run"), "--repo_id", "alice/toy"]) == 0


def test_a_file_with_the_token_in_it_is_not_uploaded(hub: HubServer, student: Path) -> None:
    """A card that quotes a command line with `--hub_token` would publish it."""
    (student / "README.md").write_text(f"train --hub_token {ALICE}")
    with pytest.raises(PushError, match=r"README\.md holds your access token") as error:
        push_student(student, "alice/toy")
    assert ALICE not in str(error.value)
    assert not hub.repos


def test_no_message_contains_a_token() -> None:
    text = f"Bearer abc.def failed at https://me:secret@hub.example/x with {ALICE} and my-own-token"
    assert redact(text, "my-own-token") == "Bearer *** failed at https://***@hub.example/x with *** and ***"
    assert ALICE not in repr(Repository("alice/toy", token=ALICE))


def test_only_the_main_process_pushes(hub: HubServer, tmp_path: Path) -> None:
    pushing = PushCheckpointCallback("alice/toy")
    state, control = TrainerState(is_world_process_zero=False, global_step=1), TrainerControl()
    args = small_args(tmp_path)
    pushing.on_train_begin(args, state, control)
    pushing.on_save(args, state, control, model=small_whisper())
    pushing.on_train_end(args, state, control, model=small_whisper())
    assert not hub.requests


def test_a_newer_push_replaces_those_that_wait_but_not_the_best(hub: HubServer, tmp_path: Path) -> None:
    """Copies for a slow network would fill the disk, and dropping the best one would lose its tag."""
    pushes = StudentPushCallback()
    hub.create("alice/toy")
    with hub.hold("POST .*/commit/"):
        for step in range(6):
            folder = tmp_path / str(step)
            folder.mkdir()
            for name in STUDENT:
                (folder / name).write_text(f"{step}")
            pushes.submit(Snapshot(folder, folder, Repository("alice/toy"), f"step {step}", best=step in (2, 3)))
            hub.wait_for_commit()  # of the first, so that the others wait behind it
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["0", "3", "5"]
    assert pushes.finish(small_args(tmp_path))
    history = hub.repo("alice/toy").history()
    assert [commit.title for commit in history] == ["step 5", "step 3", "step 0", "initial commit"]
    assert hub.repo("alice/toy").tags == {"best": history[1].oid}
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]


def test_train_ends_with_an_error_that_names_what_is_not_on_the_hub(
    hub: HubServer, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A night's training is not lost to a network, and a script must not take it for published."""
    hub.stop()
    assert main(train_flags(toys, tmp_path / "run")) == 2
    assert f"push {tmp_path / 'run'} --repo_id alice/distil-toy" in capsys.readouterr().err
    assert load_model(tmp_path / "run").config.decoder_layers == 2
