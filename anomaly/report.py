"""A report as tables, notes and figures: on the terminal, or as one HTML file."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from anomaly.files import write_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #8884; text-align: right; }
th:first-child { text-align: left; }
img { max-width: 100%; background: white; }
p.note { border-left: 4px solid #E69F00; padding-left: 0.8rem; }
"""


@dataclass(frozen=True)
class Report:
    """What was measured, ready to be read.

    Attributes
    ----------
    title : str
    tables : dict of str to DataFrame
        By heading.
    notes : list of str
        What a reader must know to read the numbers rightly.
    figures : dict of str to callable
        By heading; each draws on the empty figure that it is given.
    captions : dict of str to str
        By heading of a table: how to read it.

    Examples
    --------
    >>> import pandas as pd
    >>> from anomaly.report import Report
    >>> report = Report("Day 1", {"Counts": pd.DataFrame({"rows": [3]}, index=["normal"])})
    >>> print(report)
    Day 1
    <BLANKLINE>
    Counts
           rows
    normal    3
    """

    title: str
    tables: Mapping[str, pd.DataFrame]
    notes: list[str] = field(default_factory=list)
    figures: Mapping[str, Callable[[Figure], None]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [
            "\n".join([name, _rounded(table).to_string(), *self._caption(name)])
            for name, table in self.tables.items()
        ]
        return "\n\n".join([self.title, *shown, *self.notes])

    def _caption(self, name: str) -> list[str]:
        return [self.captions[name]] if name in self.captions else []

    def figure(self, name: str) -> Figure:
        """Draw one of the figures.

        Parameters
        ----------
        name : str
            A key of ``figures``.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(10, 4.5), layout="constrained")
        self.figures[name](drawn)
        return drawn

    def html(self) -> str:
        """The whole report as one page that refers to nothing outside itself."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in self.notes]
        for name, table in self.tables.items():
            shown = _rounded(table).rename_axis(None).to_html(border=0)
            parts.append(f"<h2>{html.escape(name)}</h2>\n{shown}")
            parts += [f"<p>{html.escape(caption)}</p>" for caption in self._caption(name)]
        for name in self.figures:
            image = io.BytesIO()
            self.figure(name).savefig(image, format="png", dpi=120)
            data = base64.b64encode(image.getvalue()).decode("ascii")
            shown = html.escape(name)
            parts.append(
                f'<h2>{shown}</h2>\n<img alt="{shown}" src="data:image/png;base64,{data}">'
            )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self.title)}</title>\n<style>\n{_STYLE}</style></head>\n"
            "<body>\n" + "\n".join(parts) + "\n</body></html>\n"
        )

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as one HTML file.

        Parameters
        ----------
        path : str or PathLike

        Returns
        -------
        Path
            The file written.
        """
        with write_aside(path) as file:
            file.write(self.html())
        return Path(path)


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Three digits, as strings, so that every table reads alike."""

    def shown(value: object) -> str:
        if isinstance(value, float):
            return "" if value != value else f"{value:.3f}"
        return str(value)

    return table.map(shown)
