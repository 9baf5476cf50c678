"""Callbacks: the card as of each step, samples with their errors marked, and nothing sent to a tracker unasked."""

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from hf_distil_whisper.hub import callbacks
from hf_distil_whisper.hub.callbacks import (
    SAMPLES_FILE,
    ModelCardCallback,
    SamplePredictionsCallback,
    compare,
    log_table,
    samples_table,
)
from hf_distil_whisper.training.trainer import DistillationTrainer
from toy_models import toy_whisper
from toy_training import RandomWindows, logged, small_pair, small_processor, small_trainer


def test_a_card_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callbacks, "save_model_card", Mock(side_effect=OSError("no space left on device")))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    ModelCardCallback().on_save(args, TrainerState(), TrainerControl(), model=toy_whisper())
    assert "could not be written: OSError: no space left on device" in caplog.text


def validating_trainer(folder: Path, **changes: Any) -> DistillationTrainer:
    """Two steps, each followed by the validation of two sets."""
    settings = {"evaluation": {"one": RandomWindows(5), "two": RandomWindows(3, seed=1)}, "eval_strategy": "steps"}
    settings |= {"processor": small_processor(), "eval_steps": 1}
    return small_trainer(folder, *small_pair(), **(settings | changes))


def fake_wandb(url: str | None) -> Mock:
    return Mock(run=SimpleNamespace(url=url), Table=lambda columns, data: (columns, data))


def fake_trackio(space: str | None) -> Mock:
    trackio = Mock(Table=lambda dataframe: dataframe)
    trackio.context_vars.current_space_id.get.return_value = space
    return trackio


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


def test_the_same_rows_are_shown_at_every_validation_and_sent_to_the_named_tracker_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other rows could not be compared; a tracker that is merely installed must not get the transcripts."""
    trackers = {name: fake_wandb("https://wandb.example/run") for name in ("wandb", "trackio")}
    for name, fake in trackers.items():
        monkeypatch.setitem(sys.modules, name, fake)
    connect = Mock(side_effect=AssertionError("something connects"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "create_connection", connect)
    trainer = validating_trainer(tmp_path, report_to="tensorboard")
    trainer.add_callback(SamplePredictionsCallback(trainer, 3))
    trainer.add_callback(ModelCardCallback(teacher="openai/whisper-toy.en"))
    trainer.train()
    text = (tmp_path / SAMPLES_FILE).read_text(encoding="utf-8")
    for name, rows in (("one", [0, 1, 3]), ("two", [0, 1, 2])):
        section = text.partition(f"## {name}, step 2\n")[2].partition("##")[0]
        seen = [int(line.split("|")[1]) for line in section.splitlines() if line[:3].strip("| ").isdigit()]
        assert seen == rows
    assert len(logged(trainer, "eval_one_wer")) == 2  # the metrics come out as without the callback
    assert not connect.called
    assert not any(fake.log.called for fake in trackers.values())
    assert "wandb.example" not in (tmp_path / "README.md").read_text()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"samples/one/text_summary", "samples/two/text_summary"} <= set(events.Tags()["tensors"])
    assert "eval/one_wer" in events.Tags()["scalars"]


def test_samples_need_transcripts(tmp_path: Path) -> None:
    trainer = validating_trainer(tmp_path, predict_with_generate=False)
    with pytest.raises(ValueError, match="predict_with_generate"):
        SamplePredictionsCallback(trainer)
    with pytest.raises(ValueError, match="num_samples"):
        SamplePredictionsCallback(validating_trainer(tmp_path), 0)


def test_each_tracker_gets_the_table_in_its_own_form_and_one_that_fails_costs_its_table_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tracker's server that is down is no reason to lose a day of training."""
    wandb, trackio, texts = fake_wandb(None), fake_trackio(None), []
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    board = active(TensorBoardCallback)
    board.tb_writer = SimpleNamespace(add_text=lambda *values: texts.append(values))
    trackers = [active(WandbCallback), active(TrackioCallback), board, ModelCardCallback()]
    table = ("samples/one", ["row", "text"], [(0, "a"), (1, None)], "| table |", 7)
    assert log_table(trackers, *table) == ["wandb", "trackio", "tensorboard"]
    expected = {"samples/one": (["row", "text"], [[0, "a"], [1, None]]), "train/global_step": 7}
    wandb.log.assert_called_once_with(expected)
    assert trackio.log.call_args[0][0]["samples/one"]["row"].tolist() == ["0", "1"]
    assert texts == [("samples/one", "| table |", 7)]
    wandb.Table = lambda columns, data: 1 / 0
    assert log_table(trackers, *table) == ["trackio", "tensorboard"]
    wandb.run = None
    assert log_table(trackers, *table) == ["trackio", "tensorboard"]


@pytest.mark.parametrize(
    ("report_to", "address", "expected"),
    [
        ([], "https://wandb.example/me/runs/1", None),  # imported by something else, not asked for
        (["wandb"], "https://me:key@wandb.example/me/runs/1?apiKey=secret", "https://wandb.example/me/runs/1"),
        (["wandb"], None, None),
        (["trackio"], None, "https://huggingface.co/spaces/me/space"),
        (["tensorboard"], None, None),
    ],
)
def test_the_run_url_is_that_of_the_tracker_and_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report_to: list[str], address: str | None, expected: str | None
) -> None:
    """Without user and key, which servers have in their addresses; after training nobody could ask for it."""
    wandb = fake_wandb(address)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", fake_trackio("me/space"))
    trainer = validating_trainer(tmp_path)
    trainer.add_callback(ModelCardCallback())
    trainer.args.report_to = report_to
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    wandb.run = None
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    line = f"The training's run: <{expected or ''}"
    assert (line in (tmp_path / "README.md").read_text()) == (expected is not None)


def test_no_tracker_is_imported() -> None:
    """Importing one of them can start threads, and costs a second."""
    code = (
        "import sys, hf_distil_whisper.hub.callbacks; "
        "print([name for name in ('wandb', 'trackio', 'tensorboard', 'tensorboardX') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
