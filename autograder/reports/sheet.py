"""CSV sheets of grades, as Canvas, Moodle and spreadsheet programs read and write them: read, compare, fill in, write.

A sheet that exists keeps its columns, its rows and their order, its delimiter (, ; or tab), its line ends and its byte order
mark; only cells of the grade column are written. If nothing differs its bytes come back as they were.

Text that a spreadsheet program could take for a formula gets an apostrophe in front, and every cell stands in quotes (OWASP,
"CSV injection"), also behind a character that some program takes for the end of a cell. Numbers and a lone "-" stay.

Not covered: workbooks (.xlsx), encodings other than UTF-8, grades written with a decimal comma in sheets separated by commas.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autograder.errors import AutograderError

__all__ = ["Sheet", "SheetError", "empty", "harmless", "number_text", "same"]

BOM = b"\xef\xbb\xbf"
DELIMITERS = (",", ";", "\t")
FORMULA = r"=+\-@\uff1d\uff0b\uff0d\uff20"
"""What begins a formula in some spreadsheet program, the full-width forms among it."""
BEGINS = re.compile(rf"^(?=\s*[{FORMULA}]|[\t\r\n])|(?<=[,;|\t\r\n])(?=\s*[{FORMULA}])")
NUMBER = re.compile(r"\s*[+-]?\d+(?:[.,]\d+)?\s*", re.ASCII)
EMPTY = re.compile(r"\s*-?\s*")
"""A cell without a grade; Canvas and Moodle write a hyphen too."""
SAME = 0.005 + 1e-9
"""Points up to which two grades are the same: Canvas and Moodle show and export two decimals, and halves round either way."""


class SheetError(AutograderError):
    """A sheet cannot be used. The text says which line or column, why, and what next; no file was changed."""


@dataclass
class Sheet:
    """The cells of a file. `lines` are the numbers of the lines on which rows end, for messages."""

    file: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    delimiter: str = ","
    end: str = "\r\n"
    bom: bool = False
    content: bytes | None = None
    """The file as it was read; `None` for a new sheet."""
    changed: bool = False

    @classmethod
    def new(cls, header: Sequence[str]) -> Sheet:
        """A sheet without rows."""
        return cls("the new sheet", list(header), [], [])

    @classmethod
    def read(cls, file: Path, wanted: Sequence[str]) -> Sheet:
        """The sheet in `file`; the delimiter is the one that gives most of the columns `wanted`. Raises `SheetError`."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SheetError(f"The sheet {file} cannot be read: {error.strerror}. Give a CSV file.") from error
        if content[:2] in (b"PK", b"\xd0\xcf"):
            raise SheetError(f"{file} is a workbook. Save it as CSV (UTF-8), then give that file.")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SheetError(
                f"{file} is not in UTF-8 (byte {error.start}). Save it as CSV (UTF-8), or export it again."
            ) from None
        if "\0" in text:
            raise SheetError(f"{file} holds a zero byte, so it is no CSV file. Export it again.")
        tried = [_Parsed.of(text, delimiter) for delimiter in DELIMITERS]
        best = max(tried, key=lambda parsed: parsed.known(wanted))  # the first of equals
        if best.error:
            raise SheetError(f"{file}, {best.error}. Mend the line, or export the sheet again.")
        if not best.rows:
            raise SheetError(f"{file} is empty. Export the sheet again.")
        (_, header), *rows = best.rows
        sheet = cls(
            str(file), header, [cells for _, cells in rows], [line for line, _ in rows], best.delimiter,
            "\r\n" if "\r\n" in text else "\n", content.startswith(BOM), content,
        )  # fmt: skip
        for line, cells in rows:
            if cells and len(cells) != len(header):
                raise SheetError(
                    f"{file}, line {line}: {len(cells)} cells under {len(header)} columns. Mend the line, or export the sheet "
                    "again."
                )
        return sheet

    def column(self, name: str) -> int | None:
        """Where the column `name` is; `None` if there is none. Raises `SheetError` if there are two."""
        found = [number for number, title in enumerate(self.header) if title.strip() == name]
        if len(found) > 1:
            raise SheetError(
                f"{self.file} has {len(found)} columns {name!r}. Rename or remove one, then run this again."
            )
        return found[0] if found else None

    def add(self, cells: Sequence[str]) -> None:
        """Append a row."""
        self.rows.append(list(cells))
        self.lines.append(len(self.rows) + 1)
        self.changed = True

    def defuse(self) -> list[str]:
        """Make all cells but the titles harmless; gives those that were not."""
        found = []
        for cells in self.rows:
            for column, text in enumerate(cells):
                if (safe := harmless(text)) != text:
                    found.append(text)
                    cells[column] = safe
                    self.changed = True
        return found

    def bytes(self) -> bytes:
        """The file's content, to be written."""
        if self.content is not None and not self.changed:
            return self.content
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self.delimiter, lineterminator=self.end, quoting=csv.QUOTE_ALL)
        writer.writerows([self.header, *self.rows])
        return (BOM if self.bom else b"") + text.getvalue().encode(errors="replace")


@dataclass
class _Parsed:
    """A text as rows, each with the number of its line, as far as it could be read with one delimiter."""

    delimiter: str
    rows: list[tuple[int, list[str]]]
    error: str = ""

    @classmethod
    def of(cls, text: str, delimiter: str) -> _Parsed:
        """Read `text`."""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        parsed = cls(delimiter, [])
        try:
            for cells in reader:
                parsed.rows.append((reader.line_num, cells))
        except csv.Error as error:
            parsed.error = f"line {reader.line_num}: {error}"
        return parsed

    def known(self, wanted: Sequence[str]) -> tuple[int, int]:
        """How many of the columns `wanted` there are, and of columns at all."""
        header = [title.strip() for title in self.rows[0][1]] if self.rows else []
        return sum(title in wanted for title in header), len(header)


def harmless(text: str) -> str:
    """`text` as no spreadsheet program takes it for a formula, whatever it takes for the end of a cell. Idempotent."""
    return text if NUMBER.fullmatch(text) or EMPTY.fullmatch(text) else BEGINS.sub("'", text)


def number(text: str) -> float | None:
    """The points in a cell; `None` if there are none."""
    return float(text.strip().replace(",", ".")) if NUMBER.fullmatch(text) else None


def number_text(points: float) -> str:
    """Points for a cell: at most two decimals, as Canvas and Moodle keep them."""
    return f"{points:.2f}".rstrip("0").rstrip(".") or "0"


def empty(text: str) -> bool:
    """Whether a cell has no grade."""
    return bool(EMPTY.fullmatch(text))


def same(text: str, points: float) -> bool:
    """Whether a cell has these points already."""
    there = number(text)
    return there is not None and abs(there - points) <= SAME
