"""The Maildir contract of a mount, letters D, M: what messages are called, and by two mounts of one store."""

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes import make_message
from tests.mount.calls import deliver, refused, spool
from tests.mount.mounting import Mailfs
from tests.mount.waiting import wait_until

RAW = make_message(1)
OTHER = make_message(2)


@pytest.fixture
def inbox(mailfs: Mailfs) -> Path:
    """The inbox of an empty store that is mounted and has the label views work and lists too."""
    mailfs.create()
    mailfs.say("save", "work", "tag:work")
    mailfs.say("save", "lists", "tag:lists")
    mailfs.mount()
    return mailfs.path("inbox")


# --- D. renames within a view


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("cur", "1.host:2,"),
        ("cur", "1.host:2,S"),
        ("new", "1.host:2,"),
        ("new", "1.host:2,FRS"),
        ("new", "1.host"),
        ("cur", "1.host"),
        ("cur", "1.host,U=12:2,S"),
        ("cur", "1.host,U=12,FMD5=0123456789abcdef0123456789abcdef:2,ST"),
        ("cur", "1.M2P3.host,S=144,W=150:2,RS"),
        ("cur", "1.host:2,ABCEFGHS"),
        ("cur", "1.host:2,abz"),
        ("cur", "1.host:2,DFPRSTab"),
    ],
)
def test_a_name_a_client_chose_is_kept_in_its_view_and_over_a_remount(
    mailfs: Mailfs, inbox: Path, part: str, name: str
) -> None:
    for begin, begun in (("new", "begin"), ("cur", "begin:2,")):
        raw = make_message(1, subject=begun)
        target = inbox / part / f"{begin}{name}"
        deliver(inbox, begun, raw, begin).rename(target)
        assert mailfs.names("inbox", part) == [target.name]
        assert target.read_bytes() == raw
        mailfs.umount()
        mailfs.mount()
        assert mailfs.names("inbox", part) == [target.name]
        assert target.read_bytes() == raw
        assert mailfs.names("inbox", "new" if part == "cur" else "cur") == []
        target.rename(inbox / "cur/again:2,")
        assert mailfs.names("inbox") == ["again:2,"]
        (inbox / "cur/again:2,").unlink()


def test_a_uid_in_a_name_is_that_of_one_view(mailfs: Mailfs, inbox: Path) -> None:
    path = deliver(inbox, "1.host:2,", RAW)
    os.link(path, mailfs.path("work/cur/1.host:2,"))
    path.rename(inbox / "cur/1.host,U=7:2,")
    mailfs.path("work/cur/1.host:2,").rename(mailfs.path("work/cur/1.host,U=9:2,S"))
    assert mailfs.names("inbox") == ["1.host,U=7:2,S"]
    assert mailfs.names("work") == ["1.host,U=9:2,S"]
    (canonical,) = mailfs.names("all")
    assert b",U=" not in os.fsencode(canonical)
    mailfs.say("tag", "+flagged", "*")
    assert mailfs.names("inbox") == ["1.host,U=7:2,FS"]


def test_a_message_that_left_and_came_back_has_not_its_old_uid(mailfs: Mailfs, inbox: Path) -> None:
    path = deliver(inbox, "1.host,U=7:2,", RAW)
    os.link(path, mailfs.path("work/cur/kept:2,"))
    path.unlink()
    assert mailfs.names("inbox") == []
    mailfs.say("tag", "+inbox", "*")
    (name,) = mailfs.names("inbox")
    assert "U=7" not in name
    assert mailfs.names("work") == ["kept:2,"]


def test_letters_of_dovecot_keywords_are_keywords_of_that_view(mailfs: Mailfs, inbox: Path) -> None:
    path = deliver(inbox, "1.host:2,", RAW)
    (inbox / "dovecot-keywords").write_text("0 later\n1 $Forwarded\n")
    path = path.rename(inbox / "cur/1.host:2,Sabz")
    # P and b are one flag, and both are shown.
    assert mailfs.names("inbox") == ["1.host:2,PSabz"]
    assert mailfs.count("tag:later is:forwarded is:seen") == 1
    shown = inbox / "cur" / mailfs.names("inbox")[0]
    mailfs.umount()
    mailfs.mount()
    assert mailfs.names("inbox") == [shown.name]
    # A view without the file knows no letters.
    assert not mailfs.names("all")[0].endswith("a")
    mailfs.say("tag", "-later", "*")
    assert "a" not in mailfs.names("inbox")[0].partition(":2,")[2]
    assert mailfs.names("inbox")[0].endswith("z")
    mailfs.say("tag", "+later", "*")
    assert mailfs.names("inbox") == [shown.name]
    shown.rename(inbox / "cur/1.host:2,S")
    assert mailfs.count("tag:later or is:forwarded") == 0


