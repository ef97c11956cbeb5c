"""The Maildir contract of a mount, letters A, P, Q, R: folders, and many clients at once."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mailfs.message.keywords import RECENT
from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.calls import Listing, deliver, make_view, refused, spool
from tests.mount.mounting import Mailfs, add_messages
from tests.mount.waiting import DEADLINE_S, wait_until

RAW = make_message(1)
PARTS = ["cur", "new", "tmp"]


@pytest.fixture
def inbox(mailfs: Mailfs) -> Path:
    """The inbox of an empty store that is mounted and has the label view work too."""
    mailfs.create()
    mailfs.say("save", "work", "tag:work")
    mailfs.mount()
    return mailfs.path("inbox")


# --- A. three directories always, and exact link counts


def test_every_view_has_its_three_directories_and_a_tmp_to_write_to(
    mailfs: Mailfs, inbox: Path
) -> None:
    make_view(mailfs.path("from:ann@example.org"))
    make_view(inbox / "sub")
    mailfs.say("save", "far/away", "tag:away")
    views = [mailfs.path(name) for name in ("all", "unread", "from:ann@example.org", "far/away")]
    for view in (inbox, inbox / "sub", *views):
        assert set(PARTS) <= set(os.listdir(view))
        for part in PARTS:
            with refused(errno.EEXIST):
                (view / part).mkdir()
        spool(view, "x", RAW)
        with refused(errno.ENOTEMPTY):
            (view / "tmp").rmdir()
        (view / "tmp/x").unlink()


def test_a_programs_mkdir_of_a_maildir_succeeds_in_every_step(mailfs: Mailfs) -> None:
    mailfs.create()
    mailfs.mount()
    view = mailfs.path("made")
    view.mkdir()
    for part in PARTS:
        (view / part).mkdir()
        with refused(errno.EEXIST):
            (view / part).mkdir()
    deliver(view, "1.host:2,", RAW)
    assert mailfs.count("tag:made") == 1


def test_the_link_count_of_a_directory_is_two_and_one_for_each_directory_in_it(
    mailfs: Mailfs, inbox: Path
) -> None:
    make_view(inbox / "sub")
    (inbox / ".nnmaildir/num").mkdir(parents=True)
    (inbox / "tmp/own").mkdir()
    (inbox / "cur/.own").mkdir()
    (mailfs.mountpoint / ".own").mkdir()
    mailfs.say("save", "far/away", "tag:away")
    deliver(inbox, "1.host:2,", RAW)
    counted = 0
    for folder, folders, _ in os.walk(mailfs.mountpoint):
        assert os.stat(folder).st_nlink == 2 + len(folders), folder
        counted += 1
    assert counted == 1 + 4 * 7 + 1 + 5  # the root, seven views, far, and those of clients


# --- P. directories made, removed and renamed by hand


def test_mkdir_of_a_word_takes_mail_with_that_keyword_and_of_a_query_shows_it(
    mailfs: Mailfs, inbox: Path
) -> None:
    deliver(inbox, "1:2,S", RAW)
    query = make_view(mailfs.path("from:ann@example.org is:seen"))
    assert len(os.listdir(query / "cur")) == 1
    fresh = make_view(mailfs.path("fresh"))
    (inbox / "cur/1:2,S").rename(fresh / "cur/1:2,S")
    assert mailfs.count("tag:fresh not tag:inbox") == 1
    nested = make_view(fresh / "nested")
    deliver(nested, "2:2,", make_message(2))
    assert mailfs.names("fresh/nested") == ["2:2,"]
    assert mailfs.names("fresh") == ["1:2,S"]
    with refused(errno.ENOTEMPTY):
        fresh.rmdir()
    nested.rmdir()
    query.rmdir()
    assert mailfs.count("*") == 2


def test_rm_r_of_a_view_removes_its_messages_by_the_views_rule_and_the_view(
    mailfs: Mailfs, inbox: Path
) -> None:
    view = make_view(mailfs.path("view"))
    for number in range(20):
        deliver(view, f"{number}:2,", make_message(number), "new" if number % 2 else "cur")
    os.link(view / "cur/0:2,", inbox / "cur/kept:2,")
    spool(view, "left", RAW)
    (view / ".nnmaildir/num").mkdir(parents=True)
    (view / "dovecot-uidlist").write_bytes(b"")
    (view / "cur/.swp").write_bytes(b"")
    deliver(make_view(view / "nested"), "n:2,", make_message(100))
    subprocess.run(["rm", "-r", view], check=True)
    assert not view.exists()
    assert "view" not in mailfs.say("searches")
    assert mailfs.names("inbox") == ["kept:2,"]
    assert mailfs.count("*") == 1
    again = make_view(view)
    assert sorted(os.listdir(again)) == PARTS
    assert [os.listdir(again / part) for part in PARTS] == [[], [], []]


@pytest.mark.parametrize("name", ["renamed", "inbox/below", "with space", "über"])
def test_mv_of_a_view_takes_all_that_is_in_it_along(mailfs: Mailfs, inbox: Path, name: str) -> None:
    view = make_view(mailfs.path("view"))
    path = deliver(view, "1.host,U=4:2,S", RAW)
    inode = path.stat().st_ino
    spool(view, "waiting", RAW)
    (view / ".nnmaildir/num").mkdir(parents=True)
    (view / "dovecot-uidlist").write_bytes(b"uids")
    deliver(make_view(view / "nested"), "2:2,", make_message(2))
    moved = mailfs.path(name)
    with path.open("rb") as file, (view / "dovecot-uidlist").open("ab", buffering=0) as side_car:
        view.rename(moved)
        assert file.read() == RAW
        side_car.write(b" and more")
    for _ in range(2):
        assert not view.exists()
        assert sorted(os.listdir(moved)) == [
            ".nnmaildir",
            *PARTS[:1],
            "dovecot-uidlist",
            "nested",
            *PARTS[1:],
        ]
        assert (moved / "cur/1.host,U=4:2,S").read_bytes() == RAW
        assert (moved / "cur/1.host,U=4:2,S").stat().st_ino == inode
        assert (moved / "tmp/waiting").read_bytes() == RAW
        assert (moved / "dovecot-uidlist").read_bytes() == b"uids and more"
        assert (moved / ".nnmaildir/num").is_dir()
        assert os.listdir(moved / "nested/cur") == ["2:2,"]
        mailfs.umount()
        mailfs.mount()
    deliver(moved, "3:2,", make_message(3))
    assert len(os.listdir(moved / "cur")) == 2


def test_directories_go_only_where_they_can_be(mailfs: Mailfs, inbox: Path) -> None:
    work = mailfs.path("work")
    (inbox / ".own").mkdir()
    mailfs.path("file").write_bytes(b"")
    for old, new, codes in (
        (work, inbox, (errno.ENOTEMPTY, errno.EEXIST)),
        (work, work / "below", (errno.EINVAL,)),
        (work, mailfs.path("file"), (errno.ENOTDIR,)),
        (work, inbox / ".own/work", (errno.EPERM, errno.EXDEV)),
        (work, inbox / "cur/work", (errno.EPERM,)),
        (inbox / "cur", inbox / "other", (errno.EPERM,)),
        (inbox / "tmp", work / "tmp", (errno.EPERM, errno.ENOTEMPTY, errno.EEXIST)),
        (mailfs.path("file"), work, (errno.EISDIR,)),
        (mailfs.path("none"), mailfs.path("some"), (errno.ENOENT,)),
    ):
        with refused(*codes):
            old.rename(new)
    for path, codes in (
        (mailfs.path("work"), (errno.EEXIST,)),
        (mailfs.path("subject:("), (errno.EINVAL,)),
        (mailfs.path("x" * 256), (errno.ENAMETOOLONG,)),
        (mailfs.path("none/below"), (errno.ENOENT,)),
    ):
        with refused(*codes):
            path.mkdir()
    with refused(errno.EILSEQ, errno.EINVAL):
        os.mkdir(os.fsencode(mailfs.mountpoint) + b"/\xff")
    with refused(errno.EISDIR, errno.EPERM):
        work.unlink()
    with refused(errno.ENOTDIR):
        mailfs.path("file").rmdir()
    assert sorted(os.listdir(mailfs.mountpoint)) == [
        "all",
        "file",
        "flagged",
        "inbox",
        "unread",
        "work",
    ]


def test_a_maildirplusplus_folder_is_a_clients_own(mailfs: Mailfs, inbox: Path) -> None:
    """Its messages are files, until they are moved into a view."""
    folder = mailfs.path(".Sub.Folder")
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    path = deliver(folder, "1:2,S", RAW)
    assert mailfs.count("*") == 0
    path.rename(inbox / "cur/1:2,S")
    assert mailfs.count("tag:inbox is:seen") == 1
    with refused(errno.EXDEV):
        (inbox / "cur/1:2,S").rename(path)
    shutil.move(inbox / "cur/1:2,S", path)
    assert path.read_bytes() == RAW
    assert mailfs.names("inbox") == []
    shutil.rmtree(folder)


# --- Q. nobody waits for others


def test_a_delivery_that_waits_for_a_writer_keeps_nobody_else_waiting(
    mailfs: Mailfs, inbox: Path
) -> None:
    deliver(inbox, "1:2,", RAW)
    spool(inbox, "2", make_message(2))
    done = threading.Event()

    def link() -> None:
        os.link(inbox / "tmp/2", inbox / "new/2")
        done.set()

    client = threading.Thread(target=link)
    with (
        Listing(inbox / "cur") as held,
        Store.open(mailfs.store) as store,
        store.writer.transaction("the test is in the way", durable=False),
    ):
        before = mailfs.requests()["link"]
        client.start()
        wait_until(lambda: mailfs.requests()["link"] > before, "the link to begin")
        assert [entry.name for entry in held.rest()] == [b"1:2,"]
        assert (inbox / "cur/1:2,").read_bytes() == RAW
        assert len(mailfs.names("all")) == 1
        (inbox / "dovecot-uidlist").write_bytes(b"not kept waiting")
        spool(mailfs.path("work"), "x", RAW)
        assert not done.is_set()
    assert done.wait(DEADLINE_S)
    client.join(DEADLINE_S)
    assert mailfs.names("inbox", "new") == ["2"]


DELIVER = """
import os, sys
from pathlib import Path
view, word, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    name = f"{number}.{word}"
    path = view / "tmp" / name
    path.write_bytes(f"Subject: {name}\\nMessage-ID: <{name}@example.org>\\n\\n{word}\\n".encode())
    os.link(path, view / "new" / name)
    path.unlink()
    (view / "new" / name).rename(view / "cur" / f"{name}:2,S")
