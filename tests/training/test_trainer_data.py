"""Order of the training data, and what a run saves: a resumed run ends with the weights of an undisturbed one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import pipeline

from data.test_streaming import speech as speech_stream
from data.test_streaming import write_source
from hf_distil_whisper.checkpoints import load_model, load_processor, save_checkpoint
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.data.mixture import Mixture
from hf_distil_whisper.data.streaming import SpeechStream
from hf_distil_whisper.inference.chunked import default_chunk_length
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import MIXTURE_FILE, DistillationTrainer, EpochSampler, epoch_sampler
from toy_models import SENTENCES, toy_audio, toy_processor, toy_whisper
from toy_training import (
    RandomWindows,
    assert_same_weights,
    small_args,
    small_pair,
    small_processor,
    small_trainer,
    small_whisper,
    trained,
)

SAVING = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "warmup_steps": 2}
READ_AND_SPOKEN = Mixture(("read", "spoken"), (8, 4), (1.0, 1.0), "first_exhausted")


def speech(count: int = 12, mixture: Mixture | None = None) -> SpeechDataset:
    """Rows whose texts have 3, 6, 9, ... characters."""
    audio = [{"bytes": encode_flac(toy_audio(0.2, seed=row)), "path": None} for row in range(count)]
    texts = ["abc" * (row % 12 + 1) for row in range(count)]
    rows = Dataset.from_dict({"audio": audio, "whisper_transcript": texts})
    return SpeechDataset(rows, small_processor(), mixture=mixture)


def trainer_on(folder: Path, rows: torch.utils.data.Dataset, **changes: object) -> DistillationTrainer:
    settings = {"train": rows, "processor": small_processor(), "per_device_train_batch_size": 2, "max_steps": 9}
    return small_trainer(folder, *small_pair(), **(settings | changes))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Of streams."""
    return {name: write_source(tmp_path / name, 2, rows) for name, rows in {"read": 4, "spoken": 3}.items()}


@pytest.mark.parametrize(
    ("rows", "settings", "workers"),
    [
        *(("windows", {"teacher_cache": cache}, 0) for cache in ("none", "encoder", "both")),
        *(("mixture", {}, workers) for workers in (0, 2)),
        ("streams", {"gradient_accumulation_steps": 2}, 0),
        ("streams", {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2}, 2),
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, sources, rows, settings, workers):
    """Another order of rows, or a schedule that starts anew, shows nowhere but in a worse student."""
    make = {"windows": lambda: RandomWindows(12), "mixture": lambda: speech(mixture=READ_AND_SPOKEN)}
    make["streams"] = lambda: speech_stream(sources)
    whole = trainer_on(tmp_path / "whole", make[rows](), **SAVING, **settings)
    whole.train()
    for step in (2, 4, 6):
        changes = settings | {"dataloader_num_workers": workers}
        resumed = trainer_on(tmp_path / "resumed", make[rows](), **SAVING, **changes)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert whole.state.global_step == resumed.state.global_step == 9
        assert_same_weights(resumed.model, whole.model)


def test_every_checkpoint_is_a_complete_student_without_traces_of_its_teacher_and_training(tmp_path):
    """Upstream saves use_cache=False and a max_length of 20, the reference script 3 GB of teacher each time."""
    student, teacher = small_pair()
    config, generation = student.config.to_dict(), student.generation_config.to_dict()
    validation = {"evaluation": RandomWindows(4), "eval_strategy": "steps", "eval_steps": 1}
    trained(tmp_path, student, teacher, processor=small_processor(), **SAVING, **validation).save_model()
    assert student.config.to_dict() | {"architectures": None} == config
    assert student.generation_config.to_dict() == generation
    for folder in (tmp_path / "checkpoint-2", tmp_path):
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() <= student.state_dict().keys()
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        present = {path.name for path in folder.iterdir()}
        assert {"preprocessor_config.json", "normalizer.json", "added_tokens.json", "tokenizer.json"} <= present
        assert not [name for name in present if name.startswith(("model_1", "pytorch_model"))]
        assert_same_weights(load_model(folder), student)
        assert len(load_processor(folder).tokenizer) == student.config.vocab_size
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True
        saved = json.loads((folder / "generation_config.json").read_text())
        changed = {name for name in saved if saved[name] != generation.get(name)}
        assert changed <= {"transformers_version", "_from_model_config"}
    states = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    assert len(states) == sum(weight.requires_grad for weight in student.parameters())


def test_resuming_with_another_encoder_does_not_share_it_with_the_teacher(tmp_path):
    """The weights of a checkpoint replace those that were compared when the trainer was made."""
    teacher = small_whisper()
    trained(tmp_path, small_whisper(seed=1, decoder_layers=2), teacher, save_strategy="steps", save_steps=1)
    resumed = small_trainer(tmp_path, create_student(teacher), teacher, max_steps=3)
    assert resumed.shares_encoder
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not resumed.shares_encoder


# Mixtures, groups of similar length, and streams


@pytest.mark.parametrize("cache", ["none", "both"])
def test_a_training_draws_the_rows_of_the_mixture(tmp_path, cache):
    """With the teacher cache around it the mixture would be lost, and every row drawn once."""
    rows = speech(mixture=READ_AND_SPOKEN)
    drawn: list[int] = []
    label_items = rows._label_items
    loader = trainer_on(tmp_path, rows, teacher_cache=cache).get_train_dataloader()
    rows._label_items = lambda index: (drawn.append(index), label_items(index))[1]  # type: ignore[method-assign]
    for epoch in range(2):
        loader.set_epoch(epoch)
        for _ in loader:
            pass
    assert drawn == [*READ_AND_SPOKEN.rows(0), *READ_AND_SPOKEN.rows(1)]
    assert len(loader) == 4


def test_a_checkpoint_of_other_rows_is_not_resumed_from(tmp_path, sources):
    """The steps that are left would draw rows that the training has had, or leave some out for ever."""
    for folder, rows in (("mixed", speech(mixture=READ_AND_SPOKEN)), ("streamed", speech_stream(sources))):
        trainer_on(tmp_path / folder, rows, save_strategy="steps", save_steps=2, max_steps=2).train()
    mixed, streamed = tmp_path / "mixed" / "checkpoint-2", tmp_path / "streamed" / "checkpoint-2"
    assert json.loads((mixed / MIXTURE_FILE).read_text())["names"] == ["read", "spoken"]
    turned = speech(mixture=Mixture(("spoken", "read"), (8, 4), (1.0, 1.0), "first_exhausted"))
    for message, checkpoint, rows, workers in (
        ("Resume with the same sources in the same order", mixed, turned, 0),
        ("names were", streamed, speech_stream(dict(reversed(sources.items()))), 0),
        ("workers were 0 when the training was stopped and are 1 now", streamed, speech_stream(sources), 1),
        (r"holds no streams\.json", mixed, speech_stream(sources), 0),
    ):
        trainer = trainer_on(tmp_path / "other", rows, dataloader_num_workers=workers)
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=str(checkpoint))


