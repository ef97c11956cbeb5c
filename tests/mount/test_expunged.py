"""`.expunged` on real mounts: what was removed is found there, and mv back brings it back as it was."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from mailfs.message.keywords import FLAGGED, SEEN
from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.calls import refused, spool
from tests.mount.mounting import Mailfs, add_messages
from tests.mount.waiting import wait_until


@pytest.fixture
def mounted(mailfs: Mailfs) -> Mailfs:
    """Messages 1 and 2 in `inbox`, 3 in `inbox` and `work`, seen and flagged."""
    mailfs.create(messages=2)
    with Store.open(mailfs.store) as store:
        add_messages(store, 1, ("inbox", "work"), flags=SEEN | FLAGGED, first=3)
    mailfs.say("save", "work", "tag:work")
    mailfs.mount()
    return mailfs


def removed(mailfs: Mailfs) -> Path:
    return mailfs.path(".expunged/cur")


def remove(mailfs: Mailfs, number: int, view: str = "all") -> str:
    """rm of a message in a view where that expunges. Its name there."""
    (name,) = (name for name in mailfs.names(view) if f".M{number}." in name)
    mailfs.path(f"{view}/cur", name).unlink()
    return name


def test_it_is_a_maildir_that_is_entered_by_name_and_not_listed_in_the_root(
    mounted: Mailfs,
) -> None:
    assert ".expunged" not in os.listdir(mounted.mountpoint)
    run = mounted.account.output
    assert run("ls", "-A", mounted.path(".expunged")).split() == ["cur", "new", "tmp"]
    assert os.stat(mounted.path(".expunged")).st_nlink == 5
    assert all(os.listdir(mounted.path(".expunged", part)) == [] for part in ("cur", "new", "tmp"))
    found = run("find", mounted.path(".expunged")).splitlines()
    assert len(found) == 4


def test_what_is_removed_is_there_with_its_bytes_flags_and_times(mounted: Mailfs) -> None:
    path = mounted.path("all/cur", next(n for n in mounted.names("all") if ".M3." in n))
    before, raw = path.stat(), path.read_bytes()
    started_s = int(time.time())
    name = remove(mounted, 3)
    assert os.listdir(removed(mounted)) == [name]
    path = removed(mounted) / name
    assert name.endswith(":2,FS")
    assert path.read_bytes() == raw
    found = path.stat()
    assert (found.st_ino, found.st_size, found.st_mtime_ns, found.st_nlink) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
        1,
    )
    assert started_s <= found.st_ctime <= time.time()


def test_mv_back_undeletes_with_flags_and_keywords(mounted: Mailfs) -> None:
    raw = mounted.only("work").read_bytes()
    name = remove(mounted, 3)
    assert mounted.names("work") == []
    shutil.move(removed(mounted) / name, mounted.path("inbox/cur", name))
    assert os.listdir(removed(mounted)) == []
    assert name in mounted.names("inbox")
    assert mounted.names("work") == [name]
    assert mounted.path("work/cur", name).read_bytes() == raw
    assert mounted.keywords()["3@example.org"] == {"$flagged", "$seen", "inbox", "work"}
    with refused(errno.ENOENT):
        os.stat(removed(mounted) / name)


def test_mv_to_another_view_files_it_there_too(mounted: Mailfs) -> None:
    mounted.say("save", "todo", "tag:todo")
    name = remove(mounted, 1)
    os.rename(removed(mounted) / name, mounted.path("todo/new", name.replace(":2,", "")))
    assert mounted.keywords()["1@example.org"] == {"inbox", "todo"}
    assert mounted.names("todo", "new") == [name.replace(":2,", "")]


def test_what_was_marked_deleted_comes_back_without_the_mark(mounted: Mailfs) -> None:
    (name,) = (name for name in mounted.names("all") if ".M2." in name)
    marked = mounted.path("all/cur", f"{name}T")
    os.rename(mounted.path("all/cur", name), marked)
    marked.unlink()
    assert os.listdir(removed(mounted)) == [name]
    os.rename(removed(mounted) / name, mounted.path("inbox/cur", name))
    assert mounted.keywords()["2@example.org"] == {"inbox"}


def test_ln_out_of_it_undeletes(mounted: Mailfs) -> None:
    name = remove(mounted, 1)
    os.link(removed(mounted) / name, mounted.path("inbox/cur", "chosen:2,S"))
    assert os.listdir(removed(mounted)) == []
    assert "chosen:2,S" in mounted.names("inbox")
    assert mounted.path("inbox/cur/chosen:2,S").stat().st_nlink == 1


def test_cp_out_of_it_is_a_delivery_of_the_bytes(mounted: Mailfs) -> None:
    name = remove(mounted, 1)
    # Not shutil.copy, which asks for the mode afterwards, when the message is back and so no longer there.
    shutil.copyfile(removed(mounted) / name, mounted.path("inbox/cur", "copied:2,"))
    wait_until(lambda: mounted.count("tag:inbox") == 3, "the copy to be taken in")
    assert os.listdir(removed(mounted)) == []


def test_a_message_removed_from_its_last_label_view_comes_back_to_it(mounted: Mailfs) -> None:
    name = remove(mounted, 1, "inbox")
    assert os.listdir(removed(mounted)) == [name]
    os.rename(removed(mounted) / name, mounted.path("all/cur", name))
    assert name in mounted.names("inbox")


def test_nothing_can_be_made_or_removed_in_it_and_the_reason_is_told(mounted: Mailfs) -> None:
    name = remove(mounted, 1)
    spooled = spool(mounted.path("inbox"), "x", make_message(9))
    with refused(errno.EPERM):
        os.unlink(removed(mounted) / name)
    with refused(errno.EPERM):
        os.rename(spooled, removed(mounted) / "x")
    with refused(errno.EPERM):
        os.link(spooled, removed(mounted) / "x")
    with refused(errno.EPERM):
        (removed(mounted) / "x").write_bytes(b"x")
    with refused(errno.EPERM):
        os.mkdir(removed(mounted) / "x")
    with refused(errno.EPERM):
        os.rmdir(mounted.path(".expunged/new"))
    with refused(errno.EPERM):
        os.rename(mounted.path(".expunged"), mounted.path("gone"))
    with refused(errno.EPERM):
        os.rename(mounted.path("work"), mounted.path(".expunged"))
    with refused(errno.EXDEV):
        os.rename(removed(mounted) / name, mounted.path("inbox/tmp/x"))
    assert os.listdir(removed(mounted)) == [name]
    assert "moved or copied out of .expunged" in mounted.path(".mailfs/errors").read_text()
    spooled.unlink()


def test_only_names_that_are_true_are_found(mounted: Mailfs) -> None:
    name = remove(mounted, 3)
    for wrong in (name[:-1], "x", name.replace(".M3.", ".M2."), name.replace(".M3.", ".M99.")):
        with refused(errno.ENOENT):
            os.stat(removed(mounted) / wrong)
    with refused(errno.ENOENT):
        os.stat(mounted.path(".expunged/new", name))


def test_a_long_listing_goes_on_while_messages_leave(mailfs: Mailfs) -> None:
    mailfs.create(messages=700)
    mailfs.say("expunge", "*")
    mailfs.mount()
    seen = []
    with os.scandir(removed(mailfs)) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number == 10:
                mailfs.say("undelete", "id:500@example.org")
    assert len(seen) == len(set(seen))
    assert len(seen) in (699, 700)
    assert len(os.listdir(removed(mailfs))) == 699
    assert mailfs.names("inbox") != []


def test_a_client_may_hold_a_message_open_over_removal_and_return(mounted: Mailfs) -> None:
    (name,) = (name for name in mounted.names("all") if ".M1." in name)
    raw = mounted.path("all/cur", name).read_bytes()
    with mounted.path("all/cur", name).open("rb") as file:
        mounted.path("all/cur", name).unlink()
        os.rename(removed(mounted) / name, mounted.path("inbox/cur", name))
        assert file.read() == raw
        assert os.fstat(file.fileno()).st_nlink == 1
    assert name in mounted.names("all")
