"""Trains the quickstart's teacher from scratch: a Whisper of width 128 with 4 encoder and 8 decoder layers.

    python teacher_speech.py --output_dir runs/speech --hours 9 --fsdd ../../../shared/speech/fsdd
    export OMP_NUM_THREADS=1
    alias train="torchrun --nproc_per_node 2 train_teacher.py --speech runs/speech --output_dir runs/teacher"
    train encoder --minutes 30
    train align
    train all --minutes 70
    train all --minutes 70 --learning_rate 4e-4 --lengths 600:11:0.25 3000:5:0.75 --single 0.2
    train all --minutes 30 --learning_rate 5e-4 --lengths 600:11:0.3 3000:5:0.7 --single 0.25 --skip 0.4
    python teacher_speech.py --output_dir runs/speech --hours 8 --seed 3000000 --fsdd ../../../shared/speech/fsdd
    train encoder --minutes 6 --learning_rate 6e-4 --widen 0.1 --seed 11
    train align
    train all --minutes 27 --learning_rate 5e-4 --lengths 600:11:0.3 3000:5:0.7 --single 0.25 --skip 0.4 --seed 12
    python teacher_speech.py --output_dir runs/speech --hours 11.5 --seed 5000000 --fsdd ../../../shared/speech/fsdd
    train align
    train words --minutes 16 --learning_rate 1e-3 --final_rate 0.2 --previous 0 --seed 21
    alias more="train all --learning_rate 6e-4 --lengths 600:11:0.4 3000:5:0.6"
    more --minutes 42 --single 0.25 --skip 0.4 --seed 22
    more --minutes 43 --final_rate 0.25 --single 0.3 --words 0.6 --skip 0.3 --seed 23
    more --minutes 28 --learning_rate 3e-4 --single 0.3 --words 0.6 --skip 0.3 --seed 24
    python teacher_speech.py --output_dir runs/speech --hours 10.9 --seed 9000000 --fsdd ../../../shared/speech/fsdd
    alias train="python train_teacher.py --speech runs/speech --output_dir runs/teacher --bf16"
    train encoder --frozen --widen 0.01 --minutes 0.4 --learning_rate 4e-3 --workers 8 --lengths 600:256:1
    train align
    train words --frozen --minutes 0.3 --learning_rate 4e-3 --workers 8 --lengths 600:256:1
    train all --shallow 1 --words 0.6 --skip 0.15 --single 0.3 --minutes 6.5 --seed 31 --workers 4 \
        --lengths 600:256:0.3 3000:128:0.7
    train export

The last training ran on a GPU (an H200 that two others shared: 1,400 steps), all before it on two cores.

The encoder first learns to spell with a character CTC head that is thrown away afterwards. Its best path gives every
word a time; a few decoder heads are then led to look at the word that they read or write (a loss on attention, as
CrisperWhisper uses), without which a decoder takes hours to find its way through 30 s. The same times tell a second
head which word each frame belongs to: an encoder that only spells sounds leaves it to the decoder to tell words apart,
and a student's decoder is too small for that. At last all weights train together, and a second decoder of two layers
with them, which is thrown away like the heads: what two layers can read, a student of two layers can learn to read.
Every stage goes on from the checkpoint of the one before it, and a stopped stage is begun anew. One process a core.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from muon import BETAS, Muon, split_parameters
from sentences import sentence
from teacher_alignment import BLANK, clean, greedy, spell, word_times
from teacher_model import DecoderLoss, Teacher, collate_rows, decoder_rows, words_at_positions
from teacher_render import Renderer, collate, scale
from teacher_windows import SILENCE, Speech, Window, augment, compose, mask, pad_with_zeros
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hf_distil_whisper import save_checkpoint

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = {
    "encoder": [(450, 12, 0.3), (900, 6, 0.4), (1500, 4, 0.3)],
    "words": [(600, 14, 0.6), (3000, 3, 0.4)],
    "all": [(600, 11, 0.45), (900, 7, 0.25), (3000, 4, 0.3)],
}
"""Frames of a window, windows of a batch and process, share of the batches."""


class CtcWindows(IterableDataset):
    """Endless batches for the encoder: plans, place in the 30 s window, characters.

    The windows stand anywhere in the 30 s only after `widen` minutes: from the start, the encoder would not begin to
    read for very long.
    """

    def __init__(self, speech: Speech, args: argparse.Namespace):
        self.speech, self.args = speech, args

    def __iter__(self):
        common, rng = generators(self.args.seed)
        begin = time.time()
        while True:
            length, size = draw_length(self.args.lengths, common)
            windows = []
            while len(windows) < size:
                window = compose(self.speech, rng, length, single=0.2, cut=0.0)
                if window.cut_start is None and window.segments:
                    windows.append(window)
            wide = min(1.0, (time.time() - begin) / 60 / self.args.widen)
            offset = int(rng.integers(0, int(wide * (3000 - length)) // 2 + 1))
            yield recorded(windows, rng) | {"offset": offset}


class DecoderWindows(IterableDataset):
    """Endless batches as above with the words, and the decoder's inputs, targets and places that it should look at."""

    def __init__(self, speech: Speech, teacher: Teacher, args: argparse.Namespace):
        self.speech, self.tokenizer, self.args = speech, teacher.processor.tokenizer, args
        self.words = {word: index for index, word in enumerate(teacher.words)}

    def __iter__(self):
        args = self.args
        common, rng = generators(args.seed)
        while True:
            length, size = draw_length(args.lengths, common)
            offset = int(rng.integers(0, (3000 - length) // 2 + 1))
            windows = [compose(self.speech, rng, length, args.single, args.cut, args.previous) for _ in range(size)]
            rows = [decoder_rows(self.tokenizer, window, offset, rng) for window in windows]
            for window in windows:
                pad_with_zeros(window, rng)
            yield recorded(windows, rng, args.augment) | {
                "offset": offset,
                "word_ids": torch.stack([words_at_positions(window, self.words) for window in windows]),
                "rows": collate_rows(rows, self.tokenizer.pad_token_id),
            }


def recorded(windows: list[Window], rng: np.random.Generator, share: float = 0.35) -> dict[str, Any]:
    """What is said in the windows, as `plan`, and the characters of it."""
    for window in windows:
        augment(window, rng, share)
        mask(window, rng)
    spelt = [spell(window.text) for window in windows]
    return {
        "plan": collate(windows),
        "characters": torch.tensor([letter for letters in spelt for letter in letters], dtype=torch.long),
        "letters": torch.tensor([len(letters) for letters in spelt]),
    }


def generators(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """One that all processes share, for the length of their windows, and each one's own; both of this worker."""
    # From 1 on: a trailing zero does not change a seed, and the first process would draw the same numbers twice.
    process, worker = 1 + int(os.environ.get("RANK", 0)), get_worker_info().id
    return np.random.default_rng([seed, 0, 1 + worker]), np.random.default_rng([seed, process, 1 + worker])


def draw_length(lengths: list[tuple[int, int, float]], rng: np.random.Generator) -> tuple[int, int]:
    """Frames of a window and windows of a batch, by their shares."""
    length, size, _ = lengths[rng.choice(len(lengths), p=[share for *_, share in lengths])]
    return length, size


def ctc_loss(log_probs: Tensor, characters: Tensor, letters: Tensor) -> Tensor:
    """CTC a character.

    Args:
        log_probs (`Tensor`): (windows, frames, characters + 1).
        characters (`Tensor`): of all windows, one behind the other.
        letters (`Tensor`): characters of each window, on the CPU.
    """
    frames = torch.full((len(letters),), log_probs.shape[1])
    loss = F.ctc_loss(log_probs.transpose(0, 1), characters, frames, letters, blank=BLANK, reduction="sum",
                      zero_infinity=True)  # fmt: skip
    return loss / letters.sum().clamp(min=1)


def schedule(done: float, peak: float, final: float, warm: float = 0.03) -> float:
    """Linear warm-up over the share `warm` of the time, then a straight line down to the share `final` of the peak."""
    if done < warm:
        return peak * (done + 1e-3) / warm
    return peak * (1 - (1 - final) * (done - warm) / (1 - warm))


class Objective(nn.Module):
    """The losses of a batch, as one module that the processes of a training can share."""

    def __init__(self, teacher: Teacher, args: argparse.Namespace):
        super().__init__()
        self.teacher, self.args = teacher, args
        self.decoder_loss = DecoderLoss(teacher, args.skip, shallow=args.shallow > 0)

    def forward(self, features: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`loss` and its parts, of a batch from `CtcWindows` or `DecoderWindows`."""
        args = self.args
        states = self.teacher.encode(features, batch["offset"])
        parts = {"ctc": ctc_loss(self.teacher.spell(states), batch["characters"], batch["letters"])}
        if args.stage == "encoder":
            return {"loss": parts["ctc"], **parts}
        parts["words"] = self.teacher.read(states, batch["word_ids"])
        if args.stage == "words":
            return {"loss": 0.5 * parts["ctc"] + parts["words"], **parts}
        parts |= self.decoder_loss(states, batch["rows"])
        loss = parts["ce"] + args.guide * parts["guide"] + 0.3 * parts["ctc"] + args.words * parts["words"]
        if args.shallow:
            loss = loss + args.shallow * parts["shallow"]
        return {"loss": loss, **parts}


def optimizers(parameters: dict[str, nn.Parameter], learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else."""
    hidden, others = split_parameters(parameters.items())
    settings = {"lr": learning_rate, "weight_decay": 0.01}
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, betas=BETAS, **settings)]
    if hidden and dist.is_initialized():
        found.append(ZeroRedundancyOptimizer(hidden, Muon, parameters_as_bucket_view=False, **settings))
    elif hidden:
        found.append(Muon(hidden, **settings))
    return found


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """Its tensors there, but for the numbers of letters, which CTC asks for on the CPU."""
    return {
        name: on_device(value)
        if isinstance(value, dict)
        else value.to(DEVICE, non_blocking=True)
        if isinstance(value, Tensor) and name != "letters"
        else value
        for name, value in batch.items()
    }


def share_done(begin: float, minutes: float) -> float:
    """The share of the time that is over, by the clock of the first process."""
    done = torch.tensor((time.time() - begin) / (60 * minutes))
    if dist.is_initialized():
        dist.broadcast(done, 0)
    return float(done)


def train(teacher: Teacher, speech: Speech, dataset: IterableDataset, args: argparse.Namespace) -> None:
    """Steps until the minutes are over; a line each 50 steps, a checkpoint each 300."""
    loader = DataLoader(dataset, batch_size=None, num_workers=args.workers, prefetch_factor=4)
    first = not dist.is_initialized() or dist.get_rank() == 0
    render = Renderer(speech.mel).to(DEVICE)
    objective: nn.Module = Objective(teacher, args)
    if dist.is_initialized():
        objective = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    parameters = {name: p for name, p in teacher.named_parameters() if p.requires_grad}
    steppers = optimizers(parameters, args.learning_rate)
    begin, sums = time.time(), {}
    for step, batch in enumerate(loader, start=1):
        done = share_done(begin, args.minutes)
        if done >= 1:
            break
        rate = schedule(done, args.learning_rate, args.final_rate)
        batch = on_device(batch)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=args.bf16):
            parts = objective(render(batch["plan"]), batch)
        parts["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in steppers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            if torch.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.detach()
        if first and step % 50 == 0:
            means = {name: round(float(value) / 50, 4) for name, value in sums.items()}
            print(json.dumps({"step": step, "minutes": round((time.time() - begin) / 60, 1), **means}), flush=True)
            sums = {}
        if first and step % 300 == 0:
            teacher.save(args.output_dir)
    if first:
        teacher.save(args.output_dir)


def spell_alone(teacher: Teacher, speech: Speech, row: dict, length: int) -> torch.Tensor:
    """Log-probabilities (frames / 2, characters + 1) of one utterance at the start of `length` frames of silence."""
    mel = np.full((length, 80), SILENCE, dtype=np.float32)
    mel[: row["frames"]] = speech.frames(row)[:length]
    features = scale(torch.from_numpy(mel)[None].to(DEVICE))
    return teacher.spell(teacher.encode(features))[0].cpu()


def character_error_rate(teacher: Teacher, speech: Speech, length: int, count: int) -> float:
    """Of the CTC head on held-out sentences, alone in windows of `length` frames."""
    references, guesses = [], []
    for row in speech.held_out[:count]:
        with torch.inference_mode():
            log_probs = spell_alone(teacher, speech, row, length)
        references.append(clean(row["text"]))
        guesses.append(greedy(log_probs))
    return jiwer.cer(references, guesses)


def encoder_stage(teacher: Teacher, speech: Speech, args: argparse.Namespace) -> None:
    """CTC on short windows anywhere in the 30 s, and on whole ones; in the stage `words`, whole words beside it."""
    teacher.shallow.requires_grad_(False)
    teacher.whisper.model.decoder.requires_grad_(False)
    teacher.whisper.model.encoder.requires_grad_(not args.frozen)
    teacher.whisper.model.encoder.embed_positions.requires_grad_(False)
    teacher.reader.requires_grad_(args.stage == "words")
    dataset = CtcWindows(speech, args) if args.stage == "encoder" else DecoderWindows(speech, teacher, args)
    train(teacher, speech, dataset, args)
    teacher.eval()
    print({f"cer_{n / 100:.0f}s": round(character_error_rate(teacher, speech, n, 128), 4) for n in (640, 3000)})


def align_stage(teacher: Teacher, speech: Speech, args: argparse.Namespace) -> None:
    """Writes the times of every utterance's words beside the speech; those that CTC cannot read are left out."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = [args.speech / f"times.jsonl.{number}" for number in range(processes)]
    with open(parts[rank], "w") as file, torch.inference_mode():
        for row in (speech.rows + speech.held_out)[rank::processes]:
            if row["speaker"].startswith("fsdd"):
                times = [(0, row["frames"])]
            elif 2 * len(spell(row["text"])) + 2 > row["frames"] // 2:
                continue
            else:
                log_probs = spell_alone(teacher, speech, row, row["frames"] + row["frames"] % 2)
                times = word_times(log_probs, row["text"])
            file.write(json.dumps({"start": row["start"], "words": times}) + "\n")
    if dist.is_initialized():
        dist.barrier()
    if rank == 0:
        (args.speech / "times.jsonl").write_text("".join(part.read_text() for part in parts))
        for part in parts:
            part.unlink()


def all_stage(teacher: Teacher, speech: Speech, args: argparse.Namespace) -> None:
    """Cross-entropy, guided attention and CTC together."""
    if not args.shallow:
        for part in (teacher.shallow.layers, teacher.shallow.layer_norm):
            part.requires_grad_(False)
    train(teacher, speech, DecoderWindows(speech, teacher, args), args)


def window_length(text: str) -> tuple[int, int, float]:
    """`800:10:0.5` → 800 frames, 10 windows a batch, half of the batches."""
    length, size, share = text.split(":")
    return int(length), int(size), float(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["encoder", "align", "words", "all", "export"])
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--learning_rate", type=float, default=None, help="1.5e-3 for the encoder, then 8e-4")
    help_lengths = "frames:windows of a process:share of the batches, several times"
    parser.add_argument("--lengths", nargs="+", type=window_length, default=None, help=help_lengths)
    parser.add_argument("--single", type=float, default=0.35, help="share of windows with one sentence")
    parser.add_argument("--cut", type=float, default=0.3, help="share of full windows that end within a sentence")
    parser.add_argument("--previous", type=float, default=0.2, help="share of windows with text before them")
    parser.add_argument(
        "--augment", type=float, default=0.25, help="share of windows with simulated reverberation or another voice"
    )
    parser.add_argument("--widen", type=float, default=5.0, help="minutes until the encoder's windows have any offset")
    parser.add_argument("--final_rate", type=float, default=0.02, help="last learning rate, a share of the first")
    parser.add_argument("--guide", type=float, default=0.4, help="weight of the loss on attention")
    parser.add_argument("--words", type=float, default=0.3, help="weight of the loss of the encoder's word head")
    parser.add_argument(
        "--skip", type=float, default=0.2, help="average share of middle decoder layers that a row passes by"
    )
    parser.add_argument("--frozen", action="store_true", help="train only the heads, which an exported model lacks")
    parser.add_argument("--shallow", type=float, default=0.0, help="weight of the second decoder, of two layers")
    parser.add_argument("--bf16", action="store_true", help="on cores with AMX and on GPUs: half the time")
    parser.add_argument("--workers", type=int, default=1, help="of each process, drawing windows")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.lengths = args.lengths or LENGTHS.get(args.stage)
    args.learning_rate = args.learning_rate or (1.5e-3 if args.stage == "encoder" else 8e-4)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    speech = Speech(args.speech, timed=args.stage in ("words", "all"))
    rng = random.Random(args.seed)
    teacher = Teacher.load_or_create(args.output_dir, [sentence(rng) for _ in range(30_000)], speech.words())
    teacher.to(DEVICE)
    if args.stage in ("encoder", "words"):
        encoder_stage(teacher, speech, args)
    elif args.stage == "align":
        align_stage(teacher, speech, args)
    elif args.stage == "export":
        save_checkpoint(teacher.whisper.half().cpu(), teacher.processor, Path(__file__).parent / "teacher")
    else:
        all_stage(teacher, speech, args)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
