"""`transcribe`: writes down what is said in audio files of any length and kind."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import WhisperForCausalLM, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.arguments import parse_arguments, setting
from hf_distil_whisper.cli.plans import Plan, best_device, torch_dtype
from hf_distil_whisper.data.audio import AudioError
from hf_distil_whisper.inference.assistant import create_assistant
from hf_distil_whisper.inference.transcribe import Transcription, transcribe, transcribe_chunked


@dataclass
class TranscribeArguments:
    """Flags of `transcribe`.

    Args:
        model_name_or_path (`str`): student or teacher, Hub name or folder.
        audio (`list[str]`): audio files; also all words that belong to no flag.
        assistant_model_name_or_path (`str`, *optional*): a student that drafts for the model (section 6).
        method (`str`, *optional*, defaults to `"sequential"`): for recordings over 30 s; or `"chunked"` (section 5).
        chunk_length (`float`, *optional*, defaults to 30.0): seconds of a chunk; the length that the model was trained
            on is best (Table 23).
        stride (`float`, *optional*): seconds that neighbouring chunks share at either side; else a sixth.
        batch_size (`int`, *optional*, defaults to 16): chunks in one pass.
        return_timestamps (`bool`, *optional*, defaults to `False`): print segments with their times.
        language (`str`, *optional*): for multilingual models.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`.
        dtype (`str`, *optional*, defaults to `"float32"`).
    """

    model_name_or_path: str | None = setting(None, "Model: Hub name or folder.")
    audio: list[str] | None = setting(None, "Audio files; also all words that belong to no flag.")
    assistant_model_name_or_path: str | None = setting(None, "A student of the model that drafts for it.")
    method: Literal["sequential", "chunked"] = setting("sequential", "For recordings over 30 s.")
    chunk_length: float = setting(30.0, "Seconds of a chunk, for --method chunked.")
    stride: float | None = setting(None, "Seconds that neighbouring chunks share at either side; a sixth if absent.")
    batch_size: int = setting(16, "Chunks in one pass.")
    return_timestamps: bool = setting(False, "Print segments with their times.")
    language: str | None = setting(None, "For multilingual models; detected where left out.")
    task: Literal["transcribe", "translate"] = setting("transcribe", "What to write down.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    A file that cannot be read costs that file: the others are transcribed, then the command fails.

    Args:
        argv (`Sequence[str]`): audio files or a recipe, then flags.
    """
    (args,) = parse_arguments(TranscribeArguments, argv=argv, command="hf-distil-whisper transcribe", words_to="audio")
    plan = Plan("transcribe")
    plan.model(args.model_name_or_path, "model_name_or_path")
    if args.assistant_model_name_or_path is not None:
        plan.model(args.assistant_model_name_or_path, "assistant_model_name_or_path")
        if args.method == "chunked":
            plan.problems.append("--assistant_model_name_or_path drafts window by window: use --method sequential")
    plan.require(args.audio, "audio", "the files to transcribe")
    plan.check()
    model = load_model(args.model_name_or_path, dtype=torch_dtype(args.dtype)).to(best_device())
    processor = load_processor(args.model_name_or_path)
    assistant = None
    if args.assistant_model_name_or_path is not None:
        student = load_model(args.assistant_model_name_or_path, dtype=model.dtype).to(model.device)
        assistant = create_assistant(student, model)
    failed = []
    for file in args.audio:
        try:
            result = _transcribe_file(args, model, processor, assistant, file)
        except AudioError as error:
            failed.append(str(error))
            continue
        heading = f"{file}: " if len(args.audio) > 1 else ""
        sys.stdout.write(heading + _text(result, args.return_timestamps) + "\n")
    if failed:
        raise AudioError("\n  ".join([f"{len(failed)} of {len(args.audio)} files could not be transcribed:", *failed]))


def _transcribe_file(
    args: TranscribeArguments,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    assistant: WhisperForCausalLM | None,
    file: str,
) -> Transcription:
    if args.method == "chunked":
        return transcribe_chunked(
            model,
            processor,
            file,
            chunk_length=args.chunk_length,
            stride=args.stride,
            batch_size=args.batch_size,
            return_timestamps=args.return_timestamps,
            language=args.language,
            task=args.task,
        )
    found = transcribe(
        model,
        processor,
        file,
        assistant=assistant,
        return_timestamps=args.return_timestamps,
        language=args.language,
        task=args.task,
    )
    return found[0]


def _text(result: Transcription, timestamps: bool) -> str:
    if not timestamps:
        return result.text
    return "\n".join(f"[{part.start:8.2f} - {part.end:8.2f}] {part.text}" for part in result.segments)