def test_every_flag_goes_both_ways_between_new_and_cur(mailfs: Mailfs, inbox: Path) -> None:
    path = deliver(inbox, "1.host", RAW, "new")
    for part, letters in (
        ("cur", ":2,"),
        ("cur", ":2,DFPRST"),
        ("new", ":2,S"),
        ("new", ":2,"),
        ("cur", ":2,F"),
        ("new", ""),
        ("cur", ""),
    ):
        path = path.rename(inbox / part / f"1.host{letters}")
        assert mailfs.names("inbox", part) == [path.name]
        assert path.read_bytes() == RAW
        assert mailfs.count("is:flagged") == ("F" in letters)
        assert mailfs.count("is:seen") == ("S" in letters)


def test_a_rename_to_itself_or_to_the_other_name_of_the_message_changes_nothing(
    mailfs: Mailfs, inbox: Path
) -> None:
    first, second = deliver(inbox, "1:2,S", RAW), deliver(inbox, "2:2,S", RAW)
    first.rename(first)
    # rename(2): two links of one file both stay.
    first.rename(second)
    assert mailfs.names("inbox") == ["1:2,S", "2:2,S"]
    first.rename(inbox / "cur/3:2,S")
    assert mailfs.names("inbox") == ["2:2,S", "3:2,S"]


def test_who_comes_second_is_told_that_the_name_is_gone(inbox: Path) -> None:
    path = deliver(inbox, "1:2,", RAW)
    path.rename(inbox / "cur/1:2,F")
    with refused(errno.ENOENT):
        path.rename(inbox / "cur/1:2,S")
    with refused(errno.ENOENT):
        path.unlink()
    with refused(errno.ENOENT):
        path.open()
    assert os.listdir(inbox / "cur") == ["1:2,F"]


# --- M. names: any bytes, one base for the life of the message


NAMES = [
    b"a:b:2,S",
    b"with space!2,S:2,S",
    b"no-info-at-all",
    b"odd!2,S",
    b"semi;2,S",
    b"1,2:1,experimental",
    b"1:2,notletters!",
    b"\xff\xfe\x80:2,S",
    "grüße-✉:2,F".encode(),
    b"new\nline\ttab:2,",
    b"*?[a]\\'\":2,",
    b"-rf:2,",
    b"~:2,",
    b"1.M1.abc,S=9:2,S",
    b"x" * 243 + b":2,DFPRSTab",
]


@pytest.mark.parametrize("name", NAMES, ids=[str(number) for number in range(len(NAMES))])
def test_a_name_may_be_any_bytes(mailfs: Mailfs, inbox: Path, name: bytes) -> None:
    folder = os.fsencode(inbox / "cur")
    path = folder + b"/" + name
    os.link(spool(inbox, "x", RAW), path)
    (inbox / "tmp/x").unlink()
    assert os.listdir(folder) == [name]
    mailfs.umount()
    mailfs.mount()
    assert os.listdir(folder) == [name]
    assert Path(os.fsdecode(path)).read_bytes() == RAW
    os.rename(path, folder + b"/moved:2,F")
    os.rename(folder + b"/moved:2,F", path)
    os.unlink(path)
    assert os.listdir(folder) == []


def test_a_name_of_255_bytes_is_one_in_tmp_and_one_more_is_too_long(inbox: Path) -> None:
    path = inbox / "tmp" / ("x" * 255)
    path.write_bytes(RAW)
    with refused(errno.ENAMETOOLONG):
        (inbox / "tmp" / ("x" * 256)).write_bytes(RAW)
    # A base must leave room for letters, or the next flag could not be shown.
    with refused(errno.ENAMETOOLONG):
        path.rename(inbox / "cur" / ("x" * 255))
    assert path.read_bytes() == RAW
    path.rename(inbox / "cur" / ("x" * 240))
    assert len(os.listdir(inbox / "cur")) == 1


@pytest.mark.parametrize("name", [b":2,S", b":2,", b":2,S:2,S", b"2:2,S:2,"])
def test_a_name_without_a_base_or_with_letters_twice_is_refused(inbox: Path, name: bytes) -> None:
    path = deliver(inbox, "1:2,", RAW)
    with refused(errno.EINVAL):
        os.rename(os.fsencode(path), os.fsencode(inbox / "cur") + b"/" + name)
    with refused(errno.EINVAL):
        os.link(os.fsencode(spool(inbox, "2", OTHER)), os.fsencode(inbox / "cur") + b"/" + name)
    assert os.listdir(inbox / "cur") == ["1:2,"]


# --- two mounts of one store


