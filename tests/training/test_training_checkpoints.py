"""What a run leaves behind, and that a resumed run ends where an undisturbed one does."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.student import create_student
from toy_training import RandomWindows, small_processor, small_trainer, small_whisper


class StopAt(TrainerCallback):
    """Ends the run after a step, as a crash would, with the schedule of the whole run."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def run(folder, *, stop: int | None = None, resume: bool = False, **changes):
    teacher = small_whisper()
    trainer = small_trainer(
        folder,
        create_student(teacher),
        teacher,
        train=RandomWindows(12),
        processor=small_processor(),
        callbacks=[StopAt(stop)] if stop else None,
        max_steps=-1,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=2,
        learning_rate=1e-2,
        warmup_steps=2,
        **changes,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize("cache", ["none", "encoder", "both"])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, stop, cache):
    """Another order of rows, or a schedule that starts anew, shows nowhere but in a worse student."""
    whole = run(tmp_path / "whole", teacher_cache=cache)
    run(tmp_path / "broken", stop=stop, teacher_cache=cache)
    resumed = run(tmp_path / "broken", resume=True, teacher_cache=cache)
    assert whole.state.global_step == resumed.state.global_step == 9
    expected = whole.model.state_dict()
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_every_checkpoint_is_a_complete_student_without_its_teacher(tmp_path):
    """The reference script saves and uploads the teacher with every checkpoint, 3 GB a time."""
    trainer = run(tmp_path, stop=2)
    trainer.save_model()
    student = trainer.model
    for folder in (tmp_path / "checkpoint-2", tmp_path):
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() <= student.state_dict().keys()
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        present = {path.name for path in folder.iterdir()}
        assert {"preprocessor_config.json", "normalizer.json", "added_tokens.json", "tokenizer.json"} <= present
        assert not [name for name in present if name.startswith(("model_1", "pytorch_model"))]
        reloaded = load_model(folder).state_dict()
        assert all(torch.equal(weight, student.state_dict()[name]) for name, weight in reloaded.items())
        assert len(load_processor(folder).tokenizer) == student.config.vocab_size
    states = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    assert len(states) == sum(weight.requires_grad for weight in student.parameters())


def test_training_and_evaluation_leave_no_trace_in_the_saved_configs(tmp_path):
    """Upstream saves use_cache=False, which makes generation many times slower, and a max_length of 20."""
    teacher = small_whisper()
    student = create_student(teacher)
    config, generation = student.config.to_dict(), student.generation_config.to_dict()
    trainer = small_trainer(
        tmp_path, student, teacher, evaluation=RandomWindows(4), processor=small_processor(), eval_strategy="epoch"
    )
    trainer.train()
    trainer.save_model()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["use_cache"] is True
    assert student.config.to_dict() | {"architectures": None} == config
    assert student.generation_config.to_dict() == generation
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name for name in saved if saved[name] != generation.get(name)} <= {"transformers_version"}


def test_resuming_with_another_encoder_does_not_share_it_with_the_teacher(tmp_path):
    """The weights of a checkpoint replace those that were compared when the trainer was made."""
    teacher = small_whisper()
    other = small_whisper(seed=1, decoder_layers=2)
    small_trainer(tmp_path, other, teacher, save_strategy="steps", save_steps=1).train()
    resumed = small_trainer(tmp_path, create_student(teacher), teacher, max_steps=3)
    assert resumed.shares_encoder
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not resumed.shares_encoder
