"""A figure that is laid out in inches from its upper left corner, and measures its texts."""

from __future__ import annotations

from typing import Any

Style = dict[str, Any]


class Sheet:
    """A matplotlib figure. Texts are measured first; nothing may be placed before `resize`."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(dpi=150, facecolor="white")
        self._renderer = FigureCanvasAgg(self.figure).get_renderer()

    def width_of(self, text: str, style: Style) -> float:
        """The width of a line of text in inches."""
        artist = self.figure.text(0, 0, text, **style)
        extent = artist.get_window_extent(self._renderer)
        artist.remove()
        return float(extent.width / self.figure.dpi)

    def wrapped(self, text: str, style: Style, room: float) -> list[str]:
        """Break a text at its spaces into lines of at most `room` inches."""
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.width_of(longer, style) <= room:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def resize(self, width: float, height: float) -> None:
        """Set the size of the picture in inches."""
        self._width, self._height = width, height
        self.figure.set_size_inches(width, height)

    def write(self, left: float, top: float, text: str, style: Style) -> None:
        """Place a line of text."""
        self.figure.text(left / self._width, 1 - top / self._height, text, **style)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Return new axes of this place and size."""
        bottom = 1 - (top + height) / self._height
        place = left / self._width, bottom, width / self._width, height / self._height
        return self.figure.add_axes(place)
