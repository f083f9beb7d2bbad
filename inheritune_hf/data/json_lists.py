"""The items of one long JSON list, without holding the list."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from .rows import Damage, Layout, checked_row, not_json, not_utf8, too_long

_BYTES_AT_ONCE = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
# An item that goes on in bytes that were not read yet is a mistake to the decoder, in the last letters that it has.
_LAST_LETTERS = 16


def list_items(file: BinaryIO, name: str, most: int, layout: Layout) -> Iterator[dict[str, Any] | Damage]:
    """
    Read the items of a JSON list, in order, holding no more than one of them; after damage nothing can be read.

    Args:
        file (`BinaryIO`): The file, at its beginning.
        name (`str`): How it is called in messages.
        most (`int`): Letters of the longest item.
        layout (`Layout`): How rows are read.
    """
    number, place = 0, name
    try:
        text = _Text(file, name)
        text.expect("[")
        while text.next() != "]":
            if number:
                text.expect(",")
            number += 1
            place = f"{name}, item {number}"
            yield checked_row(text.value(place, most, layout), place, layout)
        text.expect("]")
        if text.next():
            raise ValueError("Something follows the list")
    except Damage as damage:
        yield damage
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        yield not_json(place, f"{reason}; what follows is lost")


class _Text:
    """The part of a file that is looked at."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at, self.ended = "", 0, False
        self.bytes = 0
        self.decode = codecs.getincrementaldecoder("utf-8")()
        self.scan = json.JSONDecoder().raw_decode
        self.more(max(_BYTES_AT_ONCE, 3))
        self.text = self.text.removeprefix("\ufeff")

    def more(self, count: int) -> None:
        """Read on, and forget what was passed."""
        data = self.file.read(count)
        held = len(self.decode.getstate()[0])
        try:
            found = self.decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise not_utf8(self.name, error, self.bytes - held) from None
        self.bytes += len(data)
        self.text, self.at, self.ended = self.text[self.at :] + found, 0, not data

    def next(self) -> str:
        """Return the next letter that is no space, without passing it; an empty string at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # an empty match is one
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more(_BYTES_AT_ONCE)

    def expect(self, letter: str) -> None:
        """Pass one letter, or raise a `ValueError` if another comes."""
        if self.next() != letter:
            raise ValueError(f"Expecting {letter!r}" + (f", got {self.next()!r}" if self.next() else ""))
        self.at += 1

    def value(self, place: str, most: int, layout: Layout) -> Any:
        """Pass and return one value."""
        self.next()
        wanted = _BYTES_AT_ONCE
        while True:
            try:
                value, end = self.scan(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - _LAST_LETTERS
                if self.ended or not incomplete:
                    raise
            if len(self.text) - self.at > most:
                raise too_long(place, layout)
            self.more(wanted)
            wanted *= 2
