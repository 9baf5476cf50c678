"""Cached encoder states: the same numbers, computed once, under labels that are still drawn anew."""

import pytest
import torch

from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.teacher_cache import EncoderStateDataset, encoder_cache_bytes
from toy_training import RandomWindows, logged, small_trainer, small_whisper


def test_cached_states_are_those_of_the_encoder_in_the_datasets_order():
    """States of a neighbouring row would pair every text with another recording."""
    model, windows = small_whisper(dropout=0.5).train(), RandomWindows(5)
    cached = EncoderStateDataset(windows, model, torch.float32, batch_size=2)
    assert model.model.encoder.training
    model.eval()
    assert len(cached) == 5
    with torch.no_grad():
        states = model.model.encoder(windows.features).last_hidden_state
    for index in range(5):
        item = cached[index]
        torch.testing.assert_close(item["encoder_states"], states[index], rtol=1e-4, atol=1e-5)
        assert item["labels"] == windows.label_item(index)["labels"]
        assert "input_features" not in item


def test_the_expected_memory_is_what_the_states_take():
    """The plan of a run announces it before hours of decoding."""
    model = small_whisper()
    cached = EncoderStateDataset(RandomWindows(3), model, torch.bfloat16, batch_size=3)
    assert cached.states.dtype == torch.bfloat16
    assert encoder_cache_bytes(3, model.config, torch.bfloat16) == cached.states.nbytes == 3 * 50 * 16 * 2


def test_a_replaced_row_keeps_label_and_states_together():
    """A row that fails to decode is replaced by the next one: its own label would belong to nothing that is heard."""
    windows = RandomWindows(4)
    decode = windows.__class__.__getitem__
    windows.__class__ = type(
        "Broken", (RandomWindows,), {"__getitem__": lambda self, i: decode(self, 2 if i == 1 else i)}
    )
    cached = EncoderStateDataset(windows, small_whisper(), torch.float32, batch_size=2)
    assert cached[1]["index"] == 2
    assert torch.equal(cached[1]["encoder_states"], cached[2]["encoder_states"])
    windows.label_item = lambda index: {"index": 3 if index == 2 else index}
    assert torch.equal(cached[2]["encoder_states"], cached[3]["encoder_states"])


def test_training_on_cached_states_gives_the_same_losses_and_runs_no_encoder(tmp_path):
    """A cache that changes the result, or that is computed and not used."""
    losses, runs = [], []
    for cache in ("none", "encoder"):
        teacher = small_whisper()
        student = create_student(teacher)
        calls = []
        student.model.encoder.register_forward_hook(lambda *_, calls=calls: calls.append(True))
        windows = RandomWindows(8)
        trainer = small_trainer(
            tmp_path,
            student,
            teacher,
            train=windows,
            teacher_cache=cache,
            num_train_epochs=3,
            max_steps=6,
            learning_rate=1e-2,
        )
        trainer.train()
        losses.append(logged(trainer, "loss"))
        runs.append((len(calls), len(windows.decoded)))
        assert sorted(set(windows.epochs)) == [0, 1, 2]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert runs == [(6, 24), (2, 8)]


def test_the_cache_is_filled_once_for_several_runs_of_one_trainer(tmp_path):
    """Going on with a trainer would otherwise cache the states of cached states."""
    teacher = small_whisper()
    windows = RandomWindows(8)
    trainer = small_trainer(tmp_path, create_student(teacher), teacher, train=windows, teacher_cache="encoder")
    trainer.train()
    trainer.train()
    assert len(windows.decoded) == 8


def test_states_of_one_encoder_are_not_given_to_a_teacher_with_another(tmp_path):
    """The teacher would answer to states that it has never seen."""
    student = small_whisper(seed=1, decoder_layers=2)
    with pytest.raises(ValueError, match=r"--teacher_cache encoder.*the student's encoder is not the teacher's"):
        small_trainer(tmp_path, student, small_whisper(), teacher_cache="encoder")


def test_labels_alone_can_be_learned_from_cached_states(tmp_path):
    """The baseline needs no teacher to profit from a frozen encoder."""
    student = small_whisper(decoder_layers=2)
    trainer = small_trainer(
        tmp_path, student, None, kl_weight=0.0, teacher_cache="encoder", max_steps=3, learning_rate=1e-2
    )
    trainer.train()
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