def test_settings_that_need_countable_rows_and_a_mixture_of_other_rows_are_refused(tmp_path, sources):
    with pytest.raises(ValueError, match=r"--teacher_cache both stores .* Set it to none, or load the rows"):
        trainer_on(tmp_path, speech_stream(sources), teacher_cache="both")
    with pytest.raises(ValueError, match="--max_steps: a stream has no end"):
        trainer_on(tmp_path, speech_stream(sources), max_steps=-1)
    with pytest.raises(ValueError, match="`mixture` is of 12 rows, the data set has 11"):
        speech(11, READ_AND_SPOKEN)


def test_steps_of_a_grouped_training_hold_rows_of_similar_length(tmp_path):
    """Upstream groups by the length of the features, which is 30 s for every row, after computing them all."""
    dataset = speech(96)
    sampler = epoch_sampler(dataset, small_args(tmp_path, train_sampling_strategy="group_by_length"))
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


def test_a_single_source_without_groups_is_left_to_the_trainer(tmp_path):
    assert epoch_sampler(speech(), small_args(tmp_path)) is None
    assert epoch_sampler(RandomWindows(3), small_args(tmp_path)) is None
    sequential = small_args(tmp_path, train_sampling_strategy="sequential")
    assert epoch_sampler(speech(mixture=READ_AND_SPOKEN), sequential) is None


# The chunk length that follows the data


def timed_rows(seconds: list[float | None], with_audio: float = 1.0) -> Dataset:
    audio = {"bytes": encode_flac(toy_audio(with_audio)), "path": None}
    return Dataset.from_list([{"audio": audio, "text": SENTENCES[0], "duration": length} for length in seconds])


def timed_speech(data: Dataset, mixture: Mixture | None = None) -> SpeechDataset:
    return SpeechDataset(data, toy_processor(), transcript_column="text", mixture=mixture)


def test_mean_duration_comes_from_the_column_the_headers_or_the_first_rows():
    """A corpus whose durations are unknown is taken for one of windows, and its student hallucinates."""
    assert timed_speech(timed_rows([2.0, 4.0, None])).mean_duration() == 3.0
    assert timed_speech(timed_rows([None, None], 2.0)).mean_duration() == 2.0
    assert timed_speech(timed_rows([1.0, 2.0], 2.0).remove_columns("duration")).mean_duration() == 2.0
    mixture = Mixture(("short", "long"), (2, 1), (3.0, 1.0))
    assert timed_speech(timed_rows([10.0, 10.0, 30.0]), mixture).mean_duration() == pytest.approx((3 * 10 + 30) / 4)
    streams = {name: timed_rows([length] * 2).to_iterable_dataset() for name, length in {"a": 10.0, "b": 30.0}.items()}
    stream = SpeechStream(streams, toy_processor(), weights={"a": 1.0, "b": 3.0}, transcript_column="text")
    assert stream.mean_duration() == 25.0


@pytest.mark.parametrize(("seconds", "expected"), [(7.0, 15.0), (28.0, 30.0)])
def test_a_trained_student_carries_its_chunk_length(tmp_path, seconds, expected):
    """An entry lost on the way leaves every student at 30 s, where Table 23 has 7.4 % WER instead of 4.2 %."""
    teacher, rows = toy_whisper(), timed_speech(timed_rows([seconds]))
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "per_device_train_batch_size": 1}
    trainer = trained(tmp_path, None, teacher, train=rows, processor=toy_processor(), **settings)
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        model = load_model(folder)
        assert default_chunk_length(model, toy_processor()) == expected
    assert default_chunk_length(teacher, toy_processor()) == 30.0
    save_checkpoint(model, toy_processor(), tmp_path / "again")
    assert load_model(tmp_path / "again").generation_config.chunk_length_s == expected
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "again"))
    assert isinstance(recognise(toy_audio(1.0), max_new_tokens=3)["text"], str)
