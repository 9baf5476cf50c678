"""What can go wrong on the way to the Hub: no step is lost, no repository half written, and no token told."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
from toy_pushes import STUDENT, pushing_trainer
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.hub import push
from hf_distil_whisper.hub.callbacks import PushCheckpointCallback
from hf_distil_whisper.hub.model_card import push_student
from hf_distil_whisper.hub.push import BackgroundPush, PushError, Repository, _Snapshot, redact
from hf_distil_whisper.student import create_student
from hub_server import ALICE, READER, HubServer
from hub_store import Blob
from toy_training import small_args, small_processor, small_whisper

TO_HUB = {"push_to_hub": True, "hub_model_id": "alice/toy"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(push, "RETRY_WAITS", (0.01, 0.02, 0.03))
    caplog.set_level(logging.INFO)


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
    """Upstream's trainer does not even begin without a network."""
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


def test_what_failed_is_pushed_once_more_at_the_end(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("POST /api/repos/create", 500, times=1 + len(push.RETRY_WAITS))
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB, max_steps=1)
    trainer.train()
    assert trainer.push_error is None
    assert hub.repo("alice/toy").history()[0].title.startswith("Training in progress, step 1")
    assert len([message for message in warnings_of(caplog) if "failed" in message]) == 1


@pytest.mark.parametrize(
    ("token", "said"), [("hf_expiredTokenToRecognise0123456789", "401"), (READER, "403")], ids=["401", "403"]
)
def test_a_token_that_may_not_write(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str, said: str
) -> None:
    """The run ends well, the message says what to do, and the token stays a secret."""
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB, hub_token=token)
    trainer.train()
    assert trainer.state.global_step == 2
    assert said in str(trainer.push_error)
    assert "give a token that may write there" in str(trainer.push_error)
    assert token not in caplog.text
    assert token not in str(trainer.push_error)
    assert not hub.repos
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
def test_what_passes_is_tried_again(hub: HubServer, tmp_path: Path, fault: dict) -> None:
    """A busy server in the night is no reason to find nothing in the morning."""
    save_checkpoint(create_student(small_whisper()), small_processor(), tmp_path / "student")
    hub.fail(**fault)
    start = time.monotonic()
    push_student(tmp_path / "student", "alice/toy")
    assert time.monotonic() - start >= (fault.get("retry_after", 0) if "commit" in fault["pattern"] else 0)
    assert set(hub.repo("alice/toy").files()) >= STUDENT
    assert len(hub.repo("alice/toy").history()) == 2
    assert is_complete(hub)


def test_a_repository_is_never_half_written(hub: HubServer, tmp_path: Path) -> None:
    """Weights that do not come through must not leave a new config beside old weights."""
    hub.fail("PUT /lfs/", cut=True, times=1000)
    save_checkpoint(create_student(small_whisper()), small_processor(), tmp_path / "student")
    with pytest.raises(PushError, match="is not on the Hub") as error:
        push_student(tmp_path / "student", "alice/toy")
    assert "hf-distil-whisper push" in str(error.value)
    assert set(hub.repo("alice/toy").files()) == {".gitattributes"}


