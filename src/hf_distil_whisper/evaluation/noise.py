"""Word error rate under additive noise (paper, sections 7.3 and 8.3, Figure 2): white noise or a recorded one."""

import math
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, load_audio
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, evaluate_model

logger = logging.get_logger(__name__)

WHITE = "white"
"""Gaussian noise, drawn anew for each recording."""

SNRS = (40.0, 30.0, 20.0, 10.0, 5.0, 0.0, -5.0, -10.0)
"""Signal-to-noise ratios in dB: the range of Figure 2."""

LARGEST_SNR = 100.0
"""Beyond it, in dB, the weaker of the two is below the rounding of float32 samples."""


def add_noise(audio: Any, noise: Any, snr_db: float, *, seed: int = 0) -> np.ndarray:
    """Adds noise to speech at a given signal-to-noise ratio; the speech is not rescaled and nothing is clipped.

    The noise is scaled by the power of the segment that is added and by that of the speech, both as mean squares over
    the whole utterance, pauses included ("the signal power of individual instances", section 7.3).

    Args:
        audio (`np.ndarray`): speech, samples at 16 kHz, or anything else that [`load_audio`] takes. Silence (power 0)
            has no ratio to anything and is returned unchanged.
        noise (`np.ndarray` or `str`): `"white"`, samples at 16 kHz, or anything else that [`load_audio`] takes. A
            segment with a random start is taken; noise shorter than the speech is repeated.
        snr_db (`float`): 10 · log₁₀(power of the speech / power of the noise), from -100 to 100.
        seed (`int`, *optional*, defaults to 0): seed of the white noise or of the start; the segment is the same at
            every ratio.

    Returns:
        `np.ndarray`: shape (samples,) of the speech, float32, a new array.

    Raises:
        AudioError: (a `ValueError`) for audio that is empty, not finite or cannot be read; for a silent noise.
        ValueError: for a ratio outside -100 to 100 dB.

    Example:
        ```python
        >>> noisy = add_noise(load_audio("speech.wav"), load_audio("pub.flac"), 10.0)
        ```
    """
    (snr,) = check_snrs([snr_db], "snr_db")
    speech = load_audio(audio, name=_name(audio, "the speech"))
    return _mix(speech, load_noise(noise), snr, np.random.default_rng(seed))


def load_noise(noise: Any) -> np.ndarray | None:
    """Samples of a recorded noise at 16 kHz; None for `"white"`. An `AudioError` if it is unreadable or silent."""
    if isinstance(noise, str) and noise == WHITE:
        return None
    name = _name(noise, "the noise")
    if isinstance(noise, str | os.PathLike) and not os.path.isfile(noise):
        raise AudioError(f"{name}: no such file; expected {WHITE!r} or the path of a recorded noise.")
    samples = load_audio(noise, name=name)
    if not samples.any():
        raise AudioError(f"{name}: every sample is 0; expected a noise. Silence has no level that could be set.")
    return samples


