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
    python train_teacher.py export --speech runs/speech --output_dir runs/teacher

The encoder first learns to spell with a character CTC head that is thrown away afterwards. Its best path gives every
word a time; a few decoder heads are then led to look at the word that they read or write (a loss on attention, as
CrisperWhisper uses), without which a decoder takes hours to find its way through 30 s. The same times tell a second
head which word each frame belongs to: an encoder that only spells sounds leaves it to the decoder to tell words apart,
and a student's decoder is too small for that. At last all weights train together.
Every stage goes on from the checkpoint of the one before it, and a stopped stage is begun anew. One process a core.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from muon import BETAS, Muon, split_parameters
from sentences import sentence
from teacher_alignment import BLANK, clean, greedy, spell, word_times
from teacher_model import DecoderLoss, Teacher, decoder_rows, words_heard
from teacher_windows import SILENCE, Speech, augment, compose, mask, pad_with_zeros, scale
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

from hf_distil_whisper import save_checkpoint

LENGTHS = {
    "encoder": [(450, 12, 0.3), (900, 6, 0.4), (1500, 4, 0.3)],
    "words": [(600, 14, 0.6), (3000, 3, 0.4)],
    "all": [(600, 11, 0.45), (900, 7, 0.25), (3000, 4, 0.3)],
}
"""Frames of a window, windows of a batch and process, share of the batches."""


