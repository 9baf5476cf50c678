"""Callbacks: the card as of each step, samples with their errors marked, and nothing sent to a tracker unasked."""

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from huggingface_hub import ModelCard
from toy_pushes import LOG
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from hf_distil_whisper.hub import callbacks
from hf_distil_whisper.hub.callbacks import (
    SAMPLES_FILE,
    ModelCardCallback,
    SamplePredictionsCallback,
    compare,
    log_table,
    run_url,
    samples_table,
)
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import DistillationTrainer
from hf_distil_whisper.training.validation import WordErrorMetrics
from toy_models import toy_whisper
from toy_training import RandomWindows, small_processor, small_trainer, small_whisper

# The card


def test_the_callback_writes_the_card_as_of_each_step(tmp_path: Path) -> None:
    """A checkpoint whose card shows the scores of the last one cannot be compared with others."""
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    callback = ModelCardCallback(teacher="openai/whisper-toy.en", license="mit")
    state = TrainerState(global_step=1, max_steps=2, log_history=LOG[:2])
    callback.on_evaluate(args, state, TrainerControl(), metrics={"eval_test_loss": 1.0}, model=toy_whisper())
    assert not (tmp_path / "run").exists()  # one set of several: the average is still to come
    callback.on_evaluate(args, state, TrainerControl(), metrics={"eval_macro_wer": 0.4}, model=toy_whisper())
    assert "| WER %, test | 40.00 |" in (tmp_path / "run/README.md").read_text()
    callback.on_save(args, state, TrainerControl(), model=toy_whisper())
    state = TrainerState(global_step=2, max_steps=2, log_history=LOG)
    callback.on_train_end(args, state, TrainerControl(), model=toy_whisper())
    first, last = (ModelCard.load(tmp_path / "run" / path) for path in ("checkpoint-1/README.md", "README.md"))
    for card, wer in ((first, 40.0), (last, 20.0)):
        assert (card.data.model_name, card.data.license) == ("run", "mit")
        assert card.data.eval_results[0].metric_value == wer
        assert f"| WER %, test | {wer:.2f} |" in card.text
    assert "as of training step 1" in first.text
    assert "as of training step" not in last.text


def test_only_the_main_process_writes_the_card(tmp_path: Path) -> None:
    state = TrainerState(is_world_process_zero=False)
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    ModelCardCallback().on_train_end(args, state, TrainerControl(), model=toy_whisper())
    assert not (tmp_path / "run" / "README.md").exists()


def test_a_card_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callbacks, "save_model_card", Mock(side_effect=OSError("no space left on device")))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    ModelCardCallback().on_save(args, TrainerState(), TrainerControl(), model=toy_whisper())
    assert "could not be written: OSError: no space left on device" in caplog.text


# Samples and trackers


def validating_trainer(folder: Path, **changes: Any) -> DistillationTrainer:
    """Two steps, each followed by the validation of two sets."""
    teacher = small_whisper()
    return small_trainer(
        folder,
        create_student(teacher),
        teacher,
        train=RandomWindows(8),
        evaluation={"one": RandomWindows(5), "two": RandomWindows(3, seed=1)},
        processor=small_processor(),
        **{"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "logging_steps": 1, "report_to": "none"}
        | changes,
    )


class FakeTracker(SimpleNamespace):
    """The part of a tracker's interface that is used: `log`, `Table`, and where its run is."""

    def log(self, values: dict) -> None:
        self.logged.append(values)


def fake_wandb(url: str | None) -> FakeTracker:
    return FakeTracker(run=SimpleNamespace(url=url), logged=[], Table=lambda columns, data: (columns, data))


def fake_trackio(space: str | None) -> FakeTracker:
    current = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: space))
    return FakeTracker(context_vars=current, logged=[], Table=lambda dataframe: dataframe)


def active(kind: type) -> Any:
    """A tracker's callback without its package."""
    return kind.__new__(kind)


def test_errors_are_marked_as_they_are_counted() -> None:
    """A marked text that disagrees with the rate beside it is worth nothing."""
    sample = compare(3, "The cat sat down.", "a cat sat", "en")
    assert sample.marked == "~~the~~ **a** cat sat ~~down~~"
    assert sample.wer == pytest.approx(2 / 4)
    assert compare(0, "きょうは", "きょう", "ja").marked == "きょう~~は~~"
    assert compare(0, "[music]", "hello", "en") == (0, "[music]", "hello", "**hello**", None)
    assert "| 3 | The cat sat down. | a cat sat | ~~the~~ **a** cat sat ~~down~~ | 50.0 |" in samples_table([sample])


def test_a_transcript_cannot_break_the_table() -> None:
    """A student writes anything, `|` and markup too."""
    table = samples_table([compare(0, "a | b\nc", "<b>x</b> | **y**", "basic")])
    assert len(table.splitlines()) == 3
    assert "<b>" not in table


