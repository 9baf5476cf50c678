"""What [`export_onnx`] writes, run by onnxruntime: the greedy search of `generation.py` on the exported graphs.

Knows how encoder, decoder and decoder with past work together, as they do in transformers.js and optimum.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.inference.export import import_runtime
from hf_distil_whisper.inference.export_onnx import ONNX_FOLDER, SUFFIXES
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    cut_at_end,
    decoder_prefix,
    language_tokens,
    max_generated_tokens,
    resolve_languages,
    token_rules,
)
from hf_distil_whisper.inference.onnx_merge import SWITCH


class OnnxGenerator:
    """Transcribes batches of windows as [`generate_tokens`] does, by onnxruntime on the CPU.

    Args:
        model (`WhisperForConditionalGeneration`): what was exported; only its configs are read.
        folder (`str` or `Path`): written by [`export_onnx`].
        max_new_tokens (`int`, *optional*, defaults to what [`max_generated_tokens`] allows): bound on the tokens.
        language (`str`, *optional*): see [`resolve_language`]; None detects it.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        merged (`bool`, *optional*, defaults to `False`): run `decoder_model_merged`, as transformers.js does.

    Raises:
        ImportError: without the extra `onnx`.
        FileNotFoundError: if there are no exported graphs.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        folder: str | Path,
        *,
        max_new_tokens: int | None = None,
        language: str | None = None,
        task: str = "transcribe",
        merged: bool = False,
    ):
        runtime = import_runtime("onnxruntime", "onnx")
        self._model, self._language, self._task, self._merged = model, language, task, merged
        resolve_languages(model, language, task, 1)
        self._new_tokens = max_new_tokens or max_generated_tokens(model, False)
        names = ["decoder_model_merged"] if merged else ["decoder_model", "decoder_with_past_model"]
        graphs = [_session(runtime, Path(folder, ONNX_FOLDER), name) for name in ["encoder_model", *names]]
        self._encoder, self._first, self._further = graphs[0], graphs[1], graphs[-1]

    def __call__(self, input_features: Tensor, *, language: Sequence[str | None] | None = None) -> list[TokenSequence]:
        """Tokens of a batch of windows.

        Args:
            input_features (`Tensor`): log-mel of shape (batch, mel bins, frames), padded to the window.
            language (`Sequence[str | None]`, *optional*): of each window, in place of the one for all.
        """
        told = self._language if language is None else language
        codes = resolve_languages(self._model, told, self._task, len(input_features))
        # One window after the other, as `encode` does it on a CPU: sooner than all at once.
        windows = input_features.float().cpu().numpy()[:, None]
        states = np.concatenate([self._encoder.run(None, {"input_features": window})[0] for window in windows])
        languages = language_tokens(self._model, codes, lambda: self._heard(states))
        prefix = torch.tensor([decoder_prefix(self._model, token, self._task, False) for token in languages])
        end = self._model.generation_config.eos_token_id
        rows = self._search(states, prefix, end)[:, prefix.shape[1] :].tolist()
        return [TokenSequence(*cut_at_end(row, end)) for row in rows]

    def _search(self, states: np.ndarray, prefix: Tensor, end: int) -> Tensor:
        rules = token_rules(self._model, prefix.shape[1], False)
        sequences, ended = prefix, torch.zeros(len(prefix), dtype=torch.bool)
        logits, past = self._start(states, prefix.numpy())
        for step in range(self._new_tokens):
            if step:
                logits = self._go_on(sequences[:, -1:].numpy(), states, past)
            chosen = rules(sequences, torch.from_numpy(logits[:, -1])).argmax(dim=-1).masked_fill(ended, end)
            sequences = torch.cat([sequences, chosen[:, None]], dim=1)
            ended = ended | (chosen == end)
            if ended.all():
                break
        return sequences

    def _start(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits of the prefix, and keys and values under the names of the next step's inputs."""
        inputs = {"input_ids": tokens, "encoder_hidden_states": states}
        if self._merged:
            config = self._model.config
            heads = config.decoder_attention_heads
            empty = np.zeros((len(tokens), heads, 0, config.d_model // heads), dtype=np.float32)
            inputs |= {name: empty for name in _names(self._first.get_inputs()) if name.startswith("past_key_values")}
            inputs[SWITCH] = np.array([False])
        logits, *present = self._first.run(None, inputs)
        names = [name.replace("present", "past_key_values") for name in _names(self._first.get_outputs())[1:]]
        return logits, dict(zip(names, present, strict=True))

    def _go_on(self, tokens: np.ndarray, states: np.ndarray, past: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {"input_ids": tokens, **past}
        if self._merged:
            inputs |= {"encoder_hidden_states": states, SWITCH: np.array([True])}
        wanted = [name for name in _names(self._further.get_outputs()) if ".encoder." not in name]
        logits, *present = self._further.run(wanted, inputs)
        names = [name.replace("present", "past_key_values") for name in wanted[1:]]
        past |= dict(zip(names, present, strict=True))
        return logits

    def _heard(self, states: np.ndarray) -> list[int]:
        """The likeliest language of each window behind `<|startoftranscript|>`."""
        settings = self._model.generation_config
        start = np.full((len(states), 1), settings.decoder_start_token_id, dtype=np.int64)
        languages = np.array(list(settings.lang_to_id.values()))
        logits, _ = self._start(states, start)
        return languages[logits[:, -1, languages].argmax(axis=-1)].tolist()


def _session(runtime: Any, folder: Path, name: str) -> Any:
    found = sorted(file for file in folder.glob(f"{name}*.onnx") if file.stem.removeprefix(name) in SUFFIXES.values())
    if len(found) != 1:
        raise FileNotFoundError(
            f"`folder`: {folder} holds {len(found)} files {name}*.onnx, expected one of export_onnx."
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(found[0]), options, providers=["CPUExecutionProvider"])


def _names(values: Sequence[Any]) -> list[str]:
    return [value.name for value in values]
