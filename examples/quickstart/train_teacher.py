"""Trains the quickstart's teacher from scratch: a Whisper of width 128 with 4 encoder and 8 decoder layers.

    python teacher_speech.py --output_dir runs/speech --hours 14 --fsdd ../../../shared/speech/fsdd
    python train_teacher.py encoder --speech runs/speech --output_dir runs/teacher --minutes 30
    python train_teacher.py align   --speech runs/speech --output_dir runs/teacher
    python train_teacher.py decoder --speech runs/speech --output_dir runs/teacher --minutes 40
    python train_teacher.py all     --speech runs/speech --output_dir runs/teacher --minutes 40
    python train_teacher.py export  --speech runs/speech --output_dir runs/teacher

The encoder first learns to spell with a character CTC head that is thrown away afterwards. Its best path gives every
word a time; a few decoder heads are then led to look at the word that they read or write (a loss on attention, as
CrisperWhisper uses), without which a decoder takes hours to find its way through 30 s. At last all weights train
together.
Every stage goes on from the checkpoint of the one before it, and a stopped stage is begun anew.
"""

import argparse
import json
import random
import time
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from sentences import sentence
from teacher_alignment import BLANK, clean, greedy, spell, word_times
from teacher_model import DecoderLoss, Teacher, decoder_rows
from teacher_windows import SILENCE, Speech, augment, compose, mask, pad_with_zeros, scale
from torch.utils.data import DataLoader, IterableDataset

from hf_distil_whisper import save_checkpoint


