"""The trainer draws sources in their shares, rows of like length together, and the same rows after a stop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.data.mixture import Mixture
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import (
    MIXTURE_FILE,
    DistillationTrainer,
    EpochSampler,
    epoch_sampler,
)
from toy_models import toy_audio
from toy_training import small_args, small_processor, small_whisper


def speech(count: int = 12, mixture: Mixture | None = None) -> SpeechDataset:
    """Rows whose texts have 3, 6, 9, ... characters."""
    audio = [{"bytes": encode_flac(toy_audio(0.2, seed=row)), "path": None} for row in range(count)]
    texts = ["abc" * (row % 12 + 1) for row in range(count)]
    rows = Dataset.from_dict({"audio": audio, "whisper_transcript": texts})
    return SpeechDataset(rows, small_processor(), mixture=mixture)


def two_sources(strategy: str = "first_exhausted") -> Mixture:
    return Mixture(("read", "spoken"), (8, 4), (1.0, 1.0), strategy)


def trainer_on(folder: Path, dataset: SpeechDataset, **changes: object) -> DistillationTrainer:
    student, teacher = create_student(small_whisper()), small_whisper()
    args = small_args(folder, per_device_train_batch_size=2, max_steps=-1, **changes)
    return DistillationTrainer(student, teacher, args, train_dataset=dataset, processing_class=small_processor())


@pytest.mark.parametrize("cache", ["none", "both"])
def test_a_training_draws_the_rows_of_the_mixture(tmp_path: Path, cache: str) -> None:
    """With the teacher cache around it the mixture would be lost, and every row drawn once."""
    dataset = speech(mixture=two_sources())
    drawn: list[int] = []
    label_items = dataset._label_items
    trainer = trainer_on(tmp_path, dataset, num_train_epochs=2, teacher_cache=cache)
    loader = trainer.get_train_dataloader()
    dataset._label_items = lambda index: (drawn.append(index), label_items(index))[1]  # type: ignore[method-assign]
    for epoch in range(2):
        loader.set_epoch(epoch)
        for _ in loader:
            pass
    assert drawn == [*two_sources().rows(0), *two_sources().rows(1)]
    assert len(loader) == 4


def test_a_stopped_training_on_a_mixture_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
    whole = trainer_on(tmp_path / "whole", speech(mixture=two_sources()), **settings)
    whole.train()
    for workers in (0, 2):
        again = trainer_on(
            tmp_path / "again", speech(mixture=two_sources()), dataloader_num_workers=workers, **settings
        )
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        for name, weight in whole.model.state_dict().items():
            torch.testing.assert_close(again.model.state_dict()[name], weight, rtol=0, atol=0)


def test_a_checkpoint_of_other_sources_is_refused(tmp_path: Path) -> None:
    trainer = trainer_on(tmp_path, speech(mixture=two_sources()), save_strategy="epoch", num_train_epochs=1)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-4"
    assert json.loads((checkpoint / MIXTURE_FILE).read_text())["names"] == ["read", "spoken"]
    turned = Mixture(("spoken", "read"), (8, 4), (1.0, 1.0), "first_exhausted")
    with pytest.raises(ValueError, match="Resume with the same sources in the same order"):
        trainer_on(tmp_path, speech(mixture=turned)).train(resume_from_checkpoint=str(checkpoint))


def test_steps_of_a_grouped_training_hold_rows_of_like_length(tmp_path: Path) -> None:
    """Upstream groups by the length of the features, which is 30 s for every row, after computing them all."""
    dataset = speech(96)
    args = small_args(tmp_path, per_device_train_batch_size=4, train_sampling_strategy="group_by_length")
    sampler = epoch_sampler(dataset, args)
    assert isinstance(sampler, EpochSampler)
    rows = list(sampler)
    lengths = dataset.text_lengths()[rows].reshape(-1, 4)
    assert sorted(rows) == list(range(96))
    assert np.ptp(lengths, axis=1).max() == 0
    assert lengths[0, 0] == 36
    assert lengths[:, 0].tolist() != sorted(lengths[:, 0].tolist(), reverse=True)
    dataset.set_epoch(1)
    assert list(sampler) != rows
    dataset.set_epoch(0)
    assert list(sampler) == rows


def test_a_single_source_without_groups_is_left_to_the_trainer(tmp_path: Path) -> None:
    assert epoch_sampler(speech(), small_args(tmp_path)) is None
    assert epoch_sampler(torch.utils.data.TensorDataset(torch.zeros(3)), small_args(tmp_path)) is None
    sequential = small_args(tmp_path, train_sampling_strategy="sequential")
    assert epoch_sampler(speech(mixture=two_sources()), sequential) is None


def test_a_mixture_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="`mixture` is of 12 rows, the data set has 11"):
        speech(11, two_sources())
