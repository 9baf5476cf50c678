"""The trainer on real samples: recordings, transcripts with timestamps and prompts, official vocabularies."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor, pipeline

from hf_distil_whisper.checkpoints import load_processor
from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.data.dataset import SpeechDataset
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import DistillationTrainer
from toy_models import toy_audio, toy_processor, toy_whisper
from toy_training import logged, small_args

OFFICIAL = Path(__file__).parents[3] / "shared" / "whisper-files"


def speech(processor: WhisperProcessor, count: int = 6, *, prompt: float = 0.5, train: bool = True) -> SpeechDataset:
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
    column = "whisper_transcript" if train else "text"
    return SpeechDataset(
        Dataset.from_list(rows), processor, transcript_column=column, train=train, condition_on_prev_probability=prompt
    )


def trainer_on_speech(folder: Path, student, teacher, processor: WhisperProcessor, **changes) -> DistillationTrainer:
    data = {"train_dataset": speech(processor), "eval_dataset": {"speech": speech(processor, 4, train=False)}}
    args = small_args(folder, per_device_train_batch_size=3, **changes)
    return DistillationTrainer(student, teacher, args, processing_class=processor, **data)


@pytest.mark.parametrize("cache", ["none", "encoder"])
def test_equal_models_agree_on_prompted_and_timed_samples(tmp_path, cache):
    """Samples of a `SpeechDataset` must reach both models alike, cached or not."""
    student = toy_whisper()
    trainer = trainer_on_speech(
        tmp_path, student, copy.deepcopy(student), toy_processor(), learning_rate=1e-9, teacher_cache=cache
    )
    prompted = [trainer.train_dataset.label_item(index)["labels"][0] == -100 for index in range(6)]
    assert any(prompted)
    assert not all(prompted)
    trainer.train()
    assert logged(trainer, "kl") == pytest.approx([0.0, 0.0], abs=1e-4)
    metrics = trainer.evaluate()
    assert metrics["eval_speech_kl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["eval_macro_wer"] == metrics["eval_speech_wer"] > 0


def test_worker_processes_and_cached_states_give_the_samples_of_a_single_process(tmp_path):
    """Workers that draw their own timestamps, or never see a new epoch, train something else in silence."""
    losses = []
    for changes in ({}, {"dataloader_num_workers": 2}, {"teacher_cache": "encoder"}):
        teacher = toy_whisper()
        student = create_student(teacher)
        trainer = trainer_on_speech(tmp_path, student, teacher, toy_processor(), max_steps=4, **changes)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_the_samples_of_the_two_epochs_differ(tmp_path):
    """Draws frozen in the first epoch are the reference script's: half of the variants are never trained."""
    teacher = toy_whisper()
    trainer = trainer_on_speech(tmp_path, create_student(teacher), teacher, toy_processor(), max_steps=4)
    windows = trainer.train_dataset
    seen = {}
    draw = windows.__class__.__getitem__

    class Recording(SpeechDataset):
        def __getitem__(self, index):
            item = draw(self, index)
            seen.setdefault(int(self._epoch), {})[item["index"]] = item["decoder_input_ids"]
            return item

    windows.__class__ = Recording
    trainer.train()
    assert seen.keys() == {0, 1}
    assert len(seen[0]) == len(seen[1]) == 6
    assert seen[0] != seen[1]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs ../shared/whisper-files")
def test_a_tokenizer_without_a_pad_token_makes_batches():
    """The official whisper-tiny.en has none; the toy tokenizers do."""
    processor = load_processor(OFFICIAL / "whisper-tiny.en")
    assert processor.tokenizer.pad_token is None
    items = [
        {"input_features": torch.zeros(80, 4), "labels": list(range(n)), "decoder_input_ids": [1] * n} for n in (2, 3)
    ]
    batch = DataCollatorSpeechSeq2SeqWithPadding(processor)(items)
    assert batch["decoder_input_ids"].tolist() == [[1, 1, 50256], [1, 1, 1]]
    assert batch["labels"].tolist() == [[0, 1, -100], [0, 1, 2]]


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs ../shared/whisper-files")
@pytest.mark.parametrize("name", ["whisper-tiny", "whisper-tiny.en"])
def test_a_model_of_the_real_shape_trains_and_comes_back_as_a_pipeline(tmp_path, name):
    """51,865 tokens, languages and real token ids: what a vocabulary of toys does not show."""
    teacher = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(OFFICIAL / name)).eval()
    teacher.generation_config = GenerationConfig.from_pretrained(OFFICIAL / name)
    processor = load_processor(OFFICIAL / name)
    student = create_student(teacher)
    configs = student.config.to_dict(), student.generation_config.to_dict()
    language = "en" if name == "whisper-tiny" else None
    trainer = trainer_on_speech(tmp_path, student, teacher, processor, language=language, learning_rate=1e-3)
    trainer.train()
    assert student.generation_config.chunk_length_s == 15.0
    del student.generation_config.chunk_length_s  # all else is as it was
    assert (student.config.to_dict(), student.generation_config.to_dict()) == configs
    assert np.isfinite(trainer.evaluate()["eval_speech_loss"])
    trainer.save_model()
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path))
    assert isinstance(recognise(toy_audio(1.0), max_new_tokens=5)["text"], str)
    weights = recognise.model.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in student.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["decoder_layers"] == 2
