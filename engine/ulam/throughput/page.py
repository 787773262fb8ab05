"""One HTML file that needs no other: headings, paragraphs, tables and pictures, for a telephone and a screen."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; padding: 1rem;
       max-width: 64rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { border-left: .3rem solid #1f77b4; background: #eef4fa; padding: .75rem 1rem; font-weight: 600; }
.scroll { overflow-x: auto; max-width: 100%; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child, .words { text-align: left; }
td.words { white-space: normal; min-width: 14rem; }
tr.best { background: #eef4fa; font-weight: 600; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; max-width: 42rem; height: auto; }
figcaption, footer { color: #57606a; font-size: .85rem; }
pre { font-size: .75rem; line-height: 1.4; }
"""


def page(title: str, sections: Sequence[str], lead: str = "", foot: str = "") -> str:
    """The file: its title, what matters most in a box, and sections of HTML made by the functions below."""
    body = [f"<h1>{escape(title)}</h1>"]
    if lead:
        body.append(f'<p class="verdict">{escape(lead)}</p>')
    body += sections
    if foot:
        body.append(f"<footer>{escape(foot)}</footer>")
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
    )
    return head + "\n".join(body) + "\n</body></html>\n"


def heading(text: str) -> str:
    """A heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], best: str = "", words: int | None = None) -> str:
    """A table that scrolls by itself where it is wider than the screen. best: the first cell of the row to mark.
    words: the column of sentences."""
    aligned = ['<th class="words">' if place == words else "<th>" for place in range(len(head))]
    lines = ["<tr>" + "".join(f"{th}{escape(cell)}</th>" for th, cell in zip(aligned, head, strict=True)) + "</tr>"]
    for row in rows:
        cells = [f"<td{' class=words' if place == words else ''}>{escape(cell)}</td>" for place, cell in enumerate(row)]
        marked = ' class="best"' if best and row[0] == best else ""
        lines.append(f"<tr{marked}>{''.join(cells)}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def listing(text: str) -> str:
    """Text as it is, in a fixed width."""
    return f'<div class="scroll"><pre>{escape(text)}</pre></div>'


def picture(svg: bytes, says: str) -> str:
    """An SVG within the file, with what it shows in words."""
    data = base64.b64encode(svg).decode()
    said = escape(says)
    return f'<figure><img alt="{said}" src="data:image/svg+xml;base64,{data}"><figcaption>{said}</figcaption></figure>'
