"""One page of tables and pictures about a set of models, as Markdown and as an HTML file that holds all of itself.

Knows how a page is put together; what stands in it is measured elsewhere.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}

_STYLE = """
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
class Section:
    """A part of a report.

    Args:
        title (`str`): its heading.
        text (`str`): Markdown: tables, and what there is to say.
        figure (`str`, *optional*): file name of a PNG or SVG beside the report.
        caption (`str`, *optional*): what the figure shows, for those who do not see it too.
    """

    title: str
    text: str
    figure: str | None = None
    caption: str = ""


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown.

    Args:
        title (`str`): of the page.
        sections (`Sequence[Section]`): in order; the figure of a section stands above its text.
    """
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.figure is not None:
            parts.append(f"![{section.caption}]({section.figure})")
        parts.append(section.text.strip())
    return "\n\n".join(parts) + "\n"


def html_page(markdown: str, folder: str | Path) -> str:
    """The same page as HTML, with its pictures inside: one file to send to somebody.

    Args:
        markdown (`str`): from [`markdown_page`].
        folder (`str` or `Path`): where its pictures lie.

    Raises:
        FileNotFoundError: if a picture is missing.
        ValueError: if a picture is neither PNG nor SVG.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    title = next((tokens[place + 1].content for place, token in enumerate(tokens) if token.tag == "h1"), "Report")
    for token in tokens:
        for child in token.children or []:
            if child.type == "image":
                child.attrSet("src", _data_uri(Path(folder, str(child.attrGet("src")))))
    body = parser.renderer.render(_scrolling(tokens), parser.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def write_report(folder: str | Path, title: str, sections: Sequence[Section]) -> tuple[Path, Path]:
    """Writes `report.md` and `report.html` beside their pictures.

    Args:
        folder (`str` or `Path`): holds the pictures.
        title (`str`): of the page.
        sections (`Sequence[Section]`): in order.

    Returns:
        `tuple[Path, Path]`: the two files.
    """
    page = markdown_page(title, sections)
    files = Path(folder, "report.md"), Path(folder, "report.html")
    files[0].write_text(page, encoding="utf-8")
    files[1].write_text(html_page(page, folder), encoding="utf-8")
    return files


def markdown_table(heading: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """Rows by name as a Markdown table; a cell that a row lacks is "-".

    Args:
        heading (`str`): of the first column.
        rows (`Mapping[str, Mapping[str, str]]`): row → column → text.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| " + " | ".join([heading, *columns]) + " |", "|---|" + "---:|" * len(columns)]
    lines += [
        "| " + " | ".join([name, *(row.get(column, "-") for column in columns)]) + " |" for name, row in rows.items()
    ]
    return "\n".join(lines)


def _data_uri(file: Path) -> str:
    if file.suffix not in _TYPES:
        raise ValueError(f"{file}: expected a picture as {' or '.join(_TYPES)}.")
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _scrolling(tokens: Sequence[Token]) -> list[Token]:
    """Wide tables scroll by themselves, also by the keyboard, so that a phone need not scroll the page."""
    found: list[Token] = []
    for token in tokens:
        if token.type == "table_open":
            found.append(Token("html_block", "", 0, content='<div class="table" tabindex="0">\n'))
        found.append(token)
        if token.type == "table_close":
            found.append(Token("html_block", "", 0, content="</div>\n"))
    return found
