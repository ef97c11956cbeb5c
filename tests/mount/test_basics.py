"""List, read, rename, remove, make: with the ordinary commands, as root and as an ordinary user, drained and not."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from mailfs.store.store import Store
from tests.mount.accounts import Account, ourselves
from tests.mount.mounting import Mailfs
from tests.oracle import contents_of

ACCOUNTS = ["ourselves", "ordinary"] if os.getuid() == 0 else ["ourselves"]


@pytest.fixture(params=ACCOUNTS)
def account(request: pytest.FixtureRequest, tmp_path: Path) -> Account:
    if request.param == "ordinary":
        found = request.getfixturevalue("as_ordinary")
        assert isinstance(found, Account)
        return found
    home = tmp_path / "home"
    home.mkdir()
    return ourselves(home)


@pytest.fixture
def folder(account: Account) -> Path:
    path = account.home / "files"
    path.mkdir()
    account.own(path)
    return path


def listed(mailfs: Mailfs, path: str) -> list[str]:
    return sorted(mailfs.account.output("ls", "-1U", mailfs.path(path)).splitlines())


@pytest.mark.parametrize("flags", [(), ("--no-drain",)], ids=["drained", "undrained"])
def test_every_message_is_listed_with_its_size_and_read_byte_for_byte(
    mailfs: Mailfs, flags: tuple[str, ...]
) -> None:
    mailfs.create(messages=40)
    mailfs.mount(*flags)
    with Store.open(mailfs.store) as store:
        contents = sorted(contents_of(store).values())
    for view in ("inbox", "unread", "all"):
        names = listed(mailfs, f"{view}/cur")
        paths = [mailfs.path(view, "cur", name) for name in names]
        sizes = mailfs.account.output("stat", "-c", "%s %i", *paths).splitlines()
        assert sorted(int(line.split()[0]) for line in sizes) == sorted(map(len, contents))
        sums = mailfs.account.output("sha256sum", *paths).splitlines()
        expected = [hashlib.sha256(raw).hexdigest() for raw in contents]
        assert sorted(line.split()[0] for line in sums) == sorted(expected)
    assert listed(mailfs, "flagged/cur") == listed(mailfs, "inbox/new") == []
    mailfs.umount()
    assert not mailfs.is_mounted()
    assert mailfs.pids() == []


def test_a_rename_reaches_the_store_every_view_and_the_next_mount(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    (name,) = listed(mailfs, "inbox/cur")
    assert listed(mailfs, "unread/cur") == [name]
    read = name + "S"
    mailfs.account.output("mv", mailfs.path("inbox/cur", name), mailfs.path("inbox/cur", read))
    assert mailfs.count("is:unread") == 0
    assert listed(mailfs, "all/cur") == [read]
    assert listed(mailfs, "unread/cur") == []
    mailfs.umount()
    mailfs.mount()
    assert listed(mailfs, "all/cur") == [read]
    mailfs.account.output("cat", mailfs.path("all/cur", read))


def test_a_message_is_removed_and_a_search_made_and_forgotten(mailfs: Mailfs) -> None:
    mailfs.create(messages=2)
    mailfs.mount()
    first, second = listed(mailfs, "all/cur")
    mailfs.account.output("rm", mailfs.path("all/cur", first))
    assert listed(mailfs, "inbox/cur") == [second]
    assert mailfs.count("*") == 1
    mailfs.account.output("mkdir", mailfs.path("work"))
    assert mailfs.say("tag", "+work", "*") == ""
    assert listed(mailfs, "work/cur") == [second]
    mailfs.account.output("rmdir", mailfs.path("work"))
    assert "work" not in listed(mailfs, "")
    assert mailfs.count("tag:work") == 1


def test_the_mount_belongs_to_who_made_it_and_to_nobody_else(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    (name,) = listed(mailfs, "all/cur")
    lines = mailfs.account.output(
        "stat", "-c", "%u %g %f", mailfs.path("all"), mailfs.path("all/cur", name)
    ).splitlines()
    owner = f"{mailfs.account.uid} {mailfs.account.gid}"
    assert lines == [
        f"{owner} {stat.S_IFDIR | 0o700:x}",
        f"{owner} {stat.S_IFREG | 0o600:x}",
    ]
    assert stat.S_IMODE(mailfs.log.stat().st_mode) == 0o600
    if mailfs.account.uid != os.getuid():
        with pytest.raises(PermissionError):
            os.listdir(mailfs.mountpoint)


def test_what_cannot_be_done_is_refused_with_a_reason_in_the_log(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    (name,) = listed(mailfs, "all/cur")
    path = mailfs.path("all/cur", name)
    for words in (
        ("truncate", "-s", "0", path),
        ("dd", "if=/dev/zero", f"of={path}", "bs=1", "count=1", "conv=notrunc", "status=none"),
        ("ln", "-s", "/etc/hostname", mailfs.path("all/cur/symbolic")),
    ):
        done = mailfs.account.run(*words)
        assert done.returncode != 0, words
        assert "not permitted" in done.stderr, (words, done.stderr)
    assert "refused: a message cannot be changed" in mailfs.log_text()
    assert "refused: cur and new hold messages" in mailfs.log_text()
    before = mailfs.account.output("stat", "-c", "%a %Y %s", path)
    mailfs.account.output("chmod", "644", path)
    mailfs.account.output("touch", "-d", "2001-01-01", path)
    assert mailfs.account.output("stat", "-c", "%a %Y %s", path) == before
