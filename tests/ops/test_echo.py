"""What the model of the kernel (tests/views/kernel_model.py) takes for granted, held against the kernel there is."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.accounts import ourselves
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until
from tests.oracle import assert_sound
from tests.stress.watching import Inotify

_IN_CREATE, _IN_DELETE, _IN_MOVED_FROM, _IN_MOVED_TO = 0x100, 0x200, 0x40, 0x80

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        shutil.which("fusermount3") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK),
        reason="nothing can be mounted here",
    ),
]


@pytest.fixture
def mailfs(tmp_path: Path) -> Iterator[Mailfs]:
    """Two messages in inbox/cur, listed: the kernel has their names."""
    (tmp_path / "home").mkdir()
    made = Mailfs(ourselves(tmp_path / "home"), tmp_path)
    made.create(2)
    made.mount()
    try:
        assert len(made.names("inbox")) == 2
        yield made
    finally:
        made.end()
    assert_sound(made.store)


def heard(inotify: Inotify, count: int) -> list[tuple[int, str]]:
    """The next events: mask and name."""
    events: list[tuple[int, str]] = []

    def has_all() -> bool:
        events.extend((mask, name) for _, mask, name in inotify.events(0.1))
        return len(events) >= count

    wait_until(has_all, f"{count} events")
    return events


def test_a_name_that_is_kept_is_not_asked_for_again(mailfs: Mailfs) -> None:
    path = mailfs.path("inbox", "cur", mailfs.names("inbox")[0])
    with mailfs.counted() as made:
        path.stat()
        path.stat()
    assert made["lookup"] == 0


def test_a_name_that_is_kept_is_asked_for_before_it_is_made(mailfs: Mailfs) -> None:
    """So a name the kernel keeps can be made before its eyes: mknod(2) has LOOKUP_EXCL."""
    path = mailfs.path("inbox", "cur", mailfs.names("inbox")[0])
    with mailfs.counted() as made, pytest.raises(FileExistsError):
        os.mknod(path)
    assert (made["lookup"], made["mknod"]) == (1, 0)


def test_a_name_that_is_kept_is_asked_for_before_something_is_renamed_to_it(mailfs: Mailfs) -> None:
    """rename(2) has LOOKUP_RENAME_TARGET; the name that is renamed is not asked for."""
    first, second = (mailfs.path("inbox", "cur", name) for name in mailfs.names("inbox"))
    with mailfs.counted() as made:
        first.rename(second)
    assert (made["lookup"], made["rename"]) == (1, 1)


def test_a_renamed_name_is_kept_as_the_old_one_was(mailfs: Mailfs) -> None:
    path = mailfs.path("inbox", "cur", mailfs.names("inbox")[0])
    new_path = path.with_name(path.name + "S")
    path.rename(new_path)
    with mailfs.counted() as made:
        new_path.stat()
    assert made["lookup"] == 0


def test_a_name_that_is_not_there_is_asked_for_each_time(mailfs: Mailfs) -> None:
    with mailfs.counted() as made:
        for _ in range(2):
            assert not mailfs.path("inbox", "cur", "nobody:2,").exists()
    assert made["lookup"] == 2


def test_a_name_that_is_gone_is_asked_for_again(mailfs: Mailfs) -> None:
    path = mailfs.path("inbox", "cur", mailfs.names("inbox")[0])
    path.unlink()
    with mailfs.counted() as made:
        assert not path.exists()
    assert made["lookup"] == 1


def test_watchers_hear_what_clients_do_and_what_others_do(mailfs: Mailfs) -> None:
    inotify = Inotify()
    try:
        inotify.watch(mailfs.path("inbox", "cur"))
        first, second = mailfs.names("inbox")
        mailfs.path("inbox", "cur", first).rename(mailfs.path("inbox", "cur", first + "S"))
        assert heard(inotify, 2) == [(_IN_MOVED_FROM, first), (_IN_MOVED_TO, first + "S")]
        mailfs.say("tag", "+flagged", "--", "is:unread")
        assert heard(inotify, 2) == [(_IN_MOVED_FROM, second), (_IN_MOVED_TO, second + "F")]
        mailfs.say("tag", "-inbox", "--", "is:flagged")
        assert heard(inotify, 1) == [(_IN_DELETE, second + "F")]
        mailfs.say("tag", "+inbox", "--", "is:flagged")
        assert heard(inotify, 1) == [(_IN_CREATE, second + "F")]
    finally:
        os.close(inotify.fd)
    assert mailfs.names("inbox") == sorted([first + "S", second + "F"])


def test_what_another_process_renamed_is_known_by_its_new_name_only(mailfs: Mailfs) -> None:
    inotify = Inotify()
    try:
        inotify.watch(mailfs.path("inbox", "cur"))
        before = mailfs.names("inbox")
        mailfs.say("tag", "+flagged", "--", "*")
        heard(inotify, 4)
    finally:
        os.close(inotify.fd)
    for name in before:
        assert not mailfs.path("inbox", "cur", name).exists()
        assert mailfs.path("inbox", "cur", name + "F").stat().st_size