class CtcWindows(IterableDataset):
    """Endless batches for the encoder: features, place in the 30 s window, characters (and no words, no rows).

    The windows stand anywhere in the 30 s only after `widen` minutes: from the start, the encoder would not begin to
    read for very long.
    """

    def __init__(self, speech: Speech, lengths: list[tuple[int, int, float]], widen: float, seed: int):
        self.speech, self.lengths, self.widen, self.seed = speech, lengths, widen, seed

    def __iter__(self):
        common, rng = generators(self.seed)
        begin = time.time()
        while True:
            length, size = draw_length(self.lengths, common)
            features, texts = [], []
            while len(features) < size:
                window = compose(self.speech, rng, length, single=0.2, cut=0.0)
                if window.cut_start is not None or not window.segments:
                    continue
                features.append(scale(mask(augment(window.mel, rng), rng)))
                texts.append(window.text)
            wide = min(1.0, (time.time() - begin) / 60 / self.widen)
            offset = int(rng.integers(0, int(wide * (3000 - length)) // 2 + 1))
            spelt = [torch.tensor(spell(text)) for text in texts]
            yield torch.from_numpy(np.stack(features)), offset, spelt, None, None


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
            features = [
                pad_with_zeros(scale(mask(augment(window.mel, rng, args.augment), rng)), window, rng)
                for window in windows
            ]
            spelt = [torch.tensor(spell(window.text), dtype=torch.long) for window in windows]
            heard = torch.stack([words_heard(window, self.words) for window in windows])
            yield torch.from_numpy(np.stack(features)), offset, spelt, heard, rows


def generators(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """One that all processes share, for the length of their windows, and each one's own."""
    # From 1 on: a trailing zero does not change a seed, and the first process would draw the same numbers twice.
    process = 1 + int(os.environ.get("RANK", 0))
    return np.random.default_rng(seed), np.random.default_rng([seed, process])


def draw_length(lengths: list[tuple[int, int, float]], rng: np.random.Generator) -> tuple[int, int]:
    """Frames of a window and windows of a batch, by their shares."""
    length, size, _ = lengths[rng.choice(len(lengths), p=[share for *_, share in lengths])]
    return length, size


def ctc_loss(log_probs: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
    """CTC a character. `log_probs`: (windows, frames, characters + 1)."""
    lengths = torch.tensor([len(target) for target in targets])
    frames = torch.full((len(targets),), log_probs.shape[1])
    loss = F.ctc_loss(log_probs.transpose(0, 1), torch.cat(targets), frames, lengths, blank=BLANK, reduction="sum",
                      zero_infinity=True)  # fmt: skip
    return loss / lengths.sum().clamp(min=1)


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
        self.decoder_loss = DecoderLoss(teacher, args.skip)

    def forward(self, batch: tuple) -> dict[str, torch.Tensor]:
        """`loss` and its parts, of a batch from `CtcWindows` or `DecoderWindows`."""
        features, offset, characters, heard, rows = batch
        states = self.teacher.encode(features, offset)
        parts = {"ctc": ctc_loss(self.teacher.spell(states), characters)}
        if self.args.stage == "encoder":
            return {"loss": parts["ctc"], **parts}
        parts["words"] = self.teacher.read(states, heard)
        if self.args.stage == "words":
            return {"loss": 0.5 * parts["ctc"] + parts["words"], **parts}
        parts |= self.decoder_loss(states, rows)
        loss = parts["ce"] + self.args.guide * parts["guide"] + 0.3 * parts["ctc"] + self.args.words * parts["words"]
        return {"loss": loss, **parts}


def optimizers(parameters: dict[str, nn.Parameter], learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else."""
    hidden, others = split_parameters(parameters.items())
    settings = {"lr": learning_rate, "weight_decay": 0.01}
    first = (
        ZeroRedundancyOptimizer(hidden, Muon, parameters_as_bucket_view=False, **settings)
        if dist.is_initialized()
        else Muon(hidden, **settings)
    )
    return [first, torch.optim.AdamW(others, betas=BETAS, **settings)]


def share_done(begin: float, minutes: float) -> float:
    """The share of the time that is over, by the clock of the first process."""
    done = torch.tensor((time.time() - begin) / (60 * minutes))
    if dist.is_initialized():
        dist.broadcast(done, 0)
    return float(done)


def train(teacher: Teacher, loader: DataLoader, args: argparse.Namespace) -> None:
    """Steps until the minutes are over; a line each 50 steps, a checkpoint each 300."""
    first = not dist.is_initialized() or dist.get_rank() == 0
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
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            parts = objective(batch)
        parts["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in steppers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            if torch.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if first and step % 50 == 0:
            means = {name: round(value / 50, 4) for name, value in sums.items()}
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
    return teacher.spell(teacher.encode(torch.from_numpy(scale(mel))[None]))[0]


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
    unused = [teacher.whisper.model.decoder] + ([teacher.reader] if args.stage == "encoder" else [])
    for module in unused:
        module.requires_grad_(False)
    dataset = (
        CtcWindows(speech, args.lengths, args.widen, args.seed)
        if args.stage == "encoder"
        else DecoderWindows(speech, teacher, args)
    )
    train(teacher, DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4), args)
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
    dataset = DecoderWindows(speech, teacher, args)
    train(teacher, DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=3), args)


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
        "--augment", type=float, default=0.25, help="share of windows in another room, by another voice"
    )
    parser.add_argument("--widen", type=float, default=5.0, help="minutes until the encoder's windows stand anywhere")
    parser.add_argument("--final_rate", type=float, default=0.02, help="last learning rate, a share of the first")
    parser.add_argument("--guide", type=float, default=0.4, help="weight of the loss on attention")
    parser.add_argument("--words", type=float, default=0.3, help="weight of the words that the encoder tells apart")
    parser.add_argument(
        "--skip", type=float, default=0.2, help="average share of middle decoder layers that a row passes by"
    )
    parser.add_argument("--bf16", action="store_true", help="on cores with AMX: the same cores in half the time")
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
    if args.stage in ("encoder", "words"):
        encoder_stage(teacher, speech, args)
    elif args.stage == "align":
        align_stage(teacher, speech, args)
    elif args.stage == "export":
        save_checkpoint(teacher.whisper.half(), teacher.processor, Path(__file__).parent / "teacher")
    else:
        all_stage(teacher, speech, args)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