def test_the_same_rows_are_shown_at_every_validation(tmp_path: Path) -> None:
    """Other rows each time could not be compared; a second run of the model would cost its time."""
    trainer = validating_trainer(tmp_path)
    original = trainer.compute_metrics
    callback = SamplePredictionsCallback(trainer, 3)
    trainer.add_callback(callback)
    assert isinstance(original, WordErrorMetrics)
    trainer.train()
    text = (tmp_path / SAMPLES_FILE).read_text(encoding="utf-8")
    for name, rows in (("one", [0, 1, 3]), ("two", [0, 1, 2])):
        section = text.partition(f"## {name}, step 2\n")[2].partition("##")[0]
        seen = [int(line.split("|")[1]) for line in section.splitlines() if line[:3].strip("| ").isdigit()]
        assert seen == rows
    rates = [entry for entry in trainer.state.log_history if "eval_one_wer" in entry]
    assert len(rates) == 2  # the metrics come out as without the callback


def test_samples_need_transcripts(tmp_path: Path) -> None:
    trainer = validating_trainer(tmp_path, predict_with_generate=False)
    with pytest.raises(ValueError, match="predict_with_generate"):
        SamplePredictionsCallback(trainer)
    with pytest.raises(ValueError, match="num_samples"):
        SamplePredictionsCallback(validating_trainer(tmp_path), 0)


def test_each_tracker_gets_the_table_in_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, trackio, texts = fake_wandb(None), fake_trackio(None), []
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    board = active(TensorBoardCallback)
    board.tb_writer = SimpleNamespace(add_text=lambda *values: texts.append(values))
    active_callbacks = [active(WandbCallback), active(TrackioCallback), board, ModelCardCallback()]
    sent = log_table(active_callbacks, "samples/one", ["row", "text"], [(0, "a"), (1, None)], "| table |", 7)
    assert sent == ["wandb", "trackio", "tensorboard"]
    assert wandb.logged == [{"samples/one": (["row", "text"], [[0, "a"], [1, None]]), "train/global_step": 7}]
    frame = trackio.logged[0]["samples/one"]
    assert frame["row"].tolist() == ["0", "1"]
    assert texts == [("samples/one", "| table |", 7)]


def test_a_tracker_that_fails_costs_its_table_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker's server that is down is no reason to lose a day of training."""
    wandb = fake_wandb(None)
    wandb.Table = lambda columns, data: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert log_table([active(WandbCallback)], "samples/one", ["row"], [(0,)], "", 7) == []
    wandb.run = None
    assert log_table([active(WandbCallback)], "samples/one", ["row"], [(0,)], "", 7) == []


def test_the_run_url_is_that_of_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With user and key left out: self-hosted servers may have them in their addresses."""
    args = validating_trainer(tmp_path).args
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb("https://me:key@wandb.example/me/runs/1?apiKey=secret"))
    monkeypatch.setitem(sys.modules, "trackio", fake_trackio("me/space"))
    assert run_url(args) is None  # imported by something else, not asked for
    args.report_to = ["wandb"]
    assert run_url(args) == "https://wandb.example/me/runs/1"
    args.report_to = ["trackio"]
    assert run_url(args) == "https://huggingface.co/spaces/me/space"
    args.report_to = ["tensorboard"]
    assert run_url(args) is None
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(None))
    args.report_to = ["wandb"]
    assert run_url(args) is None


def test_the_run_url_is_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After training the run is closed, and nobody could ask for it any more."""
    trainer = validating_trainer(tmp_path)
    trainer.add_callback(ModelCardCallback())
    fake = fake_wandb("https://wandb.example/me/runs/1")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trainer.args.report_to = ["wandb"]
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    fake.run = None
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    assert "The training's run: <https://wandb.example/me/runs/1>" in (tmp_path / "README.md").read_text()


def test_nothing_is_sent_unless_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker that is merely installed must not get the transcripts of a training."""
    trackers = {name: fake_wandb("https://wandb.example/run") for name in ("wandb", "trackio")}
    for name, fake in trackers.items():
        monkeypatch.setitem(sys.modules, name, fake)

    def refuse(*address: object) -> None:
        raise AssertionError(f"something connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    trainer = validating_trainer(tmp_path)
    trainer.add_callback(ModelCardCallback(teacher="openai/whisper-toy.en"))
    trainer.add_callback(SamplePredictionsCallback(trainer, 2))
    trainer.train()
    assert not any(fake.logged for fake in trackers.values())
    assert "wandb.example" not in (tmp_path / "README.md").read_text()


def test_no_tracker_is_imported() -> None:
    """Importing one of them can start threads, and costs a second."""
    code = (
        "import sys, hf_distil_whisper.hub.callbacks; "
        "print([name for name in ('wandb', 'trackio', 'tensorboard', 'tensorboardX') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_trainers_own_tensorboard_gets_texts(tmp_path: Path) -> None:
    """What the real package reads back, where it is installed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = validating_trainer(tmp_path, report_to="tensorboard")
    trainer.add_callback(SamplePredictionsCallback(trainer, 2))
    trainer.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"samples/one/text_summary", "samples/two/text_summary"} <= set(events.Tags()["tensors"])
    assert "eval/one_wer" in events.Tags()["scalars"]
