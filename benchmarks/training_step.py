"""Speed of a training step in every mode beside the plain one, its floor on this machine, and the memory of the loss.

    python benchmarks/training_step.py --memory
    python benchmarks/training_step.py --shape large-v3 --bf16 --batch_size 32     # on an accelerator

Models of a checkpoint's shape with random weights, on random windows. "Plain" is the step of the reference recipe: the
shared encoder once, then the logits of all positions of both models. Cost: five minutes on two CPU cores, with
`--memory` seven and 10 GB; two minutes on an accelerator.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from hf_distil_whisper import (
    DistillationTrainer,
    DistillationTrainingArguments,
    create_student,
    fused_distillation_loss,
    parse_arguments,
    run_script,
)
from hf_distil_whisper.cli.config import InputError, setting
from hf_distil_whisper.cli.inputs import best_device
from hf_distil_whisper.inference.encoder import encode
from hf_distil_whisper.training.losses import IGNORE_INDEX
from hf_distil_whisper.training.teacher_cache import TEACHER_DTYPE
from inputs import check_flags
from memory import anonymous_bytes, in_new_process, peak_while
from tables import machine, table

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
EXACT, CACHED_STATES, CACHED_BOTH, LORA = "exact", "cached states", "both cached", "exact, LoRA"

Whisper, Batch, Loss = WhisperForConditionalGeneration, dict[str, Tensor], Callable[[], Tensor]


@dataclass
class StepSpeed:
    """One mode of a training step over all rounds."""

    trained_bytes: int  # of the trained weights, their gradients and moments
    flops: int = 0  # of its matrix products, forward and backward
    seconds: list[float] = field(default_factory=list)  # of loss, backward pass and optimizer, one entry a round
    stages: dict[str, list[float]] = field(default_factory=dict)  # the same by stage
    peak_bytes: int | None = None  # of an accelerator's memory, weights included; None on a CPU

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)


@dataclass
class TrainingSpeed:
    """All that is measured."""

    steps: dict[str, StepSpeed]  # by mode
    matrix_rate: float  # FLOP/s of large matrix products in the same type
    copy_rate: float  # bytes/s that a copy reads and writes
    forward: dict[str, float]  # median seconds of encoder and decoders, each alone and forward only
    loss_difference: float  # between the exact and the plain step from equal weights, relative
    gradient_difference: float  # largest distance of a gradient, relative to its norm

    def floor(self, mode: str) -> float:
        """Seconds of a step at the machine's measured rates."""
        step = self.steps[mode]
        # AdamW reads gradient, weight and two moments and writes all but the gradient; backward writes the gradient.
        return step.flops / self.matrix_rate + 2 * step.trained_bytes / self.copy_rate


def plain_loss(
    student: Whisper,
    teacher: Whisper,
    batch: Batch,
    *,
    temperature: float = 2.0,
    kl_weight: float = 0.8,
    pl_weight: float = 1.0,
) -> Tensor:
    """Equation 12 as the reference scripts compute it; mean over the tokens, with gradients.

    Both models compute the cross-entropy of their logits, the teacher's for nothing, and the divergence of padding is
    computed and then left out.
    """
    texts = {name: batch[name] for name in ("decoder_input_ids", "labels")}
    with torch.no_grad():
        encoder_outputs = student.model.encoder(batch["input_features"].to(student.dtype))
        teacher_outputs = teacher(encoder_outputs=encoder_outputs, **texts)
    outputs = student(encoder_outputs=encoder_outputs, **texts)
    log_probs = F.log_softmax(outputs.logits / temperature, dim=-1)
    teacher_probs = F.softmax(teacher_outputs.logits / temperature, dim=-1)
    divergence = F.kl_div(log_probs, teacher_probs, reduction="none") * temperature**2
    counts = batch["labels"] != IGNORE_INDEX
    kl = (divergence * counts[..., None]).sum() / counts.sum()
    return kl_weight * kl + pl_weight * outputs.loss


def padded(batch: Batch, length: int, pad_token: int) -> Batch:
    """The same batch with decoder inputs and labels of `length` positions, as the reference scripts pad it."""
    more = length - batch["labels"].shape[1]
    return {
        **batch,
        "decoder_input_ids": F.pad(batch["decoder_input_ids"], (0, more), value=pad_token),
        "labels": F.pad(batch["labels"], (0, more), value=IGNORE_INDEX),
    }


