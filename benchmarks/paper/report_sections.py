"""The sections of a report, tables in the layouts of the paper with their pictures, and the page they make."""

import base64
import html
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from algorithms import AlgorithmRow, algorithm_table
from averages import set_averages
from hf_distil_whisper import WordErrors
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, NonSpeech
from hf_distil_whisper.evaluation.results import METRICS, left_out_text, non_speech_text, shown
from hf_distil_whisper.evaluation.significance import confidence_interval, robustness_by_model, robustness_text

sys.path.append(str(Path(__file__).resolve().parents[1]))
from figures import wer_over_latency, wer_over_snr
from latency import LatencyRow, latency_table, rtf_table
from tables import table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
p, ul { max-width: 60rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
.table, p:has(> img) { overflow-x: auto; margin: 1.2rem 0; }
.table {
  background: linear-gradient(to right, #fff 40%, #fff0) 0 0 / 2rem 100% local no-repeat,
    linear-gradient(to left, #fff 40%, #fff0) 100% 0 / 2rem 100% local no-repeat,
    linear-gradient(to right, #0003, #0000) 0 0 / .8rem 100% scroll no-repeat,
    linear-gradient(to left, #0003, #0000) 100% 0 / .8rem 100% scroll no-repeat;
}
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
img { min-width: 34rem; max-width: 100%; height: auto; }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  h1 { font-size: 1.6rem; }
  table { font-size: .85rem; }
  th, td { padding: .3rem .45rem; }
}
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
"""


@dataclass(frozen=True)
class SetScore:
    """The figures of one model on one set; names and meanings are those of [`EvaluationResult`]."""

    errors: WordErrors
    interval: tuple[float, float] | None  # of the word error rate, 95 %, fractions; None for one recording
    seconds: float
    audio_seconds: float
    repeated_5grams: int
    unreadable_rows: int = 0
    empty_references: int = 0
    non_speech: NonSpeech = field(default_factory=NonSpeech)

    @property
    def rtf(self) -> float:
        """Seconds of work per second of audio."""
        return self.seconds / self.audio_seconds


def set_score(result: EvaluationResult) -> SetScore:
    """The figures that a report shows of a result."""
    return SetScore(
        result.errors, confidence_interval(result), result.seconds, result.audio_seconds, result.repeated_5grams,
        result.unreadable_rows, result.empty_references, result.non_speech,
    )  # fmt: skip


Scores = Mapping[str, Mapping[str, SetScore]]
"""Model → set → score."""


@dataclass(frozen=True)
class Section:
    """A part of a report: heading, Markdown, and the file name of a picture above it with its caption."""

    title: str
    text: str
    picture: str | None = None
    caption: str = ""


def front_section(
    scores: Scores, speed: Mapping[str, float], outside: Sequence[str], baseline: str, folder: Path
) -> Section:
    """Word error rate over latency (Table 5)."""
    line = "OOD Average" if outside else "Average"
    rates = {name: 100 * _averages(by_set, outside)[line][0] for name, by_set in scores.items()}
    over = "average out of distribution" if outside else "average of all sets"
    wer_over_latency({name: (speed[name], rates[name]) for name in scores}, baseline, over, folder / "front.svg")
    rows = {name: {f"WER, {over} / %": f"{rates[name]:.1f}", "times as fast": f"{speed[name]:.2f}"} for name in scores}
    caption = f"Word error rate, {over}, over the speed relative to {baseline}"
    return Section("Word error rate over latency", markdown_table("model", rows), "front.svg", caption)


def short_form_section(scores: Scores, outside: Sequence[str], baseline: str, reference: str | None) -> Section:
    """Word error rates by set with their averages (Table 16), and how they change out of distribution (Table 6)."""
    rows: dict[str, dict[str, str]] = {}
    counts: dict[str, dict[str, str]] = {}
    for name, by_set in scores.items():
        for data, score in by_set.items():
            interval = score.interval
            around = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval is not None else ""
            rows.setdefault(data, {})[name] = f"{100 * score.errors.wer:.1f}{around}"
            errors = score.errors
            numbers = errors.num_words, errors.substitutions, errors.deletions, errors.insertions
            row = {kind: f"{number:,}" for kind, number in zip(("words", "S", "D", "I"), numbers, strict=True)}
            counts[f"{name}, {data}"] = {**row, "RTF": f"{score.rtf:.3f}"}
        for kind, (macro, micro) in _averages(by_set, outside).items():
            rows.setdefault(kind, {})[name] = f"{100 * macro:.1f} ({100 * micro:.1f})"
    parts = [
        "Word error rate / %, with 95 % bootstrap intervals; averages over sets, in brackets over all their words.",
        markdown_table("set", rows),
        "Words, substitutions, deletions and insertions; real-time factor of the batches.",
        markdown_table("model", counts),
        *_left_out(scores),
    ]
    if reference is not None:
        all_errors = {name: {data: one.errors for data, one in by_set.items()} for name, by_set in scores.items()}
        robustness = robustness_by_model(all_errors, baseline, reference, outside)
        text = robustness_text(robustness, baseline)
        parts += [f"Relative error rates against {baseline}:", text] if robustness else []
    return Section("Short form", "\n\n".join(parts))


def long_form_section(scores: Scores, algorithms: Mapping[str, Sequence[AlgorithmRow]], baseline: str) -> Section:
    """Repetitions and kinds of errors on long recordings (Tables 8 and 19), and both algorithms (Table 7)."""
    rows = {}
    for name, by_set in scores.items():
        for data, score in by_set.items():
            row = {metric: shown(metric, figure(score)) for metric, figure in METRICS.items()}
            rows[f"{name}, {data}"] = {**row, "RTF": f"{score.rtf:.3f}"}
    parts = [
        "Repeated 5-grams; insertion, substitution, deletion and word error rates / %; real-time factor. In chunks.",
        markdown_table("model", rows),
        *_left_out(scores),
        "Both algorithms in turn, medians; WER / % averaged over sets (Table 7).",
        algorithm_table(algorithms, baseline),
    ]
    return Section("Long form", "\n\n".join(parts))


def noise_section(noise: Mapping[str, Mapping[str, Mapping[float, WordErrors]]], folder: Path) -> Section:
    """Word error rate over the signal-to-noise ratio (Figure 2); `noise`: noise → model → ratio in dB → errors."""
    curves = {
        kind: {name: {snr: errors.wer for snr, errors in by_snr.items()} for name, by_snr in models.items()}
        for kind, models in noise.items()
    }
    wer_over_snr(curves, folder / "noise.svg")
    rows = {
        f"{name}, {kind}": {f"{snr:g} dB": f"{100 * wer:.1f}" for snr, wer in by_snr.items()}
        for kind, models in curves.items()
        for name, by_snr in models.items()
    }
    text = f"Word error rate / % at each signal-to-noise ratio.\n\n{markdown_table('model', rows)}"
    return Section("Noise", text, "noise.svg", "Word error rate over the signal-to-noise ratio")


def latency_section(rows: Sequence[LatencyRow]) -> Section:
    """Real-time factors by batch size (Table 24), and all that was measured beside them."""
    text = (
        "Batch size 1 takes the recordings one by one, larger batches the same speech in overlapping chunks of one "
        "window, where the first model predicts timestamps (appendix B.2). Medians, the models in turn."
    )
    return Section("Latency", "\n\n".join([text, rtf_table(rows), "All of it, line by line:", latency_table(rows)]))


def sweep_section(sweep: Path, folder: Path) -> Section:
    """Table and picture that `sweep.py` has left; the picture is copied into the folder of the report."""
    title, _, text = (sweep / "table.md").read_text(encoding="utf-8").partition("\n")
    picture = f"sweep-{sweep.name}.png"
    (folder / picture).write_bytes((sweep / "wer.png").read_bytes())
    return Section(title, text, picture, f"{title}: word error rates")


def _averages(by_set: Mapping[str, SetScore], outside: Sequence[str]) -> dict[str, tuple[float, float]]:
    return set_averages({data: score.errors for data, score in by_set.items()}, outside)


def _left_out(scores: Scores) -> list[str]:
    """Rows that are in no rate, and what is written where nothing is spoken, as Markdown; empty without such rows."""
    by_set: dict[str, dict[str, SetScore]] = {}
    for name, of_model in scores.items():
        for data, score in of_model.items():
            by_set.setdefault(data, {})[name] = score
    texts = left_out_text(by_set), non_speech_text(by_set)
    return [f"```\n{text}\n```" for text in texts if text]


def markdown_table(heading: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """Rows by name (row → column → text) as a Markdown table; a cell that a row lacks is "-"."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[name, *(row.get(column, "-") for column in columns)] for name, row in rows.items()]
    return table([heading, *columns], lines)


def write_report(folder: Path, title: str, sections: Sequence[Section]) -> tuple[Path, Path]:
    """Writes `report.md` and `report.html` beside their pictures; returns the two files."""
    parts = [f"# {title}"]
    for section in sections:
        picture = [] if section.picture is None else [f"![{section.caption}]({section.picture})"]
        parts += [f"## {section.title}", *picture, section.text.strip()]
    page = "\n\n".join(parts) + "\n"
    files = folder / "report.md", folder / "report.html"
    files[0].write_text(page, encoding="utf-8")
    files[1].write_text(html_page(page, folder), encoding="utf-8")
    return files


def html_page(markdown: str, folder: Path) -> str:
    """A Markdown page as HTML with its pictures (PNG or SVG, in `folder`) inside: one file to send to somebody."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    title = next((tokens[index + 1].content for index, token in enumerate(tokens) if token.tag == "h1"), "Report")
    scrolling: list[Token] = []
    for token in tokens:
        for child in token.children or []:
            if child.type == "image":
                child.attrSet("src", _data_uri(folder / str(child.attrGet("src"))))
        # Wide tables scroll by themselves, also by the keyboard, so that a phone need not scroll the page.
        if token.type == "table_open":
            scrolling.append(Token("html_block", "", 0, content='<div class="table" tabindex="0">\n'))
        scrolling.append(token)
        if token.type == "table_close":
            scrolling.append(Token("html_block", "", 0, content="</div>\n"))
    body = parser.renderer.render(scrolling, parser.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _data_uri(file: Path) -> str:
    kind = {".png": "png", ".svg": "svg+xml"}[file.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
