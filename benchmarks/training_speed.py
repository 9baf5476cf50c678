"""How fast a training step is: this library's in every mode beside the plain one, and the floor of the machine.

Models of a named shape with random weights, on random windows. Knows steps, not data sets.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from hf_distil_whisper.data.collator import TEACHER_ARRAYS
from hf_distil_whisper.inference.encoder import encode
from hf_distil_whisper.student import create_student
from hf_distil_whisper.training.args import DistillationTrainingArguments
from hf_distil_whisper.training.fused_loss import top_k_logits
from hf_distil_whisper.training.losses import IGNORE_INDEX
from hf_distil_whisper.training.trainer import DistillationTrainer
from plain_step import (
    padded,
    plain_loss,
)

SHAPES = {
    "tiny": (384, 4, 6, 80, 51_865),
    "base": (512, 6, 8, 80, 51_865),
    "small": (768, 12, 12, 80, 51_865),
    "medium": (1024, 24, 16, 80, 51_865),
    "large-v2": (1280, 32, 20, 80, 51_865),
    "large-v3": (1280, 32, 20, 128, 51_866),
}
"""Width, layers of encoder and decoder, heads, mel bins and vocabulary of OpenAI's checkpoints."""

PLAIN, TRIMMED = "plain, labels padded to 448", "plain, labels trimmed"
EXACT, CACHED_STATES, CACHED_BOTH = "exact", "cached states", "cached states and logits"
LORA = "exact, LoRA"


@dataclass
class StepSpeed:
    """One way of a training step, over all rounds.

    Args:
        trained_bytes (`int`): of weights that are trained, their gradients and moments.
        flops (`int`): of its matrix products, forward and backward.
        seconds (`list[float]`): of loss, backward pass and optimizer, one entry a round.
        stages (`dict[str, list[float]]`): the same by stage.
        peak_bytes (`int`, *optional*): of an accelerator's memory, weights included; None on a CPU.
    """

    trained_bytes: int
    flops: int = 0
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)


@dataclass
class TrainingSpeed:
    """What `benchmark train` tells.

    Args:
        steps (`dict[str, StepSpeed]`): by way.
        matrix_rate (`float`): FLOP/s of large matrix products in the same type.
        copy_rate (`float`): bytes/s that are read and written by a copy.
        parts (`dict[str, float]`): seconds of the encoder, the teacher's decoder and the student's, each alone and
            forward only, medians.
        loss_difference (`float`): of the exact step from the plain one on equal weights, relative.
        gradient_difference (`float`): the largest distance of a gradient, relative to its norm.
    """

    steps: dict[str, StepSpeed]
    matrix_rate: float
    copy_rate: float
    parts: dict[str, float]
    loss_difference: float
    gradient_difference: float

    def floor(self, way: str) -> float:
        """Seconds that a step would take at the machine's measured rates."""
        step = self.steps[way]
        # AdamW reads gradient, weight and two moments and writes all but the gradient; backward writes the gradient.
        return step.flops / self.matrix_rate + 2 * step.trained_bytes / self.copy_rate


