"""Boxes, arrows and words as SVG, as plain as the figures of this documentation need them."""

from html import escape

INK, PALE, PAPER = "#1f2933", "#52606d", "#ffffff"
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Canvas:
    """A picture that grows as things are drawn onto it; coordinates are pixels from the upper left corner.

    Args:
        width: of the picture.
        height: of the picture.
        title: what it shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, fill: str, edge: str = INK, dashed: bool = False) -> None:
        """Draw a box with round corners."""
        dash = " stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='6' fill='{fill}' stroke='{edge}'{dash}/>"
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 13,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        """Write words, line by line; ``y`` is the middle of the first line."""
        weight = " font-weight='bold'" if bold else ""
        for number, line in enumerate(words.split("\n")):
            self.parts.append(
                f"<text x='{x:g}' y='{y + number * size * 1.3 + size * 0.35:g}' {FONT} font-size='{size:g}' "
                f"fill='{colour}' text-anchor='{anchor}'{weight}>{escape(line)}</text>"
            )

    def box(
        self, x: float, y: float, w: float, h: float, words: str, fill: str, size: float = 13, **looks: bool
    ) -> None:
        """Draw a box with words in its middle, the first line bold."""
        self.rect(x, y, w, h, fill, **looks)
        lines = words.split("\n")
        top = y + h / 2 - (len(lines) - 1) * size * 0.65
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + number * size * 1.3, line, size, bold=number == 0)

    def arrow(self, *points: tuple[float, float], colour: str = INK, dashed: bool = False) -> None:
        """Draw a line through the points with a head at its end."""
        dash = " stroke-dasharray='5 4'" if dashed else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'{dash} "
            "marker-end='url(#head)'/>"
        )

    def __str__(self) -> str:
        head = (
            "<marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
            f"orient='auto-start-reverse'><path d='M0,0 L10,5 L0,10 z' fill='{INK}'/></marker>"
        )
        return "\n".join(
            [
                f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
                f"width='{self.width}' height='{self.height}' role='img'>",
                f"<title>{escape(self.title)}</title><defs>{head}</defs>",
                f"<rect width='{self.width}' height='{self.height}' rx='10' fill='{PAPER}'/>",
                *self.parts,
                "</svg>\n",
            ]
        )
