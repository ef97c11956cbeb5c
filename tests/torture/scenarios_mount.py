"""What clients of a mount do while its daemon is harmed. Steps look first what they have done already, as a person would."""

import errno
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mailfs.store.layout import HALF
from tests.mount.waiting import pause
from tests.torture.oracle import digest_of
from tests.torture.scenarios import COMING, FIRST, LARGE, Place, Scenario, Step, store_with_mail

# The daemon's timer looks each second.
_SETTLED_S = 2.5


def client(what: str, work: Callable[[Place], None], *, is_durable: bool = False) -> Step:
    """A step whose exit code is the errno it fails with."""

    def numbered(place: Place) -> int:
        try:
            work(place)
        except OSError as error:
            sys.stderr.write(f"{what}: {error}\n")
            return error.errno or 255
        return 0

    return Step(what, numbered, is_durable=is_durable)


def write(number: int, path: str) -> Step:
    """A letter into a file; fsync before close, as delivery agents do."""

    def work(place: Place) -> None:
        fd = os.open(place.mount / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with place.letter(number).open("rb") as letter:
                while chunk := letter.read(1 << 16):
                    os.write(fd, chunk)
            os.fsync(fd)
        finally:
            os.close(fd)

    return client(f"write {path}", work)


def deliver(number: int, source: str, target: str, *, by_link: bool) -> Step:
    """link(2) or rename(2) of a letter out of tmp/, by a program that does not deliver what it could not write."""

    def work(place: Place) -> None:
        path, new_path = place.mount / source, place.mount / target
        if not path.exists() and new_path.exists():
            return
        if path.stat().st_size != place.letter(number).stat().st_size:
            raise FileNotFoundError(errno.ENOENT, "nothing whole to be delivered", source)
        if not by_link:
            os.rename(path, new_path)
        elif not new_path.exists():
            os.link(path, new_path)

    what = "link" if by_link else "rename"
    return client(f"{what} {source} {target}", work, is_durable=True)


def rename(source: str, target: str) -> Step:
    """rename(2) between paths."""

    def work(place: Place) -> None:
        if (place.mount / source).exists() or not (place.mount / target).exists():
            os.rename(place.mount / source, place.mount / target)

    return client(f"rename {source} {target}", work)


def remove(path: str) -> Step:
    def work(place: Place) -> None:
        if (place.mount / path).exists():
            os.unlink(place.mount / path)

    return client(f"unlink {path}", work)


def _find_or_none(place: Place, folder: str, number: int) -> Path | None:
    """The entry of a letter in a folder, by its bytes."""
    wanted = digest_of(place.letter(number).read_bytes())
    for path in sorted((place.mount / folder).iterdir()):
        if digest_of(path.read_bytes()) == wanted:
            return path
    return None


def set_letters(number: int, folder: str, letters: str) -> Step:
    """A rename in cur/ that says what the letters are."""

    def work(place: Place) -> None:
        path = _find_or_none(place, folder, number)
        assert path is not None
        new = path.with_name(path.name.partition(":2,")[0] + f":2,{letters}")
        if new != path:
            os.rename(path, new)

    return client(f"letters of {number} in {folder}: {letters}", work)


def move(number: int, source: str, target: str, later: str = "") -> Step:
    """mv of a letter between folders, under its name; to `later` where the target has been renamed to that already."""

    def work(place: Place) -> None:
        path = _find_or_none(place, source, number)
        if path is not None:
            name = path.name if ":2," in path.name else f"{path.name}:2,"
            is_renamed = later and (place.mount / later).exists()
            os.rename(path, place.mount / (later if is_renamed else target) / name)

    return client(f"mv {number} {source} {target}", work)


def link_message(number: int, source: str, target: str) -> Step:
    """ln of a letter into another view."""

    def work(place: Place) -> None:
        path = _find_or_none(place, source, number)
        assert path is not None
        if _find_or_none(place, target, number) is None:
            os.link(path, place.mount / target / path.name)

    return client(f"ln {number} {source} {target}", work)


def remove_message(number: int, folder: str) -> Step:
    def work(place: Place) -> None:
        path = _find_or_none(place, folder, number)
        if path is not None:
            os.unlink(path)

    return client(f"rm {number} in {folder}", work)


def sync(folder: str) -> Step:
    def work(place: Place) -> None:
        fd = os.open(place.mount / folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    return client(f"fsync {folder}", work, is_durable=True)


def copy(number: int, path: str) -> Step:
    """cp into a folder of messages; what a killed mount has put aside is removed first."""

    def work(place: Place) -> None:
        aside = place.mount / Path(path).parents[1] / "tmp" / f"{Path(path).name}{HALF}"
        aside.unlink(missing_ok=True)
        if _find_or_none(place, str(Path(path).parent), number) is None:
            with open(place.mount / path, "wb") as file:
                file.write(place.letter(number).read_bytes())

    return replace(client(f"cp {number} {path}", work), is_deferred=True)


def wait_for_message(number: int, folder: str) -> Step:
    """What was copied into a folder of messages has become one: nothing of it is in the spool."""

    def work(place: Place) -> None:
        give_up = time.monotonic() + _SETTLED_S
        spool = place.store / "spool"
        while _find_or_none(place, folder, number) is None or any(
            path.is_file() for path in spool.rglob("*")
        ):
            if time.monotonic() >= give_up:
                raise OSError(errno.EAGAIN, "a file is not taken in")
            pause(0.01)

    return client("wait", work, is_durable=True)


def make_view(name: str, unless: str = "") -> Step:
    """mkdir, unless a later step has renamed it already."""

    def work(place: Place) -> None:
        if not (place.mount / name).exists() and not (unless and (place.mount / unless).exists()):
            os.mkdir(place.mount / name)

    return client(f"mkdir {name}", work)


def remove_view(name: str) -> Step:
    def work(place: Place) -> None:
        if (place.mount / name).exists():
            os.rmdir(place.mount / name)

    return client(f"rmdir {name}", work)


def write_text(path: str, text: str) -> Step:
    """A whole file in one write(2)."""

    def work(place: Place) -> None:
        fd = os.open(place.mount / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    return client(f"write {path}", work)


def _mounted(name: str, *steps: Step) -> Scenario:
    return Scenario(name, steps, store_with_mail, is_mounted=True)


MOUNTED = (
    _mounted(
        "mount: deliver by link",
        write(COMING[0], "inbox/tmp/1.a"),
        deliver(COMING[0], "inbox/tmp/1.a", "inbox/new/1.a", by_link=True),
        remove("inbox/tmp/1.a"),
    ),
    _mounted(
        "mount: deliver by rename",
        write(COMING[1], "work/tmp/2.b"),
        deliver(COMING[1], "work/tmp/2.b", "work/cur/2.b:2,FS", by_link=False),
    ),
    _mounted(
        "mount: deliver a large message",
        write(LARGE, "work/tmp/3.c"),
        deliver(LARGE, "work/tmp/3.c", "work/new/3.c", by_link=False),
    ),
    _mounted(
        "mount: copy", copy(COMING[2], "todo/cur/4.d:2,S"), wait_for_message(COMING[2], "todo/cur")
    ),
    _mounted(
        "mount: flags",
        set_letters(0, "inbox/cur", "S"),
        set_letters(0, "inbox/cur", "FRS"),
        sync("inbox/cur"),
        set_letters(6, "all/cur", "T"),
    ),
    _mounted(
        "mount: move and link",
        move(0, "inbox/cur", "work/cur"),
        link_message(1, "work/cur", "todo/cur"),
        move(3, "inbox/new", "inbox/cur"),
        sync("work/cur"),
    ),
    _mounted(
        "mount: unlink",
        link_message(1, "work/cur", "todo/cur"),
        remove_message(2, "todo/cur"),
        remove_message(4, "all/cur"),
        sync("all/cur"),
    ),
    _mounted(
        "mount: views",
        make_view("later", unless="soon"),
        move(0, "inbox/cur", "later/cur", later="soon/cur"),
        rename("later", "soon"),
        make_view("from:ann1"),
        remove_view("from:ann1"),
        write_text(".mailfs/views/todo/query", "tag:todo or tag:soon"),
    ),
    _mounted(
        "mount: side-cars",
        write_text("inbox/dovecot-uidlist.lock", "3 V1 N2\n"),
        rename("inbox/dovecot-uidlist.lock", "inbox/dovecot-uidlist"),
        write_text("inbox/.uidvalidity", "1\n2\n"),
        remove("inbox/.uidvalidity"),
    ),
    _mounted(
        "mount: bring back",
        move(FIRST[-1], ".expunged/cur", "inbox/cur"),
        remove_message(4, "all/cur"),
        move(4, ".expunged/cur", "work/cur"),
    ),
    replace(
        _mounted(
            "mount: from begin to end",
            write(COMING[0], "inbox/tmp/5.e"),
            deliver(COMING[0], "inbox/tmp/5.e", "inbox/new/5.e", by_link=True),
            remove("inbox/tmp/5.e"),
            set_letters(0, "inbox/cur", "S"),
        ),
        is_harmed_throughout=True,
    ),
)