"""


def test_many_processes_deliver_and_flag_at_once_and_nothing_is_lost(
    mailfs: Mailfs, inbox: Path
) -> None:
    words = ("a", "b", "c", "d")
    clients = [
        subprocess.Popen([sys.executable, "-c", DELIVER, inbox, word, "40"]) for word in words
    ]
    seen: set[str] = set()
    while any(client.poll() is None for client in clients):
        names = os.listdir(inbox / "cur")
        assert len(names) == len(set(names))
        assert set(names) >= seen
        seen = set(names)
    assert [client.wait() for client in clients] == [0] * len(words)
    assert mailfs.names("inbox") == sorted(
        f"{number}.{word}:2,S" for word in words for number in range(40)
    )
    assert mailfs.names("inbox", "new") == os.listdir(inbox / "tmp") == []
    for name in mailfs.names("inbox"):
        assert f"Subject: {name[:-4]}\n" in (inbox / "cur" / name).read_text()


# --- R. a storm of renames


def test_a_client_takes_all_of_new_to_cur_at_once(mailfs: Mailfs) -> None:
    mailfs.create()
    with Store.open(mailfs.store) as store:
        add_messages(store, 1000, flags=RECENT)
    mailfs.mount()
    inbox = mailfs.path("inbox")
    names = mailfs.names("inbox", "new")
    assert len(names) == 1000
    for name in names:
        (inbox / "new" / name).rename(inbox / "cur" / f"{name}:2,")
    assert mailfs.names("inbox", "new") == mailfs.names("all", "new") == []
    assert mailfs.names("inbox") == mailfs.names("all") == [f"{name}:2," for name in names]
    for name in names:
        (inbox / "cur" / f"{name}:2,").rename(inbox / "cur" / f"{name}:2,S")
    assert mailfs.count("is:seen") == 1000
    assert mailfs.count("is:recent") == 0


def test_a_plain_folder_of_views_is_renamed_with_them_unless_it_holds_files(mailfs: Mailfs) -> None:
    mailfs.create(messages=2)
    mailfs.mount()
    mailfs.say("save", "lists/linux", "tag:inbox")
    old, new = mailfs.path("lists"), mailfs.path("l2")
    number = old.stat().st_ino
    (old / ".side").write_text("x")
    with refused(errno.ENOTEMPTY):
        old.rename(new)
    (old / ".side").unlink()
    old.rename(new)
    assert new.stat().st_ino == number
    assert os.listdir(new) == ["linux"]
    assert len(mailfs.names("l2/linux")) == 2
    assert not old.exists()


@pytest.mark.parametrize("ending", ["renamed", "unmounted"])
def test_files_on_their_way_are_not_left_behind_when_their_folder_is(
    mailfs: Mailfs, ending: str
) -> None:
    mailfs.create()
    mailfs.mount()
    mailfs.account.output("mkdir", mailfs.path("old"))
    for number in range(40):
        mailfs.path("old/new", f"{number}.host").write_bytes(make_message(number))
    if ending == "renamed":
        mailfs.path("old").rename(mailfs.path("young"))
        wait_until(lambda: mailfs.count("tag:young") == 40, "all of them under the new name")
        assert len(mailfs.names("young", "new")) == 40
    else:
        mailfs.umount()
        assert mailfs.count("tag:old") == 40