def random_whisper(shape: str, dtype: torch.dtype = torch.float32, **changes: int) -> Whisper:
    """A Whisper of a shape of `SHAPES` with random weights; `changes` replace entries of its config."""
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


def random_batch(config: WhisperConfig, rows: int, shortest: int, longest: int, seed: int = 0) -> Batch:
    """Windows of noise with labels of `shortest` to `longest` tokens, trimmed to the longest."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(shortest, longest, rows).round().long()
    tokens = torch.randint(config.vocab_size - 2000, (rows, longest + 1), generator=random)
    tokens[:, 0] = config.decoder_start_token_id
    labels = tokens[:, 1:].clone()
    labels[torch.arange(longest) >= lengths[:, None]] = IGNORE_INDEX
    features = torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=random)
    return {"input_features": features, "decoder_input_ids": tokens[:, :-1].contiguous(), "labels": labels}


def measure_training(
    teacher: Whisper,
    batch: Batch,
    *,
    decoder_layers: int = 2,
    rounds: int = 5,
    bf16: bool = False,
    with_padding: bool = True,
) -> TrainingSpeed:
    """Takes steps in every mode, in turn within every round, after one that is not counted."""
    device = teacher.device
    batch = {name: value.to(device) for name, value in batch.items()}
    student, adapted = (create_student(teacher, decoder_layers=decoder_layers).to(device) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationTrainingArguments(output_dir=folder, use_cpu=device.type == "cpu", bf16=bf16, report_to=[])
        trainer = DistillationTrainer(student, teacher, args)
        with_lora = DistillationTrainer(adapted, teacher, dataclasses.replace(args, lora={}))
    losses = _losses(trainer, student, teacher, batch, with_padding)
    differences = _differences(student, losses)
    losses[LORA] = _losses(with_lora, adapted, teacher, batch, with_padding)[EXACT]
    weights = {mode: _trained(adapted if mode == LORA else student) for mode in losses}
    # 16 bytes a weight: itself, its gradient and AdamW's two moments, in float32.
    steps = {mode: StepSpeed(16 * sum(weight.numel() for weight in weights[mode])) for mode in losses}
    optimizers = {mode: torch.optim.AdamW(weights[mode], lr=1e-6, fused=True) for mode in losses}  # as in the Trainer
    for number in range(rounds + 1):
        for mode, loss in losses.items():
            _step(loss, optimizers[mode], steps[mode], warm_up=number == 0)
    rates = matrix_rate(device, torch.bfloat16 if bf16 else torch.float32), copy_rate(device)
    return TrainingSpeed(steps, *rates, _forward_seconds(trainer, student, teacher, batch, rounds), *differences)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    # An accelerator multiplies small ones sooner than they are launched.
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(partial(torch.mm, left, right), device) for _ in range(6))


def copy_rate(device: torch.device) -> float:
    """Bytes/s that a copy reads and writes together, the best of several."""
    size = 2**30 if device.type == "cuda" else 2**27
    source, target = (torch.zeros(size, device=device, dtype=torch.int8) for _ in range(2))
    return 2 * size / min(_seconds(partial(target.copy_, source), device) for _ in range(6))


def _losses(
    trainer: DistillationTrainer, student: Whisper, teacher: Whisper, batch: Batch, with_padding: bool
) -> dict[str, Loss]:
    """The loss of the batch by mode, computed when it is called."""
    args = trainer.args
    with torch.no_grad(), trainer.autocast_smart_context_manager():
        states = encode(student, batch["input_features"])
        hidden = teacher.model.decoder(
            input_ids=batch["decoder_input_ids"], encoder_hidden_states=states.to(teacher.dtype), use_cache=False
        ).last_hidden_state
    texts = {name: batch[name] for name in ("decoder_input_ids", "labels")}
    with_states = {**texts, "encoder_states": states.to(torch.bfloat16 if args.bf16 else states.dtype)}
    with_both = with_states | {"teacher_states": hidden.to(TEACHER_DTYPE)}
    weights = {"temperature": args.temperature, "kl_weight": args.kl_weight, "pl_weight": args.pl_weight}

    def plain(inputs: Batch) -> Tensor:
        with trainer.autocast_smart_context_manager():
            return plain_loss(student, teacher, inputs, **weights)

    def ours(inputs: Batch) -> Tensor:
        with trainer.autocast_smart_context_manager():
            loss = trainer.compute_loss(student, inputs)
            return loss if isinstance(loss, Tensor) else loss[0]

    longest = padded(batch, teacher.config.max_target_positions, teacher.config.pad_token_id)
    losses: dict[str, Loss] = {PLAIN: partial(plain, longest)} if with_padding else {}
    return losses | {
        TRIMMED: partial(plain, batch),
        EXACT: partial(ours, batch),
        CACHED_STATES: partial(ours, with_states),
        CACHED_BOTH: partial(ours, with_both),
    }


@torch.no_grad()
def _forward_seconds(
    trainer: DistillationTrainer, student: Whisper, teacher: Whisper, batch: Batch, rounds: int
) -> dict[str, float]:
    with trainer.autocast_smart_context_manager():
        states = encode(student, batch["input_features"])
        works: dict[str, Callable[[], object]] = {"encoder": partial(encode, student, batch["input_features"])}
        for name, model in (("teacher's decoder", teacher), ("student's decoder", student)):
            works[name] = partial(
                model.model.decoder, input_ids=batch["decoder_input_ids"],
                encoder_hidden_states=states.to(model.proj_out.weight.dtype), use_cache=False,
            )  # fmt: skip
        return {
            name: statistics.median(_seconds(work, student.device) for _ in range(rounds))
            for name, work in works.items()
        }


def _step(loss: Loss, optimizer: torch.optim.Optimizer, speed: StepSpeed, warm_up: bool) -> None:
    """One step; the first one counts operations, the others time."""
    device = optimizer.param_groups[0]["params"][0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[Tensor] = []
    stages: dict[str, Callable[[], object]] = {
        "loss": lambda: losses.append(loss()),
        "backward": lambda: losses[0].backward(),
        "optimizer": optimizer.step,
    }
    counted = {torch.ops.aten.addmm_: _addmm_flops}  # torch counts `addmm` without it
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


def _differences(student: Whisper, losses: dict[str, Loss]) -> tuple[float, float]:
    """Distance of loss and gradients of the exact step from those of the plain one, relative."""
    values, gradients = [], []
    for mode in (TRIMMED, EXACT):
        loss = losses[mode]()
        loss.backward()
        values.append(loss.item())
        gradients.append([weight.grad for weight in _trained(student)])
        student.zero_grad(set_to_none=True)
    distances = [
        ((exact - plain).norm() / plain.norm().clamp(min=1e-12)).item()
        for plain, exact in zip(*gradients, strict=True)
    ]
    return abs(values[1] / values[0] - 1), max(distances)


def _trained(student: Whisper) -> list[torch.nn.Parameter]:
    return [weight for weight in student.parameters() if weight.requires_grad]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def loss_memory(rows: int = 8, length: int = 448, vocabulary: int = 51_866, width: int = 1280) -> dict[str, int]:
    """Bytes that loss and gradients take beyond states, heads and labels, on a CPU in float32: "plain" and "fused"."""
    sizes = (rows, length, vocabulary, width)
    return {name: int(in_new_process(_loss_bytes, name, sizes)[0]) for name in ("plain", "fused")}


def _loss_bytes(name: str, sizes: Sequence[int]) -> float:
    rows, length, vocabulary, width = sizes
    states, teacher_states = (torch.randn(rows, length, width) for _ in range(2))
    head, teacher_head = (torch.randn(vocabulary, width).div_(width**0.5) for _ in range(2))
    labels = torch.randint(vocabulary, (rows, length))
    states.requires_grad_(), head.requires_grad_()

    def plain() -> None:
        logits = states @ head.T
        with torch.no_grad():
            teacher_logits = teacher_states @ teacher_head.T
        divergence = F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(teacher_logits / 2, -1), reduction="none") * 4
        loss = 0.8 * divergence.sum() / labels.numel() + F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()

    def fused() -> None:
        fused_distillation_loss(states, head, teacher_states, teacher_head, labels).loss.backward()

    before = anonymous_bytes()
    _, peak = peak_while(plain if name == "plain" else fused)
    return float(peak - before)


def training_table(speed: TrainingSpeed, rows: int) -> str:
    """Every mode as a line of Markdown, then the stages of a step and the parts of its forward pass."""
    baseline = speed.steps[TRIMMED].median
    heads = ["", "s/step", "samples/s", "times as fast", "TFLOP", "floor, s", "step / floor", "trained", "peak memory"]
    lines, shares, stages = [], [], ("loss", "backward", "optimizer")
    for mode, step in speed.steps.items():
        floor = speed.floor(mode)
        cells = [mode, f"{step.median:.3g}", f"{rows / step.median:.3g}", f"{baseline / step.median:.2f}"]
        cells += [f"{step.flops / 1e12:.2f}", f"{floor:.3g}", f"{step.median / floor:.2f}"]
        memory = "-" if step.peak_bytes is None else f"{step.peak_bytes / 1e9:.1f} GB"
        lines.append([*cells, f"{step.trained_bytes / 1e9:.3f} GB", memory])
        shares.append([mode, *(f"{statistics.median(step.stages[name]) / step.median:.0%}" for name in stages)])
    text = [
        table(heads, lines, left=len(heads)),
        "",
        table(["", *stages], shares, left=4),
        "",
        f"Forward alone: {', '.join(f'{name} {seconds:.3g} s' for name, seconds in speed.forward.items())}.",
        f"Exact against plain from equal weights: loss {speed.loss_difference:.1e}, gradients "
        f"{speed.gradient_difference:.1e} apart (relative).",
        f"The floor: {speed.matrix_rate / 1e9:,.0f} GFLOP/s in matrix products, {speed.copy_rate / 1e9:.1f} GB/s in "
        "copies.",
    ]
    return "\n".join(text)


@dataclass
class TrainingStepArguments:
    """Flags of the script."""

    shape: Literal["tiny", "base", "small", "medium", "large-v2", "large-v3"] = setting("small", "Of the teacher.")
    decoder_layers: int = setting(2, "Of the student.")
    batch_size: int = setting(4, "Windows of a step.")
    shortest: int = setting(51, "Tokens of the shortest label.")
    longest: int = setting(128, "Tokens of the longest label.")
    rounds: int = setting(5, "Steps of each mode, in turn, after one that is not counted.")
    bf16: bool = setting(False, "Mixed precision.")
    padded_step: bool = setting(True, "Also measure the plain step with labels padded to 448.")
    memory: bool = setting(False, "Also measure the memory of the loss alone, on the CPU; needs 10 GB.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(TrainingStepArguments, argv=argv, command="benchmarks/training_step.py")
    check_flags(args, whole=("decoder_layers", "batch_size", "rounds"))
    if not 1 <= args.shortest <= args.longest <= 447:
        raise InputError(
            f"--shortest, --longest: expected 1 <= shortest <= longest <= 447, got {args.shortest} and {args.longest}"
        )
    # An accelerator draws the weights of large-v3 in a second, a CPU in half a minute.
    with torch.device(best_device()):
        teacher = random_whisper(args.shape, torch.bfloat16 if args.bf16 else torch.float32)
    speed = measure_training(
        teacher, random_batch(teacher.config, args.batch_size, args.shortest, args.longest),
        decoder_layers=args.decoder_layers, rounds=args.rounds, bf16=args.bf16,
        with_padding=args.padded_step,
    )  # fmt: skip
    print(training_table(speed, args.batch_size))
    if args.memory:
        peaks = loss_memory()
        print(
            f"The loss alone at (8, 448, 51,866), width 1280: plain {peaks['plain'] / 1e9:.2f} GB, fused "
            f"{peaks['fused'] / 1e9:.2f} GB, a ratio of {peaks['plain'] / peaks['fused']:.1f}."
        )
    precision = "bf16" if args.bf16 else "float32"
    print(
        f"\nwhisper-{args.shape}, batch {args.batch_size}, {args.shortest} to {args.longest} tokens, {precision}, "
        f"medians of {args.rounds}; {machine()}"
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
