"""Toy runs that push, for the tests of pushes and of faults."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_distil_whisper.training.trainer import DistillationTrainer
from toy_training import RandomWindows, small_pair, small_processor, small_trainer

STUDENT = set(
    "README.md added_tokens.json config.json generation_config.json merges.txt model.safetensors normalizer.json "
    "preprocessor_config.json processor_config.json special_tokens_map.json tokenizer.json tokenizer_config.json "
    "vocab.json".split()
)
TO_HUB = {"push_to_hub": True, "hub_model_id": "alice/toy"}


def pushing_trainer(folder: Path | str, *callbacks: TrainerCallback, **changes: Any) -> DistillationTrainer:
    """Two steps with a checkpoint after each, by default."""
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, "callbacks": list(callbacks)}
    settings |= {"train": RandomWindows(12), "processor": small_processor(), **changes}
    return small_trainer(folder, *small_pair(), **settings)


def train_flags(toys: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of `train` for four steps with two pushes to alice/distil-toy."""
    return [
        *("train", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(folder), "--use_cpu"),
        *("--train_dataset.path", str(toys / "corpus"), "--train_dataset.transcript_column", "text"),
        *("--decoder_layers", "2", "--max_steps", "4", "--per_device_train_batch_size", "2", "--logging_steps", "1"),
        *("--save_steps", "2", "--disable_tqdm", "true", "--push_to_hub", "--hub_model_id", "alice/distil-toy"),
        *more,
    ]