def random_whisper(shape: str, dtype: torch.dtype = torch.float32, **changes: int) -> WhisperForConditionalGeneration:
    """A Whisper of a checkpoint's shape with random weights, English-only or not as far as speed is concerned.

    Args:
        shape (`str`): one of `SHAPES`.
        dtype (`torch.dtype`, *optional*): of its weights.
        changes: entries of `WhisperConfig`.

    Raises:
        ValueError: for an unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"expected a shape of {', '.join(SHAPES)}, got {shape!r}.")
    width, layers, heads, bins, vocabulary = SHAPES[shape]
    sizes = {
        "d_model": width, "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads,
        "decoder_attention_heads": heads, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width,
        "num_mel_bins": bins, "vocab_size": vocabulary,
    }  # fmt: skip
    config = WhisperConfig(**{**sizes, **changes})
    model = WhisperForConditionalGeneration(config).to(dtype).eval()
    ids = {name: getattr(config, name) for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids, no_timestamps_token_id=50_363, max_length=448)
    return model


def random_batch(config: WhisperConfig, rows: int, shortest: int, longest: int, seed: int = 0) -> dict[str, Tensor]:
    """Windows of noise with labels of `shortest` to `longest` tokens, trimmed to the longest.

    Args:
        config (`WhisperConfig`): of the models.
        rows (`int`): windows.
        shortest (`int`): tokens of the shortest label.
        longest (`int`): tokens of the longest one.
        seed (`int`, *optional*, defaults to 0): of everything.
    """
    random = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(shortest, longest, rows).round().long()
    tokens = torch.randint(config.vocab_size - 2000, (rows, longest + 1), generator=random)
    tokens[:, 0] = config.decoder_start_token_id
    labels = tokens[:, 1:].clone()
    labels[torch.arange(longest) >= lengths[:, None]] = IGNORE_INDEX
    features = torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=random)
    return {"input_features": features, "decoder_input_ids": tokens[:, :-1].contiguous(), "labels": labels}


def measure_training(
    teacher: WhisperForConditionalGeneration,
    batch: dict[str, Tensor],
    *,
    decoder_layers: int = 2,
    rounds: int = 5,
    top_k: int = 64,
    bf16: bool = False,
    with_padding: bool = True,
) -> TrainingSpeed:
    """Takes steps in every way, in turn within every round, after one that is not counted.

    Args:
        teacher (`WhisperForConditionalGeneration`): on its device; the student gets its encoder.
        batch (`dict[str, Tensor]`): from [`random_batch`], moved to the device here.
        decoder_layers (`int`, *optional*, defaults to 2): of the student.
        rounds (`int`, *optional*, defaults to 5): steps of each way.
        top_k (`int`, *optional*, defaults to 64): tokens kept of the teacher's distributions.
        bf16 (`bool`, *optional*, defaults to `False`): mixed precision, for every way.
        with_padding (`bool`, *optional*, defaults to `True`): measure the step with labels padded to 448 too.
    """
    device = teacher.device
    batch = {name: value.to(device) for name, value in batch.items()}
    student = create_student(teacher, decoder_layers=decoder_layers).to(device)
    adapted = create_student(teacher, decoder_layers=decoder_layers).to(device)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationTrainingArguments(
            output_dir=folder, use_cpu=device.type == "cpu", bf16=bf16, report_to=[], teacher_cache_top_k=top_k
        )
        trainer = DistillationTrainer(student, teacher, args)
        with_lora = DistillationTrainer(adapted, teacher, dataclasses.replace(args, lora={}))
    ways = _ways(trainer, student, teacher, batch, with_padding)
    loss_difference, gradient_difference = _differences(student, ways)
    ways[LORA] = _ways(with_lora, adapted, teacher, batch, with_padding)[EXACT]
    weights = {name: _trained(adapted if name == LORA else student) for name in ways}
    steps = {name: StepSpeed(16 * sum(weight.numel() for weight in weights[name])) for name in ways}
    optimizers = {name: torch.optim.AdamW(weights[name], lr=1e-6, fused=True) for name in ways}  # the Trainer's own
    for number in range(rounds + 1):
        for name, loss in ways.items():
            _step(loss, optimizers[name], steps[name], warm_up=number == 0)
    return TrainingSpeed(
        steps,
        matrix_rate(device, torch.bfloat16 if bf16 else torch.float32),
        copy_rate(device),
        _parts(trainer, student, teacher, batch, rounds),
        loss_difference,
        gradient_difference,
    )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    # An accelerator multiplies small ones sooner than they are asked for.
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(partial(torch.mm, left, right), device) for _ in range(6))


def copy_rate(device: torch.device) -> float:
    """Bytes/s that a copy reads and writes together, the best of several."""
    size = 2**30 if device.type == "cuda" else 2**27
    source, target = (torch.zeros(size, device=device, dtype=torch.int8) for _ in range(2))
    return 2 * size / min(_seconds(partial(target.copy_, source), device) for _ in range(6))


def _ways(
    trainer: DistillationTrainer,
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    batch: dict[str, Tensor],
    with_padding: bool,
) -> dict[str, Callable[[], Tensor]]:
    args, head = trainer.args, teacher.proj_out.weight
    with torch.no_grad(), trainer.autocast_smart_context_manager():
        states = encode(student, batch["input_features"])
        hidden = teacher.model.decoder(
            input_ids=batch["decoder_input_ids"], encoder_hidden_states=states.to(head.dtype), use_cache=False
        ).last_hidden_state
        kept = top_k_logits(hidden, head, batch["labels"], k=args.teacher_cache_top_k, temperature=args.temperature)
    texts = {name: batch[name] for name in ("decoder_input_ids", "labels")}
    with_states = {**texts, "encoder_states": states.to(torch.bfloat16 if args.bf16 else states.dtype)}
    with_both = with_states | dict(zip(TEACHER_ARRAYS, kept, strict=True))
    weights = {"temperature": args.temperature, "kl_weight": args.kl_weight, "pl_weight": args.pl_weight}

    def plain(given: dict[str, Tensor]) -> Tensor:
        with trainer.autocast_smart_context_manager():
            return plain_loss(student, teacher, given, **weights)

    def ours(given: dict[str, Tensor]) -> Tensor:
        with trainer.autocast_smart_context_manager():
            loss = trainer.compute_loss(student, given)
            return loss if isinstance(loss, Tensor) else loss[0]

    longest = padded(batch, teacher.config.max_target_positions, teacher.config.pad_token_id)
    ways: dict[str, Callable[[], Tensor]] = {PLAIN: partial(plain, longest)} if with_padding else {}
    return ways | {
        TRIMMED: partial(plain, batch),
        EXACT: partial(ours, batch),
        CACHED_STATES: partial(ours, with_states),
        CACHED_BOTH: partial(ours, with_both),
    }


@torch.no_grad()
def _parts(
    trainer: DistillationTrainer,
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    batch: dict[str, Tensor],
    rounds: int,
) -> dict[str, float]:
    tokens = batch["decoder_input_ids"]
    with trainer.autocast_smart_context_manager():
        states = encode(student, batch["input_features"])
        works: dict[str, Callable[[], object]] = {"encoder": partial(encode, student, batch["input_features"])}
        for name, model in (("teacher's decoder", teacher), ("student's decoder", student)):
            heard = states.to(model.proj_out.weight.dtype)
            works[name] = partial(model.model.decoder, input_ids=tokens, encoder_hidden_states=heard, use_cache=False)
        return {
            name: statistics.median(_seconds(work, student.device) for _ in range(rounds))
            for name, work in works.items()
        }


def _step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, speed: StepSpeed, warm_up: bool) -> None:
    device = optimizer.param_groups[0]["params"][0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found: list[Tensor] = []
    stages: dict[str, Callable[[], object]] = {
        "loss": lambda: found.append(loss()),
        "backward": lambda: found[0].backward(),
        "optimizer": optimizer.step,
    }
    counted = {torch.ops.aten.addmm_: _addmm_flops}  # which torch knows only out of place
    with FlopCounterMode(display=False, custom_mapping=counted) if warm_up else nullcontext() as counter:
        times = {name: _seconds(stage, device) for name, stage in stages.items()}
    optimizer.zero_grad(set_to_none=True)
    if counter is not None:
        speed.flops = counter.get_total_flops()
        return
    speed.seconds.append(sum(times.values()))
    for name, seconds in times.items():
        speed.stages.setdefault(name, []).append(seconds)
    if device.type == "cuda":
        speed.peak_bytes = max(speed.peak_bytes or 0, torch.cuda.max_memory_allocated(device))


def _addmm_flops(target: Sequence[int], left: Sequence[int], right: Sequence[int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def _differences(
    student: WhisperForConditionalGeneration, ways: dict[str, Callable[[], Tensor]]
) -> tuple[float, float]:
    """How far loss and gradients of the exact way lie from those of the plain one, relative."""
    losses, gradients = [], []
    for name in (TRIMMED, EXACT):
        loss = ways[name]()
        loss.backward()
        losses.append(loss.item())
        gradients.append([weight.grad for weight in _trained(student)])
        student.zero_grad(set_to_none=True)
    distances = [
        ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()
        for theirs, ours in zip(*gradients, strict=True)
    ]
    return abs(losses[1] / losses[0] - 1), max(distances)


def _trained(student: WhisperForConditionalGeneration) -> list[torch.nn.Parameter]:
    return [weight for weight in student.parameters() if weight.requires_grad]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
