"""Recipients from a CSV file: one at a time, each with its line, bad ones told apart from good ones."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

EMAIL_COLUMNS = ("email", "e-mail", "recipient", "to", "address")
NAME_COLUMNS = ("name", "full_name")


class BadFile(Exception):
    """The file as a whole is unusable."""


class Row(NamedTuple):
    """A usable row: where it stands, its address, all its columns."""

    line: int
    email: str
    name: str | None
    variables: dict[str, str]


class BadRow(NamedTuple):
    """A row that cannot be used, and why."""

    line: int
    why: str


class CsvRows:
    """Iterates over a CSV file with a header row. ``position`` is the bytes read so far."""

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0
        self._file = file

    def __iter__(self) -> Iterator[Row | BadRow]:
        reader = csv.reader(self._lines(), strict=True)
        header = self._header(reader)
        known = [cell.lower() for cell in header]
        email = next((known.index(n) for n in EMAIL_COLUMNS if n in known), None)
        if email is None:
            raise BadFile(
                f"no column named {', '.join(EMAIL_COLUMNS[:-1])} or address in the first row"
            )
        name = next((known.index(n) for n in NAME_COLUMNS if n in known), None)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(line, str(error))
                continue
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            if len(cells) != len(header):
                yield BadRow(line, f"{len(cells)} columns, the first row has {len(header)}")
            elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                yield BadRow(line, "not valid UTF-8")
            elif not cells[email].strip():
                yield BadRow(line, "no address")
            else:
                shown = cells[name].strip() or None if name is not None else None
                yield Row(line, cells[email].strip(), shown, dict(zip(header, cells, strict=True)))

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            header = [cell.strip() for cell in next(reader)]
        except StopIteration:
            raise BadFile("the file is empty") from None
        except csv.Error as error:
            raise BadFile(f"line 1: {error}") from None
        if len(set(header)) != len(header):
            raise BadFile("two columns have the same name")
        return header

    def _lines(self) -> Iterator[str]:
        first = True
        for raw in self._file:
            self.position += len(raw)
            if first:
                raw, first = raw.removeprefix(b"\xef\xbb\xbf"), False
            yield raw.decode("utf-8", "surrogateescape")
