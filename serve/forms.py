"""Multipart forms: their parts by the name of their field."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from orchestrator.errors import listing

from .limits import Limits
from .options import check_count
from .problems import Refusal, brief

_FIELDS = ("input", "top", "label", "labels", "templates")
_OPTIONS_PER_FORM = 8  # `top`, `label`, and what a browser may add


@dataclass
class _Form:
    """A form as its parts arrive; values by the name of their field."""

    limits: Limits
    values: dict[str, list[bytes]] = field(default_factory=lambda: {name: [] for name in _FIELDS})
    ended: bool = False
    _parts: int = 0
    _header: list[bytes] = field(default_factory=lambda: [b"", b""])
    _name: str | None = None
    _data: bytearray = field(default_factory=bytearray)

    def begin(self) -> None:
        """A part begins."""
        self._parts += 1
        limits = self.limits
        if self._parts > limits.items + limits.labels + limits.templates + _OPTIONS_PER_FORM:
            raise Refusal("too-many", f"The form has more than {self._parts - 1:,} parts")
        self._name, self._data = None, bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        """Some of the name of a part's header."""
        self._header[0] += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """Some of its value."""
        self._header[1] += data[start:end]

    def header_end(self) -> None:
        """A header is complete."""
        name, value = self._header
        self._header = [b"", b""]
        match name.lower():
            case b"content-disposition":
                self._name = parse_options_header(value)[1].get(b"name", b"").decode("latin-1")
            case b"content-transfer-encoding" if value.lower() not in (b"binary", b"8bit", b"7bit"):
                raise Refusal("malformed", "Content-Transfer-Encoding is not taken. Send bytes")

    def headers_end(self) -> None:
        """All headers of a part are there."""
        if self._name not in self.values:
            raise Refusal(
                "malformed",
                f"The form has a part {brief(self._name)}. Allowed: {listing(_FIELDS)}",
            )
        if self._name == "input":
            check_count(len(self.values["input"]) + 1, self.limits)

    def part_data(self, data: bytes, start: int, end: int) -> None:
        """Some of a part's value."""
        self._data += data[start:end]

    def part_end(self) -> None:
        """A part is complete."""
        assert self._name is not None
        self.values[self._name].append(bytes(self._data))

    def end(self) -> None:
        """The form is complete."""
        self.ended = True


def read_form(data: bytes, boundary: str, limits: Limits) -> dict[str, list[bytes]]:
    """The values of each field, those that are not there with none.

    Raises:
        Refusal: It is no form, has parts that are not ours, or too many.
    """
    if not re.fullmatch(r"[ -~]{1,70}", boundary):
        raise Refusal("malformed", f"boundary: {brief(boundary)} is none of a form")
    form = _Form(limits)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_end,
                "on_part_data": form.part_data,
                "on_part_end": form.part_end,
                "on_end": form.end,
            },
        )
        parser.write(data)
    except FormParserError as err:
        raise Refusal("malformed", f"The body is no multipart form: {str(err)[:200]}") from err
    if not form.ended:
        raise Refusal("malformed", "The form is cut short: its last boundary is missing")
    return form.values


def field_texts(values: list[bytes]) -> list[str] | None:
    """The values of a field that is repeated; None where it is not there."""
    return [field_text(value) for value in values] or None


def field_text(value: bytes) -> str:
    """The value of a field that is a text."""
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        raise Refusal("malformed", f"A field of the form is not UTF-8: {value[:20]!r}…") from err
