"""From the plans of many windows to their features, on the device where the teacher trains."""

from collections.abc import Sequence

import numpy as np
import torch
from teacher_speech import RATE, log_mel
from teacher_windows import NOISES, SILENCE, Window
from torch import Tensor, nn

UPPER = 57
"""The first band that a telephone cuts, 3.4 kHz."""


def collate(windows: Sequence[Window]) -> dict[str, Tensor]:
    """The plans of windows of one length, as tensors of (windows), (windows, frames) or (windows, 80)."""
    recordings = [window.recording for window in windows]
    count, length = len(windows), len(windows[0].frames.low)
    gaps, bands = torch.zeros(count, length, dtype=torch.bool), torch.zeros(count, 80, dtype=torch.bool)
    zeros, swell = torch.zeros(count, length, dtype=torch.bool), torch.zeros(count, length)
    clips, rolls = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    below, hiss = torch.full((count,), torch.inf), torch.full((count,), -torch.inf)
    for number, (window, recording) in enumerate(zip(windows, recordings, strict=True)):
        for first, last in recording.gaps:
            gaps[number, first:last] = True
        for first, last in recording.bands:
            bands[number, first:last] = True
        if recording.zero_from is not None:
            zeros[number, recording.zero_from :] = True
        if recording.noise is not None:
            noise = recording.noise
            swell[number] = torch.from_numpy(noise.swell)
            clips[number], rolls[number] = noise.clip, noise.roll
            (hiss if window.empty else below)[number] = noise.level
    return {
        "low": _stack(window.frames.low for window in windows),
        "part": _stack(window.frames.part for window in windows),
        "fill": _stack(window.frames.fill for window in windows),
        "colour": _stack(one.colour + np.float32(one.level) for one in recordings),
        "warp": torch.tensor([one.warp for one in recordings]),
        "telephone": torch.tensor([one.telephone for one in recordings]),
        "clips": clips, "rolls": rolls, "swell": swell, "below": below, "hiss": hiss,
        "gaps": gaps, "bands": bands, "zeros": zeros,
    }  # fmt: skip


def _stack(arrays) -> Tensor:
    return torch.from_numpy(np.stack(list(arrays)))


class Renderer(nn.Module):
    """Puts features together from `mel`, the log10 mel power of all speech, (frames, 80)."""

    def __init__(self, mel: np.ndarray):
        super().__init__()
        self.register_buffer("mel", torch.from_numpy(mel), persistent=False)
        self.register_buffer("noises", noises(), persistent=False)

    @torch.no_grad()
    def forward(self, plan: dict[str, Tensor]) -> Tensor:
        """Features (windows, 80, frames), scaled as Whisper's extractor does it, of what [`collate`] gives."""
        mel = _warp(self._joined(plan), plan["warp"])
        silent = mel <= SILENCE + 0.01
        mel = mel + plan["colour"][:, None]
        mel = _telephone(mel, plan["telephone"]).masked_fill(silent, SILENCE)
        mel = self._with_noise(mel, plan).clamp(min=SILENCE)
        masked = plan["gaps"][:, :, None] | plan["bands"][:, None]
        mel = torch.where(masked, mel.mean(dim=(1, 2), keepdim=True), mel)
        return scale(mel).masked_fill(plan["zeros"][:, None], 0.0)

    def _joined(self, plan: dict[str, Tensor]) -> Tensor:
        low = plan["low"].clamp(min=0)
        part = plan["part"][:, :, None]
        mel = self.mel[low] * (1 - part) + self.mel[(low + 1).clamp(max=len(self.mel) - 1)] * part
        return torch.where(plan["low"][:, :, None] < 0, plan["fill"][:, :, None], mel)

    def _with_noise(self, mel: Tensor, plan: dict[str, Tensor]) -> Tensor:
        """Speech and noise add their powers; the loudest tenth of the frames says how loud speech is."""
        length = mel.shape[1]
        loud = mel.amax(dim=2).quantile(0.9, dim=1)
        level = torch.maximum(loud - plan["below"], plan["hiss"])
        place = (torch.arange(length, device=mel.device) - plan["rolls"][:, None]) % self.noises.shape[1]
        noise = self.noises[plan["clips"][:, None], place] + plan["swell"][:, :, None] + level[:, None, None]
        return torch.logaddexp(mel * 2.302585, noise * 2.302585) / 2.302585


def scale(mel: Tensor) -> Tensor:
    """Whisper's normalisation: eight decades below the maximum at most, then (x + 4) / 4.

    (windows, frames, 80) → features (windows, 80, frames).
    """
    features = (torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
    return features.transpose(1, 2).contiguous()


def _warp(mel: Tensor, factors: Tensor) -> Tensor:
    """Moves the bands, each window's by its factor."""
    position = (torch.arange(80, device=mel.device) * factors[:, None]).clamp(0, 79)
    low = position.long().clamp(max=78)
    part = (position - low)[:, None]
    low = low[:, None].expand_as(mel)
    return mel.gather(2, low) * (1 - part) + mel.gather(2, low + 1) * part


def _telephone(mel: Tensor, chosen: Tensor) -> Tensor:
    """Cuts the upper bands of the chosen windows two decades below their tenth percentile."""
    upper = mel[:, :: max(1, mel.shape[1] // 300), UPPER:].flatten(1)
    ceiling = torch.where(chosen, upper.quantile(0.1, dim=1) - 2.0, torch.inf)
    return torch.cat([mel[:, :, :UPPER], mel[:, :, UPPER:].minimum(ceiling[:, None, None])], dim=2)


def noises() -> Tensor:
    """Noise whose power falls with frequency as f^0 to f^-2, as log-mel frames at level 0: (clips, 3000, 80).

    From waveforms, since the wide upper bands flicker much less than the narrow lower ones.
    """
    rng = np.random.default_rng(0)
    clips = []
    for power in np.linspace(0.0, 1.0, NOISES):
        spectrum = np.fft.rfft(rng.standard_normal(30 * RATE))
        spectrum *= np.maximum(np.arange(len(spectrum)), 1000) ** -power
        wave = np.fft.irfft(spectrum)
        mel = log_mel((0.1 * wave / wave.std()).astype(np.float32)).astype(np.float32)
        clips.append((mel - mel.mean(axis=0).max()).astype(np.float16))
    return _stack(clips)
