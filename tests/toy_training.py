"""Windows of one second with random features, and trainers on them that take a step in milliseconds."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.array_store import content_key
from hf_distil_whisper.data.collator import DataCollatorSpeechSeq2SeqWithPadding
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.losses import hidden_state_mse_loss, kl_divergence_loss, pseudo_label_loss
from hf_distil_whisper.training.trainer import DistillationTrainer
from toy_models import SENTENCES, toy_processor, toy_whisper

Whisper = WhisperForConditionalGeneration


def small_whisper(seed: int = 0, **changes: Any) -> Whisper:
    """`toy_whisper` with windows of 1 s: 100 frames, 50 encoder positions."""
    return toy_whisper(seed, **{"max_source_positions": 50, **changes})


def small_pair(**changes: Any) -> tuple[Whisper, Whisper]:
    """A student, and the `small_whisper` that it is created from."""
    teacher = small_whisper(**changes)
    return create_student(teacher), teacher


@lru_cache(maxsize=1)
def small_processor() -> WhisperProcessor:
    """`toy_processor` for these windows."""
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=80, chunk_length=1), toy_processor().tokenizer)


class RandomWindows(torch.utils.data.Dataset):
    """Random features with labels of different lengths; every third row is prompted."""

    def __init__(self, count: int, seed: int = 0):
        self.features = torch.randn(count, 80, 100, generator=torch.Generator().manual_seed(seed))
        self.decoded: list[int] = []
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.decoded.append(index)
        return {**self.label_item(index), "input_features": self.features[index]}

    def label_item(self, index: int) -> dict[str, Any]:
        tokenizer = toy_processor().tokenizer
        names = ["<|startofprev|>", "<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"]
        previous, start, no_times, end = tokenizer.convert_tokens_to_ids(names)
        text = tokenizer(SENTENCES[index % 3], add_special_tokens=False).input_ids[: 4 + 3 * (index % 4)]
        sequence = [start, no_times, *text, end]
        prompt = [previous, *text[:3]] if index % 3 == 0 else []
        labels = [-100] * len(prompt) + sequence[1:]
        return {"decoder_input_ids": prompt + sequence[:-1], "labels": labels, "index": index}

    def variants(self, index: int, epochs: int | None = None) -> list[dict[str, Any]]:
        return [self.label_item(index)]

    def audio_key(self, index: int) -> bytes:
        return content_key(self.features[index].numpy())

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return DataCollatorSpeechSeq2SeqWithPadding(small_processor())(items)


def small_args(folder: Path | str, **changes: Any) -> DistillationTrainingArguments:
    """On the CPU, logging every step, saving nothing by default."""
    settings = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
    settings |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 2}
    settings |= {"generation_max_length": 12}
    return DistillationTrainingArguments(str(folder), **(settings | changes))


def small_trainer(
    folder: Path | str,
    student: Whisper,
    teacher: Whisper | None,
    *,
    train: torch.utils.data.Dataset | None = None,
    evaluation: Any = None,
    processor: WhisperProcessor | None = None,
    callbacks: list | None = None,
    **changes: Any,
) -> DistillationTrainer:
    """A trainer on `RandomWindows(8)`."""
    data = {"train_dataset": train or RandomWindows(8), "eval_dataset": evaluation, "processing_class": processor}
    return DistillationTrainer(student, teacher, small_args(folder, **changes), collate, callbacks=callbacks, **data)


def trained(
    folder: Path | str, student: Whisper | None = None, teacher: Whisper | None = None, **settings: Any
) -> DistillationTrainer:
    """A trainer after its training; by default of a new teacher and the student created from it."""
    teacher = teacher or small_whisper()
    trainer = small_trainer(folder, student or create_student(teacher), teacher, **settings)
    trainer.train()
    return trainer


def assert_same_weights(model: Whisper, other: Whisper, rtol: float = 0, atol: float = 0) -> None:
    """Weight by weight, to the last bit unless tolerances are given."""
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=rtol, atol=atol)


def plain_losses(student: Whisper, teacher: Whisper, windows: RandomWindows, temperature: float) -> dict[str, float]:
    """`kl`, `pl` and `mse` of all windows by the plain formulas on the full logits."""
    batch = collate([windows[index] for index in range(len(windows))])
    labels = batch.pop("labels")
    with torch.no_grad():
        ours, theirs = (model(**batch, output_hidden_states=True) for model in (student, teacher))
    kl = kl_divergence_loss(ours.logits, theirs.logits, labels, temperature=temperature)
    mse = hidden_state_mse_loss(ours.decoder_hidden_states, theirs.decoder_hidden_states, labels)
    return {"kl": kl.item(), "pl": pseudo_label_loss(ours.logits, labels).item(), "mse": mse.item()}


def logged(trainer: DistillationTrainer, name: str) -> list[float]:
    """All values of one name in the logs, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