def test_steps_go_on_while_a_push_is_under_way_and_the_end_waits_for_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub.hold("POST .*/commit/") as released:
        pushing = PushCheckpointCallback("alice/toy")
        seen = []

        def look() -> None:
            seen.append(pushing.pushes is not None and pushing.pushes.busy)

        def finish(args) -> bool:
            released.set()
            return PushCheckpointCallback.finish(pushing, args)

        # Not before the end: a step's student pushed by then is that of the end, and leaves nothing to commit.
        monkeypatch.setattr(pushing, "finish", finish)
        pushing_trainer(tmp_path / "run", pushing, AtStep(5, look), max_steps=5).train()
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
        with pytest.raises(RuntimeError, match="out of memory"):
            pushing_trainer(tmp_path / "run", pushing, AtStep(2, fail)).train()
        assert set(hub.repos) <= {("model", "alice/toy")}
    assert pushing.pushes.finish()
    assert "step 1" in hub.repo("alice/toy").history()[0].title


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_pushed_repository(hub: HubServer, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [{tests!r}, {here!r}]\n"
        "from pathlib import Path\n"
        "from toy_pushes import pushing_trainer\n"
        "pushing_trainer(Path({run!r}), push_to_hub=True, hub_model_id='alice/toy', max_steps=1000).train()\n"
    ).format(tests=str(Path(__file__).parents[1]), here=str(Path(__file__).parent), run=str(tmp_path / "run"))
    with hub.hold("POST .*/commit/"):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not any("/commit/" in request for request in hub.requests) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert list((tmp_path / "run" / "_push").iterdir())
        assert set(hub.repo("alice/toy").files()) == {".gitattributes"}
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert is_complete(hub)
    assert not (tmp_path / "run" / "_push").exists()


def test_two_runs_that_push_to_one_repository_are_told_and_mix_nothing(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of two students in one repository load without an error and transcribe noise."""
    others = {name: Blob(b"other", lfs=False) for name in ("config.json", "a.txt")}
    pushing = PushCheckpointCallback("alice/toy")

    def commit_between() -> None:
        while not any("/commit/" in request for request in hub.requests):
            time.sleep(0.01)
        repo = hub.repo("alice/toy")
        repo.add("main", "another run", {**repo.commit("main").files, **others})
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
    repo = hub.repo("alice/toy")
    repo.add("main", "another run", {**repo.commit("main").files, **others})

    def push_again() -> None:
        processor, folder = small_processor(), tmp_path / "run"
        pushing.push_student(trainer.args, trainer.state, "again", folder, trainer.model, processor)

    push_again()
    trainer.save_model()
    push_again()
    assert pushing.pushes.finish()
    assert "somebody else has committed" in caplog.text
    assert repo.files()["config.json"] != b"other"


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


def test_a_finished_training_does_not_wait_for_an_hour(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("POST .*/commit/", 429, retry_after=3600, times=100)
    trainer = pushing_trainer(tmp_path / "run", **TO_HUB)
    start = time.monotonic()
    trainer.train()
    assert time.monotonic() - start < 30
    assert "429" in str(trainer.push_error)


def test_a_file_with_the_token_in_it_is_not_uploaded(hub: HubServer, tmp_path: Path) -> None:
    """A card that quotes a command line with `--hub_token` would publish it."""
    save_checkpoint(create_student(small_whisper()), small_processor(), tmp_path / "student")
    (tmp_path / "student" / "README.md").write_text(f"train --hub_token {ALICE}")
    with pytest.raises(PushError, match=r"README\.md holds your access token") as error:
        push_student(tmp_path / "student", "alice/toy")
    assert ALICE not in str(error.value)
    assert not hub.repos


def test_no_message_holds_a_token() -> None:
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


def test_of_waiting_pushes_the_newest_goes_first_and_the_best_is_kept(hub: HubServer, tmp_path: Path) -> None:
    """Copies for a slow network would fill the disk, and dropping the best one would lose its tag."""
    pushes = BackgroundPush(Repository("alice/toy"))
    hub.create("alice/toy")
    with hub.hold("POST .*/commit/"):
        for step in range(6):
            folder = tmp_path / str(step)
            folder.mkdir()
            (folder / "config.json").write_text(f"{step}")
            pushes.submit(_Snapshot(folder, f"step {step}", folder, best=step in (2, 3)))
            while step == 0 and not any("/commit/" in request for request in hub.requests):
                time.sleep(0.01)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["0", "3", "5"]
    assert pushes.finish()
    history = hub.repo("alice/toy").history()
    assert [commit.title for commit in history] == ["step 5", "step 3", "step 0", "initial commit"]
    assert hub.repo("alice/toy").tags == {"best": history[1].oid}
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]
