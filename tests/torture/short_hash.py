"""The command `mailfs` in a world where a hash has 8 bits: any two messages in 256 have the same.

    python -m tests.torture.short_hash --store DIR import ...

Processes it forks, workers and daemons, are in the same world.
"""

import sys

import xxhash

_whole_digest = xxhash.xxh3_128_digest
_Whole = xxhash.xxh3_128


def _cut(digest: bytes) -> bytes:
    return digest[:1].ljust(len(digest), b"\x01")


def _short_digest(data: bytes) -> bytes:
    return _cut(_whole_digest(data))


class _ShortHasher:
    """What mailfs uses of xxhash's object."""

    def __init__(self, data: bytes = b"") -> None:
        self._whole = _Whole(data)

    def update(self, data: bytes) -> None:
        self._whole.update(data)

    def digest(self) -> bytes:
        return _cut(self._whole.digest())


def shorten() -> None:
    """From now on, in this process and those it forks."""
    # Not what the module has, but all that is used of it.
    setattr(xxhash, "xxh3_128_digest", _short_digest)  # noqa: B010
    setattr(xxhash, "xxh3_128", _ShortHasher)  # noqa: B010


if __name__ == "__main__":
    shorten()
    from mailfs.cli.main import main

    sys.exit(main(sys.argv[1:]))
