"""Pushes: complete students with their card in one commit each, and every fault on the way to the Hub survived."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load
from toy_pushes import STUDENT, TO_HUB, pushing_trainer, train_flags
from transformers import Seq2SeqTrainer, TrainerCallback, TrainerControl, TrainerState, pipeline

from hf_distil_whisper.checkpoints import load_model, load_processor, save_checkpoint
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.hub import push
from hf_distil_whisper.hub.callbacks import ModelCardCallback, PushCheckpointCallback
from hf_distil_whisper.hub.model_card import push_student
from hf_distil_whisper.hub.push import PushError, Repository, Snapshot, StudentPushCallback, redact
from hf_distil_whisper.inference.speculative import create_assistant
from hf_distil_whisper.inference.transcribe import transcribe
from hub_server import ALICE, READER, HubServer
from toy_models import toy_audio
from toy_training import RandomWindows, assert_same_weights, collate, logged, small_args, small_pair, small_processor

PROGRESS = "Training in progress, step"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A folder with a complete student, without a card."""
    save_checkpoint(small_pair()[0], small_processor(), tmp_path / "student")
    return tmp_path / "student"


# What is pushed


@pytest.mark.parametrize("by", ["trainer", "callback"])
def test_every_push_is_a_complete_student_with_the_card_of_its_step(hub: HubServer, tmp_path: Path, by: str) -> None:
    """Upstream's pushes lack files of other runtimes, have the card of another step, and a pickle with the token."""
    run, callbacks = tmp_path / "run", [ModelCardCallback(teacher="openai/whisper-toy.en", license="mit")]
    settings = {"eval_strategy": "steps", "eval_steps": 1, "evaluation": {"toy": RandomWindows(4)}}
    if by == "trainer":
        settings |= TO_HUB | {"hub_private_repo": True, "hub_token": ALICE}
    else:
        callbacks.insert(0, PushCheckpointCallback("alice/toy", private=True, token=ALICE))
    trainer = pushing_trainer(run, *callbacks, hub_always_push=True, **settings)
    trainer.train()
    trainer.push_to_hub()
    repo, rates = hub.repo("alice/toy"), logged(trainer, "eval_toy_wer")
    commits = repo.history()[-2::-1]
    assert repo.private
    titles = [commit.title.partition(", epoch")[0] for commit in commits]
    assert titles[:2] == [f"{PROGRESS} 1", f"{PROGRESS} 2"]
    for step, commit in enumerate(commits):
        assert set(commit.files) - {".gitattributes", "loss_curves.png", "wer_curves.png"} == STUDENT
        assert not [path for path, data in commit.files.items() if ALICE.encode() in data]
        readme = ModelCard(commit.files["README.md"].decode())
        assert (readme.data.model_name, readme.data.license) == ("run", "mit")
        assert readme.data.eval_results[0].metric_value == round(100 * rates[min(step, 1)], 2)
        assert ("as of training step 1" in readme.text) == (step == 0)
    assert (run / "checkpoint-1" / "README.md").read_bytes() == commits[0].files["README.md"]
    assert not (run / "_push").exists()
    loaded = load_model("alice/toy")
    assert loaded.config.use_cache
    assert_same_weights(loaded, trainer.model)
    assert len(load_processor("alice/toy").tokenizer) == trainer.model.config.vocab_size


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [("every_save", []), ("end", []), ("checkpoint", ["last-checkpoint"]),
     ("all_checkpoints", ["checkpoint-1", "checkpoint-2"])],
)  # fmt: skip
def test_strategies_and_the_card_are_those_of_the_trainer(
    hub: HubServer, tmp_path: Path, strategy: str, folders: list[str]
) -> None:
    """A card that others wrote stays; one of the trainer is renewed."""
    settings = {"hub_strategy": strategy, "hub_always_push": True, "hub_token": ALICE}
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB, **settings)
    trainer.train()
    assert (("model", "alice/toy") in hub.repos) == (strategy != "end")
    trainer.push_to_hub()
    files = hub.repo("alice/toy").files()
    assert sorted({name.split("/")[0] for name in files if "/" in name}) == folders
    for folder in folders:
        assert {f"{folder}/optimizer.pt", f"{folder}/scheduler.pt", f"{folder}/rng_state.pth"} <= files.keys()
        assert f"{folder}/training_args.bin" not in files
        assert str(tmp_path) not in files[f"{folder}/trainer_state.json"].decode()
    assert "generated_from_trainer" in files["README.md"].decode()
    (tmp_path / "run" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    trainer.push_to_hub()
    assert hub.repo("alice/toy").files()["README.md"].endswith(b"Mine.\n")


def test_the_best_model_is_tagged(hub: HubServer, tmp_path: Path) -> None:
    """The newest student is on `main`; who wants the best one needs its name."""
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    evaluation |= {"predict_with_generate": False, "evaluation": RandomWindows(4, seed=1)}
    pushing = PushCheckpointCallback("alice/toy")
    trainer = pushing_trainer(tmp_path / "run", pushing, max_steps=4, learning_rate=5.0, **evaluation)
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
        assert not [name for name in load(commit.files["model.safetensors"]) if "lora" in name]
        assert ModelCard(commit.files["README.md"].decode()).data.license == "mit"


def test_any_trainer_can_push_complete_students(hub: HubServer, tmp_path: Path) -> None:
    args = small_args(tmp_path / "run", max_steps=1, save_strategy="steps", remove_unused_columns=False)
    trainer = Seq2SeqTrainer(
        small_pair()[0], args, data_collator=collate, train_dataset=RandomWindows(4),
        processing_class=small_processor(), callbacks=[PushCheckpointCallback("alice/toy")],
    )  # fmt: skip
    trainer.train()
    assert set(hub.repo("alice/toy").files()) - {".gitattributes", "loss_curves.png"} == STUDENT


def test_weights_of_another_layout_are_removed_in_the_same_commit(hub: HubServer, student: Path) -> None:
    """A loader takes `model.safetensors` before shards, and would load the old weights for ever."""
    repo = hub.create("alice/toy")
    names = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "a.txt")
    repo.add("old", dict.fromkeys(names, b"old"))
    push_student(student, "alice/toy")
    assert set(repo.files()) == STUDENT | {"a.txt"}
    assert len(repo.history()) == 3