@pytest.fixture
def second(mailfs: Mailfs, inbox: Path) -> Iterator[Path]:
    """Where the store of `inbox` is mounted once more."""
    path = mailfs.folder / "second"
    mailfs.say("mount", path)
    yield path
    mailfs.say("umount", path)


def test_two_mounts_of_one_store_see_each_others_deliveries_names_and_moves(
    mailfs: Mailfs, inbox: Path, second: Path
) -> None:
    there = second / "inbox"
    for name in ("1.host:2,", "2.host:2,"):
        raw = make_message(int(name[0]))
        here = deliver(inbox, name, raw)
        assert name in os.listdir(there / "cur")
        assert (there / "cur" / name).read_bytes() == raw
        (there / "cur" / name).rename(there / "cur" / f"{name[0]}.host,U={name[0]}:2,S")
        assert f"{name[0]}.host,U={name[0]}:2,S" in os.listdir(inbox / "cur")
        wait_until(lambda here=here: not here.exists(), "the old name is gone")  # type: ignore[misc]
    (there / "cur/1.host,U=1:2,S").rename(second / "work/cur/moved:2,S")
    assert mailfs.names("work") == ["moved:2,S"]
    assert mailfs.names("inbox") == ["2.host,U=2:2,S"]
    spool(there, "spooled", make_message(3))
    assert (inbox / "tmp/spooled").read_bytes() == make_message(3)
    (inbox / "tmp/spooled").rename(inbox / "new/spooled")
    assert os.listdir(there / "tmp") == []
    (inbox / "cur/2.host,U=2:2,S").unlink()
    assert os.listdir(there / "cur") == []
    with refused(errno.EEXIST):
        os.link(spool(there, "x", OTHER), there / "new/spooled")


def test_two_mounts_make_their_first_files_in_a_view_at_the_same_time(
    mailfs: Mailfs, second: Path
) -> None:
    for number in range(20):
        mailfs.say("save", f"v{number}", f"tag:v{number}")
    barrier = threading.Barrier(2)

    def make(root: Path, word: str) -> None:
        for number in range(20):
            barrier.wait()
            spool(root / f"v{number}", word, RAW)

    with ThreadPoolExecutor(2) as threads:
        for done in [
            threads.submit(make, mailfs.mountpoint, "here"),
            threads.submit(make, second, "there"),
        ]:
            done.result()
    for number in range(20):
        assert sorted(os.listdir(second / f"v{number}/tmp")) == ["here", "there"]


def test_of_two_mounts_that_give_one_name_one_succeeds(mailfs: Mailfs, second: Path) -> None:
    barrier = threading.Barrier(2)

    def link(root: Path, number: int) -> list[bool]:
        spooled = spool(root / "inbox", str(number), make_message(number))
        given = []
        for name in range(20):
            barrier.wait()
            try:
                os.link(spooled, root / "inbox/cur" / f"{name}:2,")
                given.append(True)
            except FileExistsError:
                given.append(False)
        return given

    with ThreadPoolExecutor(2) as threads:
        here = threads.submit(link, mailfs.mountpoint, 1)
        there = threads.submit(link, second, 2)
        pairs = list(zip(here.result(), there.result(), strict=True))
    assert all(first != other for first, other in pairs), pairs
    for name, (first, _) in enumerate(pairs):
        for root in (mailfs.mountpoint, second):
            raw = (root / "inbox/cur" / f"{name}:2,").read_bytes()
            assert raw == make_message(1 if first else 2)


def test_a_file_a_client_of_another_mount_is_writing_is_not_taken_in_half(
    mailfs: Mailfs, inbox: Path, second: Path
) -> None:
    """Mounted while a file is written in cur/, and renamed by a client of that mount meanwhile (aerc takes all of new/)."""
    with (inbox / "cur/1:2,").open("xb", buffering=0) as file:
        file.write(RAW)
        elsewhere = second / "inbox/cur"
        assert (elsewhere / "1:2,").read_bytes() == RAW
        (elsewhere / "1:2,").rename(elsewhere / "1:2,S")
        file.write(b"more\n")
    wait_until(lambda: mailfs.count("is:seen") == 1, "the message to be taken in")
    assert (inbox / "cur/1:2,S").read_bytes() == RAW + b"more\n"


def test_letters_of_a_whole_maildir_become_keywords_when_their_file_comes_last(
    mailfs: Mailfs, inbox: Path
) -> None:
    """As rsync brings a Maildir of Dovecot: cur/ before dovecot-keywords."""
    for number in range(1, 121):
        deliver(inbox, f"{number}.host:2,Sab", make_message(number))
    (inbox / "dovecot-keywords").write_text("0 urgent\n1 $Forwarded\n")
    wait_until(lambda: mailfs.count("tag:urgent is:forwarded") == 120, "the keywords")
    assert mailfs.names("inbox")[0].endswith(":2,PSab")
