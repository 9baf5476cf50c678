"""Toy runs that push, for the tests of pushes and of faults."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.trainer import DistillationTrainer
from toy_training import RandomWindows, small_processor, small_trainer, small_whisper

STUDENT = {
    "README.md",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}


LOG = [
    {"loss": 3.0, "kl": 1.0, "pl": 2.0, "step": 1},
    {"eval_test_loss": 2.5, "eval_test_wer": 0.4, "eval_macro_wer": 0.4, "step": 1},
    {"loss": 2.0, "kl": 0.5, "pl": 1.5, "step": 2},
    {"eval_test_loss": 2.0, "eval_test_wer": 0.2, "eval_macro_wer": 0.2, "step": 2},
]
"""Of a training of two steps, each followed by a validation."""


def pushing_trainer(folder: Path, *callbacks: TrainerCallback, **changes: Any) -> DistillationTrainer:
    """Two steps with a checkpoint after each, by default."""
    teacher = small_whisper()
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, "max_steps": 2}
    return small_trainer(
        folder,
        create_student(teacher),
        teacher,
        train=RandomWindows(12),
        processor=small_processor(),
        callbacks=list(callbacks),
        **(settings | changes),
    )


def train_flags(toys: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of `train` for four steps with two pushes to alice/distil-toy."""
    return [
        *("train", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(folder), "--use_cpu"),
        *("--train_dataset.path", str(toys / "corpus"), "--train_dataset.transcript_column", "text"),
        *("--decoder_layers", "2", "--max_steps", "4", "--per_device_train_batch_size", "2", "--logging_steps", "1"),
        *("--save_steps", "2", "--disable_tqdm", "true", "--push_to_hub", "--hub_model_id", "alice/distil-toy"),
        *more,
    ]
