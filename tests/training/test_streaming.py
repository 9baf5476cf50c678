"""A training on streams goes on after a stop as if there had been none, and refuses what needs rows to count."""

from pathlib import Path

import pytest
import torch

from data.test_speech_stream import speech, write_source
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import DistillationTrainer
from toy_training import small_args, small_processor, small_whisper


def trainer_on(folder: Path, sources: dict[str, str], **changes: object) -> DistillationTrainer:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, **changes}
    args = small_args(folder, per_device_train_batch_size=2, **settings)
    stream, teacher = speech(sources), small_whisper()
    return DistillationTrainer(
        create_student(teacher), teacher, args, train_dataset=stream, processing_class=small_processor()
    )


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    return {name: write_source(tmp_path / name, 2, rows, name) for name, rows in {"read": 4, "spoken": 3}.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_training_ends_with_the_weights_of_an_undisturbed_one(tmp_path, sources, workers) -> None:
    settings = {"dataloader_num_workers": workers, "gradient_accumulation_steps": 2}
    whole = trainer_on(tmp_path / "whole", sources, **settings)
    whole.train()
    resumed = trainer_on(tmp_path / "resumed", sources, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert whole.state.global_step == resumed.state.global_step == 6
    expected = whole.model.state_dict()
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_other_streams_or_workers_are_not_gone_on_with(tmp_path, sources) -> None:
    trainer_on(tmp_path / "run", sources, max_steps=2).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    other = trainer_on(tmp_path / "other", dict(reversed(sources.items())))
    with pytest.raises(ValueError, match="names were"):
        other.train(resume_from_checkpoint=checkpoint)
    more = trainer_on(tmp_path / "more", sources, dataloader_num_workers=1)
    with pytest.raises(ValueError, match="workers were 0 when the training was stopped and are 1 now"):
        more.train(resume_from_checkpoint=checkpoint)
    Path(checkpoint, "streams.json").unlink()
    with pytest.raises(ValueError, match=r"holds no streams\.json"):
        trainer_on(tmp_path / "lost", sources).train(resume_from_checkpoint=checkpoint)


def test_what_needs_rows_to_come_back_to_is_refused(tmp_path, sources) -> None:
    with pytest.raises(ValueError, match=r"--teacher_cache both keeps .* Set it to none, or load the rows"):
        trainer_on(tmp_path, sources, teacher_cache="both")
    with pytest.raises(ValueError, match="--max_steps: a stream has no end"):
        trainer_on(tmp_path, sources, max_steps=-1)
