"""One HTML page that needs nothing else: sections of text, numbers, tables and pictures, which stand inside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Gallery", "Part", "Picture", "Section", "Table", "Text", "Tiles", "render_page"]

_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}

# Charts are drawn dark on white; where dark is preferred they are turned over, hues kept. Photographs never are.
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f8fa; --ink: #1f2328; --quiet: #59636e;
  --line: #d1d9e0; --accent: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --card: #151b23; --ink: #e6edf3; --quiet: #9198a1; --line: #3d444d; --accent: #4493f8; }
  img.chart { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 48px 0 12px; padding-top: 16px; border-top: 1px solid var(--line); }
p { margin: 0 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 16px 0 0; }
a { color: var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(152px, 1fr)); gap: 12px; margin: 16px 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.tiles dt { color: var(--quiet); font-size: 14px; }
.tiles dd { margin: 0; font-size: 26px; font-weight: 600; line-height: 1.3; }
.tiles dd.note { color: var(--quiet); font-size: 13px; font-weight: 400; }
figure { margin: 16px 0; overflow-x: auto; }
figure img.chart { display: block; max-width: max(100%, 600px); height: auto; margin: 0 auto; border-radius: 8px; }
figcaption, caption { color: var(--quiet); font-size: 14px; text-align: left; }
figcaption { max-width: 75ch; margin-top: 8px; }
caption { padding-bottom: 8px; }
.scroll { overflow-x: auto; margin: 16px 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: break-word; }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
th.number, td.number { text-align: right; padding: 5px 14px; white-space: nowrap; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(164px, 1fr)); gap: 20px 16px; }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); }
.gallery figure { margin: 0; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
.gallery.wide img { aspect-ratio: auto; }
.gallery figcaption { margin-top: 6px; font-size: 13px; line-height: 1.4; overflow-wrap: anywhere; }
.gallery figcaption span { display: block; }
.gallery figcaption span:first-child { color: var(--ink); font-weight: 600; }
"""


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    paragraphs: Sequence[str]

    def html(self) -> str:
        """Render."""
        return "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in self.paragraphs)


@dataclass(frozen=True)
class Tiles:
    """Numbers to see first: the name, value and note of each."""

    tiles: Sequence[tuple[str, str, str]]

    def html(self) -> str:
        """Render."""
        rows = [
            f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="note">{escape(note)}</dd></div>'
            for name, value, note in self.tiles
        ]
        return f'<dl class="tiles">\n{"".join(rows)}\n</dl>'


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are to be read; the first column names the row.

    Args:
        head: names of the columns.
        rows: as many cells each.
        caption: what it shows.
        words: columns of words, at the left; those after them are numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1

    def html(self) -> str:
        """Render."""
        kinds = ["" if i < self.words else ' class="number"' for i in range(len(self.head))]
        head = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for k, name in zip(kinds, self.head, strict=True))
        rows = []
        for first, *others in self.rows:
            cells = "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds[1:], others, strict=True))
            rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        body = "\n".join(rows)
        return (
            f'<div class="scroll"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        )


@dataclass(frozen=True)
class Picture:
    """A chart, dark on white, or a photograph.

    Args:
        data: a PNG file, or for a photograph JPEG too.
        alt: what it shows, for those who do not see it.
        caption: lines below it.
        chart: may be turned over where dark is preferred, and has 144 pixels to an inch of 96 on the page.
        file: name, without its ending, of the PNG file that a report writes of it; none for "".
    """

    data: bytes
    alt: str
    caption: Sequence[str] = ()
    chart: bool = True
    file: str = ""

    def html(self) -> str:
        """Render.

        Raises:
            ValueError: if the data are neither.
        """
        kind = next((kind for start, kind in _TYPES.items() if self.data.startswith(start)), None)
        if kind is None or (self.chart and kind != "image/png"):
            raise ValueError(f"a chart is a PNG file, a photograph PNG or JPEG; this begins with {self.data[:4]!r}")
        source = f"data:{kind};base64,{base64.b64encode(self.data).decode()}"
        style = f' class="chart" width="{_width(self.data)}"' if self.chart else ""
        lines = "".join(f"<span>{escape(line)}</span>" for line in self.caption)
        below = f"<figcaption>{lines}</figcaption>" if lines else ""
        return f'<figure><img{style} src="{source}" alt="{escape(self.alt)}">{below}</figure>'


def _width(png: bytes) -> int:
    return round(int.from_bytes(png[16:20]) * 96 / 144)


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side; the first line of a caption stands out.

    Args:
        pictures: square ones, or of any shape where there is room.
        wide: give them room.
    """

    pictures: Sequence[Picture]
    wide: bool = False

    def html(self) -> str:
        """Render."""
        kind = "gallery wide" if self.wide else "gallery"
        return f'<div class="{kind}">\n{"".join(picture.html() for picture in self.pictures)}\n</div>'


Part = Text | Tiles | Table | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: Sequence[Part]


def render_page(title: str, lead: Sequence[Part], sections: Sequence[Section]) -> str:
    """Write a page.

    Everything stands in the one file, and the page forbids the browser to fetch anything.

    Args:
        title: of the page.
        lead: what comes first, under no heading of its own.
        sections: the rest, with a list of links to them at the top.

    Returns:
        HTML, to be written as UTF-8.

    Example:
        >>> page = render_page('Cats & dogs', [Text(['Two classes.'])], [Section('Table', [Table(['a'], [['1']])])])
        >>> '<h1>Cats &amp; dogs</h1>' in page
        True
    """
    links = "".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    body = [f"<h1>{escape(title)}</h1>", *(part.html() for part in lead)]
    body.append(f'<nav aria-label="Sections">{links}</nav>')
    for i, section in enumerate(sections):
        parts = "\n".join(part.html() for part in section.parts)
        body.append(f'<section aria-labelledby="s{i}"><h2 id="s{i}">{escape(section.title)}</h2>\n{parts}\n</section>')
    inside = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{inside}
</main>
</body>
</html>
"""