class CtcWindows(IterableDataset):
    """Endless batches for the encoder: features, place in the 30 s window, characters.

    The windows stand anywhere in the 30 s only after `widen` minutes: from the start, the encoder would not begin to
    read for very long.
    """

    def __init__(self, speech: Speech, lengths: list[tuple[int, int, float]], widen: float, seed: int):
        self.speech, self.lengths, self.widen, self.seed = speech, lengths, widen, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        begin = time.time()
        while True:
            length, size = draw_length(self.lengths, rng)
            features, texts = [], []
            while len(features) < size:
                window = compose(self.speech, rng, length, single=0.2, cut=0.0)
                if window.cut_start is not None or not window.segments:
                    continue
                features.append(scale(mask(augment(window.mel, rng), rng)))
                texts.append(" ".join(word.text for segment in window.segments for word in segment))
            wide = min(1.0, (time.time() - begin) / 60 / self.widen) if self.widen else 0.0
            offset = int(rng.integers(0, int(wide * (3000 - length)) // 2 + 1))
            yield torch.from_numpy(np.stack(features)), offset, [torch.tensor(spell(text)) for text in texts]


class DecoderWindows(IterableDataset):
    """Endless batches with the decoder's inputs, targets and the places that it should look at."""

    def __init__(self, speech: Speech, tokenizer, args: argparse.Namespace):
        self.speech, self.tokenizer, self.args = speech, tokenizer, args

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        args = self.args
        rng = np.random.default_rng([args.seed, worker.id if worker else 0])
        while True:
            length, size = draw_length(args.lengths, rng)
            offset = int(rng.integers(0, (3000 - length) // 2 + 1))
            windows = [compose(self.speech, rng, length, args.single, args.cut, args.previous) for _ in range(size)]
            rows = [decoder_rows(self.tokenizer, window, offset, rng) for window in windows]
            features = [
                pad_with_zeros(scale(mask(augment(window.mel, rng, args.augment), rng)), window, rng)
                for window in windows
            ]
            spelt = [" ".join(word.text for segment in window.segments for word in segment) for window in windows]
            ctc = [torch.tensor(spell(text), dtype=torch.long) for text in spelt]
            yield torch.from_numpy(np.stack(features)), offset, rows, ctc


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


def schedule(done: float, peak: float, warm: float = 0.04) -> float:
    """Linear warm-up over the share `warm` of the time, then a half cosine to a hundredth of the peak."""
    if done < warm:
        return peak * (done + 1e-3) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * min(1.0, (done - warm) / (1 - warm)))))


def train(teacher: Teacher, loader: DataLoader, step_loss, parameters: list, args: argparse.Namespace) -> None:
    """Steps until the minutes are over; a line each 50 steps, a checkpoint each 300."""
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    begin, sums = time.time(), {}
    for step, batch in enumerate(loader, start=1):
        done = (time.time() - begin) / (60 * args.minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = schedule(done, args.learning_rate)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = step_loss(batch, done)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step % 50 == 0:
            means = {name: round(value / 50, 4) for name, value in sums.items()}
            print(json.dumps({"step": step, "minutes": round((time.time() - begin) / 60, 1), **means}), flush=True)
            sums = {}
        if step % 300 == 0:
            teacher.save(args.output_dir)
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
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            log_probs = spell_alone(teacher, speech, row, length)
        references.append(clean(row["text"]))
        guesses.append(greedy(log_probs))
    return jiwer.cer(references, guesses)


def encoder_stage(teacher: Teacher, speech: Speech, args: argparse.Namespace) -> None:
    """CTC on short windows anywhere in the 30 s, and on whole ones."""

    def loss(batch, done):
        features, offset, targets = batch
        value = ctc_loss(teacher.spell(teacher.encode(features, offset)), targets)
        return {"loss": value}

    dataset = CtcWindows(speech, args.lengths, args.widen, args.seed)
    parameters = [p for n, p in teacher.named_parameters() if ".decoder." not in n and p.requires_grad]
    loader = DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4)
    train(teacher, loader, loss, parameters, args)
    teacher.eval()
    print({f"cer_{n / 100:.0f}s": round(character_error_rate(teacher, speech, n, 128), 4) for n in (640, 3000)})


def align_stage(teacher: Teacher, speech: Speech, args: argparse.Namespace) -> None:
    """Writes the times of every utterance's words beside the speech; those that CTC cannot read are left out."""
    unfinished = args.speech / "times.jsonl.part"
    with open(unfinished, "w") as file, torch.inference_mode():
        for row in speech.rows + speech.held_out:
            if row["speaker"].startswith("fsdd"):
                times = [(0, row["frames"])]
            elif 2 * len(spell(row["text"])) + 2 > row["frames"] // 2:
                continue
            else:
                log_probs = spell_alone(teacher, speech, row, row["frames"] + row["frames"] % 2)
                times = word_times(log_probs, row["text"])
            file.write(json.dumps({"start": row["start"], "words": times}) + "\n")
    unfinished.replace(args.speech / "times.jsonl")


def decoder_stage(teacher: Teacher, speech: Speech, args: argparse.Namespace, whole: bool) -> None:
    """Cross-entropy and guided attention; with `whole` the encoder trains too, CTC kept beside."""
    tokenizer = teacher.processor.tokenizer
    criterion = DecoderLoss(teacher)

    def loss(batch, done):
        features, offset, rows, ctc = batch
        in_pieces = done < args.in_pieces and features.shape[-1] == 3000
        with torch.set_grad_enabled(whole):
            states = teacher.encode(features, offset, (3, 4, 5)[len(rows[0]["inputs"]) % 3] if in_pieces else 1)
        parts = criterion(states, rows)
        if whole:
            parts["ctc"] = ctc_loss(teacher.spell(states), ctc)
        total = parts["ce"] + args.guide * parts["guide"] + (0.3 * parts["ctc"] if whole else 0)
        return {"loss": total, **parts}

    named = [(n, p) for n, p in teacher.named_parameters() if p.requires_grad]
    parameters = [p for n, p in named if whole or ".decoder." in n]
    loader = DataLoader(DecoderWindows(speech, tokenizer, args), batch_size=None, num_workers=1,
                        prefetch_factor=3, collate_fn=None)  # fmt: skip
    train(teacher, loader, loss, parameters, args)


def window_length(text: str) -> tuple[int, int, float]:
    """`800:10:0.5` → 800 frames, 10 windows a batch, half of the batches."""
    length, size, share = text.split(":")
    return int(length), int(size), float(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["encoder", "align", "decoder", "all", "export"])
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    lengths = [(400, 20, 0.45), (800, 10, 0.47), (3000, 2, 0.08)]
    help_lengths = "frames:windows:share of the batches, several times"
    parser.add_argument("--lengths", nargs="+", type=window_length, default=lengths, help=help_lengths)
    parser.add_argument("--single", type=float, default=0.3, help="share of windows with one sentence")
    parser.add_argument("--cut", type=float, default=0.5, help="share of full windows that end within a sentence")
    parser.add_argument("--previous", type=float, default=0.3, help="share of windows with text before them")
    parser.add_argument(
        "--augment", type=float, default=0.35, help="share of windows in another room, by another voice"
    )
    parser.add_argument("--widen", type=float, default=0.0, help="minutes until windows stand anywhere; 0: never")
    parser.add_argument("--in_pieces", type=float, default=0.6, help="share of the time with the encoder on pieces")
    parser.add_argument("--guide", type=float, default=0.3, help="weight of the loss on attention")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    speech = Speech(args.speech, timed=args.stage in ("decoder", "all"))
    rng = random.Random(args.seed)
    teacher = Teacher.load_or_create(args.output_dir, [sentence(rng) for _ in range(30_000)])
    if args.stage == "encoder":
        encoder_stage(teacher, speech, args)
    elif args.stage == "align":
        align_stage(teacher, speech, args)
    elif args.stage == "export":
        save_checkpoint(teacher.whisper.half(), teacher.processor, Path(__file__).parent / "teacher")
    else:
        decoder_stage(teacher, speech, args, whole=args.stage == "all")


if __name__ == "__main__":
    main()
