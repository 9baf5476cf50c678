"""Knowledge distillation of Whisper as a plugin for the Hugging Face Trainer.

Names are imported when they are first used, so that `import hf_distil_whisper` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distil_whisper.checkpoints import load_model as load_model
    from hf_distil_whisper.checkpoints import load_processor as load_processor
    from hf_distil_whisper.checkpoints import save_checkpoint as save_checkpoint
    from hf_distil_whisper.cli.config import parse_arguments as parse_arguments
    from hf_distil_whisper.cli.main import run_script as run_script
    from hf_distil_whisper.cli.train import TrainArguments as TrainArguments
    from hf_distil_whisper.cli.train import build_trainer as build_trainer
    from hf_distil_whisper.cli.train import plan_training as plan_training
    from hf_distil_whisper.data.audio import AudioError as AudioError
    from hf_distil_whisper.data.audio import load_audio as load_audio
    from hf_distil_whisper.data.collator import (
        DataCollatorSpeechSeq2SeqWithPadding as DataCollatorSpeechSeq2SeqWithPadding,
    )
    from hf_distil_whisper.data.dataset import SpeechDataset as SpeechDataset
    from hf_distil_whisper.data.packing import pack_utterances as pack_utterances
    from hf_distil_whisper.data.sources import Columns as Columns
    from hf_distil_whisper.data.sources import RowErrors as RowErrors
    from hf_distil_whisper.data.sources import load_source as load_source
    from hf_distil_whisper.data.streaming import SpeechStream as SpeechStream
    from hf_distil_whisper.evaluation.evaluate import evaluate_model as evaluate_model
    from hf_distil_whisper.evaluation.latency import measure_latency as measure_latency
    from hf_distil_whisper.evaluation.long_form import evaluate_long_form as evaluate_long_form
    from hf_distil_whisper.evaluation.noise import add_noise as add_noise
    from hf_distil_whisper.evaluation.significance import compare_results as compare_results
    from hf_distil_whisper.evaluation.significance import effective_robustness as effective_robustness
    from hf_distil_whisper.export.ctranslate2 import export_ctranslate2 as export_ctranslate2
    from hf_distil_whisper.export.ggml import export_ggml as export_ggml
    from hf_distil_whisper.export.onnx import export_onnx as export_onnx
    from hf_distil_whisper.hub.callbacks import ModelCardCallback as ModelCardCallback
    from hf_distil_whisper.hub.callbacks import PushCheckpointCallback as PushCheckpointCallback
    from hf_distil_whisper.hub.dataset_card import push_dataset as push_dataset
    from hf_distil_whisper.hub.model_card import CardFacts as CardFacts
    from hf_distil_whisper.hub.model_card import generate_model_card as generate_model_card
    from hf_distil_whisper.hub.model_card import push_student as push_student
    from hf_distil_whisper.hub.push import PushError as PushError
    from hf_distil_whisper.inference.generation import GenerationSettings as GenerationSettings
    from hf_distil_whisper.inference.speculative import assistant_arguments as assistant_arguments
    from hf_distil_whisper.inference.speculative import create_assistant as create_assistant
    from hf_distil_whisper.inference.transcribe import TemperatureFallback as TemperatureFallback
    from hf_distil_whisper.inference.transcribe import Transcription as Transcription
    from hf_distil_whisper.inference.transcribe import transcribe as transcribe
    from hf_distil_whisper.inference.transcribe import transcribe_chunked as transcribe_chunked
    from hf_distil_whisper.inference.transcribe import transcribe_sequential as transcribe_sequential
    from hf_distil_whisper.metrics import WordErrorRate as WordErrorRate
    from hf_distil_whisper.metrics import WordErrors as WordErrors
    from hf_distil_whisper.metrics import character_errors as character_errors
    from hf_distil_whisper.metrics import get_normalizer as get_normalizer
    from hf_distil_whisper.metrics import repeated_ngrams as repeated_ngrams
    from hf_distil_whisper.metrics import word_errors as word_errors
    from hf_distil_whisper.pseudo_labels.filtering import EmptyFilterError as EmptyFilterError
    from hf_distil_whisper.pseudo_labels.filtering import FilterReport as FilterReport
    from hf_distil_whisper.pseudo_labels.filtering import filter_by_wer as filter_by_wer
    from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset as pseudo_label_dataset
    from hf_distil_whisper.student import create_student as create_student
    from hf_distil_whisper.student import select_layers as select_layers
    from hf_distil_whisper.training.args import DistillationTrainingArguments as DistillationTrainingArguments
    from hf_distil_whisper.training.fused_loss import DistillationLoss as DistillationLoss
    from hf_distil_whisper.training.fused_loss import fused_distillation_loss as fused_distillation_loss
    from hf_distil_whisper.training.losses import hidden_state_mse_loss as hidden_state_mse_loss
    from hf_distil_whisper.training.losses import kl_divergence_loss as kl_divergence_loss
    from hf_distil_whisper.training.losses import pseudo_label_loss as pseudo_label_loss
    from hf_distil_whisper.training.trainer import DistillationTrainer as DistillationTrainer

__version__ = "0.1.0"

_MODULES = {
    "checkpoints": ("load_model", "load_processor", "save_checkpoint"),
    "cli.config": ("parse_arguments",),
    "cli.main": ("run_script",),
    "cli.train": ("TrainArguments", "build_trainer", "plan_training"),
    "data.audio": ("AudioError", "load_audio"),
    "data.collator": ("DataCollatorSpeechSeq2SeqWithPadding",),
    "data.dataset": ("SpeechDataset",),
    "data.packing": ("pack_utterances",),
    "data.sources": ("Columns", "RowErrors", "load_source"),
    "data.streaming": ("SpeechStream",),
    "evaluation.evaluate": ("evaluate_model",),
    "evaluation.latency": ("measure_latency",),
    "evaluation.long_form": ("evaluate_long_form",),
    "evaluation.noise": ("add_noise",),
    "evaluation.significance": ("compare_results", "effective_robustness"),
    "export.ctranslate2": ("export_ctranslate2",),
    "export.ggml": ("export_ggml",),
    "export.onnx": ("export_onnx",),
    "hub.callbacks": ("ModelCardCallback", "PushCheckpointCallback"),
    "hub.dataset_card": ("push_dataset",),
    "hub.model_card": ("CardFacts", "generate_model_card", "push_student"),
    "hub.push": ("PushError",),
    "inference.generation": ("GenerationSettings",),
    "inference.speculative": ("assistant_arguments", "create_assistant"),
    "inference.transcribe": (
        "TemperatureFallback",
        "Transcription",
        "transcribe",
        "transcribe_chunked",
        "transcribe_sequential",
    ),
    "metrics": (
        "WordErrorRate",
        "WordErrors",
        "character_errors",
        "get_normalizer",
        "repeated_ngrams",
        "word_errors",
    ),
    "pseudo_labels.filtering": ("EmptyFilterError", "FilterReport", "filter_by_wer"),
    "pseudo_labels.labeller": ("pseudo_label_dataset",),
    "student": ("create_student", "select_layers"),
    "training.args": ("DistillationTrainingArguments",),
    "training.fused_loss": ("DistillationLoss", "fused_distillation_loss"),
    "training.losses": ("hidden_state_mse_loss", "kl_divergence_loss", "pseudo_label_loss"),
    "training.trainer": ("DistillationTrainer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hf_distil_whisper' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hf_distil_whisper.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
