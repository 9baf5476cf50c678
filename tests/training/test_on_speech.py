"""The trainer on real samples: recordings, transcripts with timestamps and prompts, official vocabularies."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import WhisperProcessor, pipeline

from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import DistillationTrainer
from official_models import needs_files, small_official_whisper
from toy_models import toy_audio, toy_processor, toy_whisper
from toy_training import logged, small_args


def speech(
    processor: WhisperProcessor, count: int = 6, *, train: bool = True, language: str | None = None
) -> SpeechDataset:
    """Windows of a second, labelled with timestamps, each with the text before it."""
    rows = [
        {
            "id": str(index),
            "audio": {"bytes": encode_flac(toy_audio(1.0, seed=index)), "path": None},
            "text": f"Number {index} of the quick brown foxes.",
            "whisper_transcript": f"<|0.00|> Number {index}<|0.40|><|0.40|> of the quick brown foxes.<|1.00|>",
            "previous_transcript": f"Number {index - 1} of the quick brown foxes." if index else None,
            "condition_on_prev": index > 0,
        }
        for index in range(count)
    ]
    options = {"transcript_column": "whisper_transcript" if train else "text", "train": train, "language": language}
    return SpeechDataset(Dataset.from_list(rows), processor, condition_on_prev_probability=0.5, **options)


def trained_on_speech(folder: Path, student, teacher, processor: WhisperProcessor, **changes) -> DistillationTrainer:
    options = {"language": changes.get("language")}
    evaluation = {"speech": speech(processor, 4, train=False, **options)}
    data = {"train_dataset": speech(processor, **options), "eval_dataset": evaluation}
    args = small_args(folder, per_device_train_batch_size=3, **changes)
    trainer = DistillationTrainer(student, teacher, args, processing_class=processor, **data)
    trainer.train()
    return trainer


def test_equal_models_agree_on_prompted_and_timed_samples(tmp_path):
    """Samples of a `SpeechDataset` must reach both models alike."""
    student = toy_whisper()
    trainer = trained_on_speech(tmp_path, student, copy.deepcopy(student), toy_processor(), learning_rate=1e-9)
    prompted = [trainer.train_dataset.label_item(index)["labels"][0] == -100 for index in range(6)]
    assert set(prompted) == {True, False}
    assert logged(trainer, "kl") == pytest.approx([0.0, 0.0], abs=1e-4)
    metrics = trainer.evaluate()
    assert metrics["eval_speech_kl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["eval_macro_wer"] == metrics["eval_speech_wer"] > 0


def test_worker_processes_and_cached_states_give_the_samples_of_a_single_process(tmp_path):
    """Workers that draw their own timestamps, or never see a new epoch, train something else in silence."""
    losses = []
    # In bf16 on a CPU the rows are read within autocast.
    for changes in (
        {},
        {"dataloader_num_workers": 2},
        {"teacher_cache": "encoder"},
        {"teacher_cache": "both", "bf16": True},
    ):
        teacher = toy_whisper()
        trainer = trained_on_speech(
            tmp_path, create_student(teacher), teacher, toy_processor(), max_steps=4, **changes
        )
        losses.append(logged(trainer, "loss"))
        assert losses[-1] == pytest.approx(losses[0], rel=0.01 if "bf16" in changes else 1e-4)


@needs_files
@pytest.mark.parametrize("name", ["whisper-tiny", "whisper-tiny.en"])
def test_a_student_of_an_official_vocabulary_trains_and_comes_back_as_a_pipeline(tmp_path, name):
    """51,865 tokens, languages, real token ids and a tokenizer without a pad token: what toys do not show."""
    teacher, processor = small_official_whisper(name)
    student = create_student(teacher, decoder_layers=1)
    configs = student.config.to_dict(), student.generation_config.to_dict()
    language = "en" if name == "whisper-tiny" else None
    trainer = trained_on_speech(tmp_path, student, teacher, processor, language=language, learning_rate=1e-3)
    assert student.generation_config.chunk_length_s == 15.0
    del student.generation_config.chunk_length_s  # all else is as it was
    assert (student.config.to_dict(), student.generation_config.to_dict()) == configs
    assert np.isfinite(trainer.evaluate()["eval_speech_loss"])
    trainer.save_model()
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path))
    assert isinstance(recognise(toy_audio(1.0), max_new_tokens=5)["text"], str)
    weights = recognise.model.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in student.state_dict().items())
    sample = {"input_features": torch.zeros(80, 4), "labels": [0, 1, 2], "decoder_input_ids": [1, 1, 1]}
    batch = trainer.data_collator([sample | {"labels": [0, 1], "decoder_input_ids": [1, 1]}, sample])
    assert batch["decoder_input_ids"].tolist() == [[1, 1, processor.tokenizer.eos_token_id], [1, 1, 1]]
    assert batch["labels"].tolist() == [[0, 1, -100], [0, 1, 2]]
