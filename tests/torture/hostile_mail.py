"""Hostile messages: what a sender can write to hurt who reads, as files made from a number alone.

A *shape* is one such idea, built to a size. Its *places* are where in a message it can stand. Every file bears two words
nobody else has: `mark` at the very top, which must always be found, and `behind`, which must be found unless the
message is known only in part. Classes are those of the damages other mail programs took.
"""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from random import Random

MIB = 1 << 20
DEFAULT_BYTES = MIB


class Kind(Enum):
    """What a shape builds."""

    FIELDS = "fields"  # lines of a header, each with its end
    BODY = "body"  # what stands behind a header
    WHOLE = "whole"  # a message from its first byte


class Place(Enum):
    """Where a shape stands."""

    TOP = "top"
    PART = "part"
    INNER = "inner"  # a message within the message
    BASE64 = "base64"
    CRLF = "crlf"
    CUT = "cut"  # ends anywhere


_PLACES = {
    Kind.FIELDS: (Place.TOP, Place.PART, Place.INNER),
    Kind.BODY: (Place.TOP, Place.PART, Place.BASE64),
    Kind.WHOLE: (Place.TOP, Place.CRLF, Place.CUT),
}
# Enough for a shape made of one large unit, small enough that most of its idea is still there.
_MIN_BYTES = 2_000


@dataclass(frozen=True)
class Shape:
    """One idea. `number` is its class, `size` how large it is built, `type_field` the Content-Type of a BODY."""

    name: str
    number: int
    kind: Kind
    build: Callable[[int], bytes]
    size: int = DEFAULT_BYTES
    type_field: bytes = b"text/plain"
    places: tuple[Place, ...] = ()

    @property
    def all_places(self) -> tuple[Place, ...]:
        return self.places or _PLACES[self.kind]


@dataclass(frozen=True)
class File:
    """A shape in a place. `mark` and `behind` are words of the text, '' where the shape leaves no room for them."""

    shape: Shape
    place: Place
    number: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.shape.number:02d} {self.shape.name} ({self.place.value})"

    @property
    def has_words(self) -> bool:
        return self.shape.kind is not Kind.WHOLE

    @property
    def mark(self) -> str:
        return f"mark{self.number}q{self.seed}"

    @property
    def behind(self) -> str:
        return f"behind{self.number}q{self.seed}"

    def build(self, scale: float = 1.0) -> bytes:
        """The message; the same for the same number, seed and scale."""
        size = max(int(self.shape.size * scale), _MIN_BYTES)
        material = self.shape.build(size)
        if self.shape.kind is Kind.FIELDS:
            return self._with_fields(material)
        if self.shape.kind is Kind.BODY:
            return self._with_body(material)
        return self._whole(material)

    def _top(self) -> bytes:
        return b"Subject: %s\nX-Number: %d\n" % (self.mark.encode(), self.number)

    def _with_fields(self, fields: bytes) -> bytes:
        behind = self.behind.encode()
        if self.place is Place.TOP:
            return self._top() + fields + b"\n" + behind + b"\n"
        if self.place is Place.INNER:
            fields = b"Content-Type: message/rfc822\n\n" + fields
        return self._mixed(fields + b"\nsome text\n")

    def _with_body(self, body: bytes) -> bytes:
        head = b"Content-Type: %s\n" % self.shape.type_field
        if self.place is Place.TOP:
            return self._top() + head + b"\n" + body
        if self.place is Place.BASE64:
            body = base64.encodebytes(body)
            head += b"Content-Transfer-Encoding: base64\n"
        return self._mixed(head + b"\n" + body)

    def _mixed(self, part: bytes) -> bytes:
        boundary = b"=_%s" % self.mark.encode()
        head = self._top() + b'Content-Type: multipart/mixed; boundary="%s"\n\n' % boundary
        pieces = (part, b"\n" + self.behind.encode())
        return (
            head
            + b"".join(b"--%s\n%s\n" % (boundary, one) for one in pieces)
            + b"--%s--\n" % boundary
        )

    def _whole(self, whole: bytes) -> bytes:
        if self.place is Place.CRLF:
            return whole.replace(b"\n", b"\r\n")
        if self.place is Place.CUT:
            random = Random(f"{self.seed} {self.number}")
            return whole[: random.randrange(len(whole) + 1)]
        return whole

    @property
    def shows_behind(self) -> bool:
        """Whether `behind` is in it at all."""
        return self.has_words and not (self.shape.kind is Kind.BODY and self.place is Place.TOP)


def repeat(unit: bytes, before: bytes = b"", after: bytes = b"\n") -> Callable[[int], bytes]:
    """A builder: `unit` as often as it takes."""
    return lambda size: before + unit * max(1, (size - len(before)) // len(unit)) + after


def numbered(form: bytes, before: bytes = b"", after: bytes = b"\n") -> Callable[[int], bytes]:
    """A builder: `form` with 0, 1, 2 ... in its `%d`, as often as it takes."""

    def build(size: int) -> bytes:
        count = max(1, (size - len(before)) // (len(form) + 3))
        return before + b"".join(form % number for number in range(count)) + after

    return build


def constant(data: bytes) -> Callable[[int], bytes]:
    """A builder that has one size only."""
    return lambda _: data


def all_shapes() -> list[Shape]:
    """Every shape, by class. Each has a name of its own."""
    from tests.torture import hostile_bodies, hostile_fields, hostile_wholes

    found = [*hostile_fields.SHAPES, *hostile_bodies.SHAPES, *hostile_wholes.SHAPES]
    assert len({shape.name for shape in found}) == len(found)
    return sorted(found, key=lambda shape: shape.number)


def all_files(seed: int) -> list[File]:
    """Every shape in every place, in an order in which the first few are of many classes."""
    shapes = all_shapes()
    files = [
        File(shape, place, number, seed)
        for number, (shape, place) in enumerate(_pairs(shapes), start=1)
    ]
    Random(seed).shuffle(files)
    return files


def _pairs(shapes: list[Shape]) -> Iterator[tuple[Shape, Place]]:
    for shape in shapes:
        for place in shape.all_places:
            yield shape, place