def evaluate_in_noise(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    noise: Any = WHITE,
    snrs: Sequence[float] = SNRS,
    seed: int = 0,
    text_column: str = "text",
    **options: Any,
) -> dict[float, EvaluationResult]:
    """Scores a model on short recordings with noise added, at one ratio after another (Figure 2).

    The noise of a recording depends on the seed and on its id (its index, if it has none): it is the same at every
    ratio, for every model, and for any selection of rows.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` and a reference, optionally `id`. Noise is added
            on the fly, nothing is stored.
        processor (`WhisperProcessor`): the model's processor.
        noise (`np.ndarray` or `str`, *optional*, defaults to `"white"`): see [`add_noise`].
        snrs (`Sequence[float]`, *optional*, defaults to 40 to -10 dB): signal-to-noise ratios in dB.
        seed (`int`, *optional*, defaults to 0): seed of the draws.
        text_column (`str`, *optional*, defaults to `"text"`): column of the references.
        options: further arguments of [`evaluate_model`], such as `batch_size`, `language` and `normalizer`.

    Returns:
        `dict[float, EvaluationResult]`: by ratio in dB, in the order of `snrs`. A row that cannot be read, is longer
        than the window, or falls on a silent segment of the noise is missing at every ratio and listed in
        `row_errors`.

    Raises:
        AudioError: for a noise that cannot be read or is silent.
        ValueError: for ratios that are missing, repeated or outside -100 to 100 dB; for 0 rows, a missing column, or
            if no row could be read.

    Example:
        ```python
        >>> results = evaluate_in_noise(student, dataset, processor, noise="pub.flac", snrs=[20, 0])
        >>> {snr: result.wer for snr, result in results.items()}
        ```
    """
    snrs = check_snrs(snrs)
    recorded = load_noise(noise)
    results = {}
    for snr in snrs:
        logger.info(f"{WHITE if recorded is None else _name(noise, 'given')} noise at {snr:g} dB")
        load = partial(_noisy_recording, noise=recorded, snr=snr, seed=seed)
        results[snr] = evaluate_model(model, dataset, processor, text_column=text_column, load=load, **options)
    return results


def check_snrs(snrs: Sequence[float], name: str = "snrs") -> list[float]:
    """Ratios in dB as floats; a `ValueError` if there is none, one is repeated, or one is outside -100 to 100 dB."""
    ratios = [float(snr) for snr in snrs]
    if not ratios:
        raise ValueError(f"`{name}` is empty, expected at least one signal-to-noise ratio in dB, such as 10.")
    for snr in ratios:
        if not abs(snr) <= LARGEST_SNR:  # NaN too
            raise ValueError(
                f"`{name}`: expected a ratio from {-LARGEST_SNR:g} to {LARGEST_SNR:g} dB, got {snr:g}. "
                "Beyond it the weaker of speech and noise is lost in the rounding of the samples."
            )
        if ratios.count(snr) > 1:
            raise ValueError(f"`{name}`: {snr:g} dB is given {ratios.count(snr)} times. Give each ratio once.")
    return ratios


def _noisy_recording(audio: Any, *, name: str, noise: np.ndarray | None, snr: float, seed: int) -> np.ndarray:
    speech = load_audio(audio, name=name)
    # Seeded by the id, not by the position: the noise is that of the row in any selection and any order.
    random = np.random.default_rng((seed, zlib.crc32(name.encode())))
    try:
        return _mix(speech, noise, snr, random)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error


def _mix(speech: np.ndarray, noise: np.ndarray | None, snr_db: float, random: np.random.Generator) -> np.ndarray:
    power = np.mean(np.square(speech, dtype=np.float64))
    if power == 0.0:
        return speech.copy()
    segment, where = _segment(noise, len(speech), random)
    noise_power = np.mean(np.square(segment))
    if noise_power == 0.0:
        raise AudioError(
            f"the segment of noise {where} is silent, so its level cannot be set. Cut the silence out of the noise, "
            "or use another seed."
        )
    scale = math.sqrt(power / noise_power) * 10 ** (-snr_db / 20)
    return (speech + scale * segment).astype(np.float32)


def _segment(noise: np.ndarray | None, length: int, random: np.random.Generator) -> tuple[np.ndarray, str]:
    """Noise of `length` samples in float64, and its position in words, for a message."""
    if noise is None:
        return random.standard_normal(length), "drawn"
    longer = len(noise) >= length
    start = int(random.integers(len(noise) - length + 1 if longer else len(noise)))
    samples = noise[start : start + length] if longer else np.resize(np.roll(noise, -start), length)
    where = f"starting at {start / SAMPLING_RATE:.2f} s, {length / SAMPLING_RATE:.2f} s long,"
    return samples.astype(np.float64), where


def _name(audio: Any, otherwise: str) -> str:
    """Name of the audio in messages: its path, if it has one."""
    return str(audio) if isinstance(audio, str | os.PathLike) else otherwise