def test_the_command_completes_what_it_pushes(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student saved by transformers alone lacks files, and whoever pushes by hand forgets the card."""
    folder = tmp_path / "student"
    small_pair()[0].save_pretrained(folder)
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
    run, student = str(tmp_path), str(tmp_path / "checkpoint-3")
    save_checkpoint(small_pair()[0], small_processor(), student)
    HfApi().create_repo("alice/public")
    for message, *argv in (
        ("checkpoint-3: push that", run, "--repo_id", "alice/toy"),
        ("--repo_id is missing", student),
        ("--repo_id: ", student, "--repo_id", "alice/to--y"),
        ("expected one folder", "--repo_id", "alice/toy"),
        ("403", student, "--repo_id", "bob/toy"),
        ("is public", student, "--repo_id", "alice/public", "--private"),
    ):
        assert main(["push", *argv]) == 2
        assert message in capsys.readouterr().err


def test_a_student_is_trained_pushed_and_used_by_name(hub: HubServer, toys: Path, tmp_path: Path) -> None:
    """What nobody can load was not published."""
    run, evaluation = tmp_path / "run", json.dumps({"toy": {"path": str(toys / "corpus")}})
    argv = train_flags(toys, run, "--eval_datasets", evaluation, "--generation_max_length", "8", "--license", "mit")
    assert main([*argv, "--hub_always_push", "--hub_private_repo", "true"]) == 0
    assert hub.repo("alice/distil-toy").private
    titles = [commit.title.partition(", epoch")[0] for commit in hub.repo("alice/distil-toy").history()[::-1]]
    assert titles[1:3] == [f"{PROGRESS} {step}" for step in (2, 4)]
    audio = toy_audio(1.0)
    recogniser = pipeline("automatic-speech-recognition", model="alice/distil-toy")
    assert isinstance(recogniser(audio, generate_kwargs={"max_new_tokens": 5})["text"], str)

    teacher, processor = load_model(toys / "teacher"), load_processor(toys / "teacher")
    assistant = create_assistant("alice/distil-toy", teacher)
    alone, assisted = (transcribe(teacher, processor, audio, assistant=helper)[0].text for helper in (None, assistant))
    assert assisted == alone
    with pytest.raises(FileNotFoundError, match="alice/none"):
        create_assistant("alice/none", teacher)

    card = ModelCard.load("alice/distil-toy")
    scores = json.loads((run / "eval_results.json").read_text())
    assert card.data.eval_results[0].metric_value == round(100 * scores["eval_toy_wer"], 2)
    assert card.data.license == "mit"
    card.validate()
    assert not [folder for folder in (tmp_path, toys) if str(folder) in str(card)]


# Faults


def at_step(step: int, action: Callable[[], object]) -> TrainerCallback:
    """Does something when a step is done."""
    callback = TrainerCallback()
    callback.on_step_end = lambda args, state, *_, **__: action() if state.global_step == step else None
    return callback


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of pushes that failed."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if "failed" in record.getMessage()]


def is_complete(hub: HubServer) -> bool:
    return all(set(commit.files) >= STUDENT for commit in hub.repo("alice/toy").history()[:-1])


@pytest.mark.parametrize("offline", [False, True], ids=["refused connection", "offline"])
def test_without_a_network_no_step_is_lost_and_the_push_is_finished_by_hand(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, offline: bool
) -> None:
    """The stock Trainer does not even start without one; offline, nothing may be asked of it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        hub.stop()
    command = f"hf-distil-whisper push {tmp_path / 'run'} --repo_id alice/toy"
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.push_to_hub() is None
    assert len(failures(caplog)) == (0 if offline else 1)
    assert offline or "The training goes on" in failures(caplog)[0]
    assert command in caplog.text
    assert (trainer.push_error is None) if offline else (command in str(trainer.push_error))
    assert main(command.split()[1:]) == 2
    assert not hub.requests
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    if not offline:
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
    assert hub.repo("alice/toy").history()[0].title.startswith(f"{PROGRESS} 1")
    assert len(failures(caplog)) == 1


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
    assert token not in caplog.text + str(trainer.push_error)
    assert token == ALICE or not hub.repos
    assert hub.requests.count("POST /api/repos/create") <= 3  # each push, and the end: a refusal is not tried again


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
    assert len(hub.repo("alice/toy").history()) == 2
    assert is_complete(hub)


def test_a_repository_is_never_half_written(hub: HubServer, student: Path) -> None:
    """Weights that do not come through must not leave a new config beside old weights."""
    hub.fail("PUT /lfs/", cut=True, times=1000)
    with pytest.raises(PushError, match=r"is not on the Hub[\s\S]*hf-distil-whisper push"):
        push_student(student, "alice/toy")
    assert set(hub.repo("alice/toy").files()) == {".gitattributes"}


def test_steps_go_on_while_a_push_is_under_way_and_the_end_waits_for_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushing, seen = PushCheckpointCallback("alice/toy"), []
    with hub.hold("POST .*/commit/") as released:
        # Not before the end: a step's student pushed by then is that of the end, and leaves nothing to commit.
        finish = pushing.finish
        monkeypatch.setattr(pushing, "finish", lambda args: released.set() or finish(args))
        pushing_trainer(tmp_path / "run", pushing, at_step(5, lambda: seen.append(pushing.busy)), max_steps=5).train()
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
        trainer = pushing_trainer(tmp_path / "run", pushing, at_step(2, fail))
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.train()
    assert pushing.finish(trainer.args)
    assert "step 1" in hub.repo("alice/toy").history()[0].title


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_pushed_repository(hub: HubServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hub.kill_during_commit(
        "from toy_pushes import TO_HUB, pushing_trainer\n"
        f"pushing_trainer({str(run)!r}, **TO_HUB, max_steps=1000).train()"
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
    pushing = PushCheckpointCallback("alice/toy")

    def commit_of_others() -> None:
        repo = hub.repo("alice/toy")
        repo.add("another run", repo.files() | {"config.json": b"other", "a.txt": b"other"})

    hub.fail("POST .*/commit/", action=commit_of_others)
    trainer = pushing_trainer(tmp_path / "run", pushing)
    trainer.train()
    files = hub.repo("alice/toy").files()
    assert files["config.json"] != b"other"
    assert files["a.txt"] == b"other"
    assert pushing.error is None
    commit_of_others()
    for _ in range(2):
        pushing.push_student(trainer.args, trainer.state, "again", tmp_path / "run", trainer.model, small_processor())
        trainer.save_model()
    assert pushing.finish(trainer.args)
    assert "somebody else has committed" in caplog.text
    assert hub.repo("alice/toy").files()["config.json"] != b"other"


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


def test_only_the_main_process_pushes_and_writes_cards(hub: HubServer, tmp_path: Path) -> None:
    state, control = TrainerState(is_world_process_zero=False, global_step=1), TrainerControl()
    for callback in (PushCheckpointCallback("alice/toy"), ModelCardCallback()):
        callback.on_train_begin(small_args(tmp_path), state, control)
        callback.on_save(small_args(tmp_path), state, control, model=small_pair()[0])
        callback.on_train_end(small_args(tmp_path), state, control, model=small_pair()[0])
    assert not hub.requests
    assert not list(tmp_path.iterdir())


def test_a_newer_push_replaces_those_that_wait_but_not_the_best(hub: HubServer, tmp_path: Path) -> None:
    """Copies for a slow network would fill the disk, and dropping the best one would lose its tag."""
    pushes, folders = StudentPushCallback(), tmp_path / "staged"
    hub.create("alice/toy")
    with hub.hold("POST .*/commit/"):
        for step in range(6):
            folder = folders / str(step)
            folder.mkdir(parents=True)
            for name in STUDENT:
                (folder / name).write_text(f"{step}")
            pushes.submit(Snapshot(folder, folder, Repository("alice/toy"), f"step {step}", best=step in (0, 2, 3)))
            hub.wait_for_commit()  # of the first, so that the others wait behind it
        assert sorted(path.name for path in folders.iterdir()) == ["0", "3", "5"]
    assert pushes.finish(small_args(tmp_path))
    history = hub.repo("alice/toy").history()
    assert [commit.title for commit in history] == ["step 5", "step 3", "step 0", "initial commit"]
    assert hub.repo("alice/toy").tags == {"best": history[1].oid}
    assert not list(folders.iterdir())


def test_train_ends_with_an_error_that_names_what_is_not_on_the_hub(
    hub: HubServer, toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A night's training is not lost to a network, and a script must not take it for published."""
    hub.stop()
    assert main(train_flags(toys, tmp_path / "run")) == 2
    assert f"push {tmp_path / 'run'} --repo_id alice/distil-toy" in capsys.readouterr().err
    assert load_model(tmp_path / "run").config.decoder_layers == 2
