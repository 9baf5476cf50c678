"""`transcribe`: transcribes audio files of any length and format, as text, subtitles or JSON."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.cli.config import parse_arguments, setting
from hf_distil_whisper.cli.inputs import Plan, as_fallback, fallback_setting, load_assistant, load_for_inference
from hf_distil_whisper.data.audio import AudioError
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.output import to_json, to_srt, to_vtt
from hf_distil_whisper.inference.sequential import StuckTranscriptionError, transcribe_sequential
from hf_distil_whisper.inference.transcribe import Segment, Transcription, Word, transcribe, transcribe_chunked
from hf_distil_whisper.inference.word_timestamps import alignment_heads


@dataclass
class TranscribeArguments:
    """Flags of `transcribe`; the audio files are given as words."""

    model_name_or_path: str | None = setting(None, "Student or teacher: Hub name or folder.")
    audio: list[str] | None = setting(None, "Audio files; also all words that belong to no flag.")
    assistant_model_name_or_path: str | None = setting(
        None,
        "Student of the model, or a smaller Whisper of its vocabulary, for speculative decoding (section 8.5); the "
        "text stays the model's.",
    )
    method: Literal["sequential", "chunked"] = setting(
        "sequential", "Algorithm for recordings over 30 s; chunked (section 5) takes the same memory for any length."
    )
    chunk_length: float | None = setting(
        None, "Chunked only: length of a chunk in seconds (default: by the durations that the model was trained on)."
    )
    stride: float | None = setting(
        None, "Chunked only: overlap of neighbouring chunks on either side, in seconds (default: a sixth of a chunk)."
    )
    batch_size: int = setting(16, "Chunked only: chunks in one pass.")
    temperature_fallback: dict[str, Any] | str | None = fallback_setting()
    condition_on_prev_tokens: bool = setting(False, "Sequential only: prompt each window with the text before it.")
    prompt: str | None = setting(
        None,
        "Text that the model reads before every window, as if it had been spoken: hotwords ('Kubernetes, HuBERT'), "
        "names or a style of writing. Its last 223 tokens count; with --condition_on_prev_tokens before the first "
        "window only.",
    )
    return_timestamps: bool = setting(False, "Print segments with their times.")
    word_timestamps: bool = setting(False, "Print words with their times, with --output_format txt or json.")
    output_format: Literal["txt", "srt", "vtt", "json"] = setting(
        "txt", "Text, subtitles (with timestamps), or JSON with text, segments and statistics."
    )
    output_dir: str | None = setting(
        None, "Folder for one file a recording, talk.wav → talk.srt (default: everything is printed)."
    )
    language: str | None = setting(None, "Language of the speech, for multilingual models (default: detected).")
    task: Literal["transcribe", "translate"] = setting("transcribe", "Transcribe, or translate to English.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")

    def __post_init__(self) -> None:
        self.temperature_fallback = as_fallback(self.temperature_fallback)  # type: ignore[assignment]
        if self.output_format in ("srt", "vtt"):
            self.return_timestamps = True

    @property
    def timestamps(self) -> bool | Literal["word"]:
        """`return_timestamps` of the functions."""
        return "word" if self.word_timestamps else self.return_timestamps

    def output_file(self, audio: str) -> Path:
        """File of a recording's transcription in `output_dir`."""
        return Path(self.output_dir or "", f"{Path(audio).stem}.{self.output_format}")


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: audio files or a recipe, then flags.

    A file that cannot be read, or on which the model gets stuck, is left out: the others are transcribed, then the
    command fails.
    """
    (args,) = parse_arguments(TranscribeArguments, argv=argv, command="hf-distil-whisper transcribe", words_to="audio")
    plan = Plan("transcribe")
    architecture = plan.model(args.model_name_or_path, "model_name_or_path")
    if args.word_timestamps:
        _check_words(args, plan, architecture)
    if args.assistant_model_name_or_path is not None:
        plan.model(args.assistant_model_name_or_path, "assistant_model_name_or_path")
    _check_method(args, plan)
    if plan.require(args.audio, "audio", "the files to transcribe"):
        _check_outputs(args, plan)
    plan.report()
    model, processor = load_for_inference(args.model_name_or_path, args.dtype)
    assistant = None
    if args.assistant_model_name_or_path is not None:
        _, assistant = load_assistant(args.assistant_model_name_or_path, model)
    failed = []
    for file in args.audio:
        try:
            result = _transcribe_file(args, model, processor, assistant, file)
        except AudioError as error:
            failed.append(str(error))
        except StuckTranscriptionError as error:
            failed.append(f"{file}: {error}")
        else:
            _write(args, file, result)
    if failed:
        raise AudioError("\n  ".join([f"{len(failed)} of {len(args.audio)} files could not be transcribed:", *failed]))


def _transcribe_file(
    args: TranscribeArguments,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    assistant: Assistant | None,
    file: str,
) -> Transcription:
    common: dict[str, Any] = {"assistant": assistant, "prompt": args.prompt}
    common |= {"language": args.language, "task": args.task}
    if args.method == "chunked":
        return transcribe_chunked(
            model,
            processor,
            file,
            chunk_length=args.chunk_length,
            stride=args.stride,
            batch_size=args.batch_size,
            return_timestamps=args.timestamps,
            **common,
        )
    if args.temperature_fallback or args.condition_on_prev_tokens:
        return transcribe_sequential(
            model,
            processor,
            file,
            temperature_fallback=as_fallback(args.temperature_fallback),
            condition_on_prev_tokens=args.condition_on_prev_tokens,
            word_timestamps=args.word_timestamps,
            **common,
        )
    (transcription,) = transcribe(model, processor, file, return_timestamps=args.timestamps, **common)
    return transcription


def _check_method(args: TranscribeArguments, plan: Plan) -> None:
    chunked = {"chunk_length": args.chunk_length, "stride": args.stride}
    sequential = {
        "temperature_fallback": args.temperature_fallback,
        "condition_on_prev_tokens": args.condition_on_prev_tokens,
    }
    plan.long_form_method(args.method, "method", chunked, sequential)
    if args.temperature_fallback and args.assistant_model_name_or_path is not None:
        plan.problems.append(
            "--temperature_fallback samples, but --assistant_model_name_or_path drafts for greedy decoding only. "
            "Leave one of them out"
        )


def _check_words(args: TranscribeArguments, plan: Plan, model: WhisperForConditionalGeneration | None) -> None:
    if args.output_format in ("srt", "vtt"):
        plan.problems.append(
            f"--word_timestamps: {args.output_format} holds segments, use --output_format json or txt"
        )
    if model is not None:
        with plan.collect("word_timestamps"):
            alignment_heads(model)


def _check_outputs(args: TranscribeArguments, plan: Plan) -> None:
    """Checks that no file would be written twice or over another one, and that the output can be read back."""
    if args.output_dir is None:
        if len(args.audio or []) > 1 and args.output_format in ("srt", "vtt"):
            plan.problems.append(f"--output_dir is missing: several files of {args.output_format} cannot be one")
        return
    if Path(args.output_dir).is_file():
        plan.problems.append(f"--output_dir: {args.output_dir} is a file, expected a folder")
        return
    for file, count in Counter(args.output_file(audio) for audio in args.audio or []).items():
        if count > 1:
            plan.problems.append(f"--output_dir: {count} recordings would be written to {file}; rename them")
        elif file.exists():
            plan.problems.append(f"--output_dir: {file} exists already; choose another folder or remove it")


def _write(args: TranscribeArguments, audio: str, result: Transcription) -> None:
    if args.output_format == "json":
        text = to_json(result, audio=audio, indent=None if args.output_dir is None else 2) + "\n"
    elif args.output_format == "srt":
        text = to_srt(result)
    elif args.output_format == "vtt":
        text = to_vtt(result)
    else:
        text = _text(result, args.timestamps) + "\n"
    if args.output_dir is not None:
        target = args.output_file(audio)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{audio}: {target}\n")
        return
    heading = f"{audio}: " if len(args.audio or []) > 1 and args.output_format == "txt" else ""
    sys.stdout.write(heading + text)


def _text(result: Transcription, timestamps: bool | Literal["word"]) -> str:
    if not timestamps:
        return result.text
    parts: Sequence[Segment | Word] = result.words if timestamps == "word" else result.segments
    return "\n".join(f"[{part.start:8.2f} - {part.end:8.2f}] {part.text}" for part in parts)
