"""Changes made in one view, by commands and by imports, as clients of other views see them."""

import errno
import os
import threading
from pathlib import Path

import pytest

from mailfs.message.keywords import RECENT
from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.mounting import Mailfs, add_messages
from tests.mount.waiting import DEADLINE_S, wait_until


def assert_gone(path: Path) -> None:
    """No name any more, once the kernel has been told."""
    wait_until(lambda: not path.exists(), f"{path} not found")
    with pytest.raises(FileNotFoundError):
        path.open("rb")


def test_a_rename_is_counted_at_once_and_seen_under_its_new_name_in_every_view(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=3)
    mailfs.mount()
    for view in ("inbox", "unread", "all", "flagged"):
        mailfs.names(view)
    name = mailfs.names("inbox")[0]
    raw = mailfs.path("inbox/cur", name).read_bytes()
    assert name.endswith(":2,")
    mailfs.path("inbox/cur", name).rename(mailfs.path("inbox/cur", name + "FS"))
    assert mailfs.count("is:unread") == 2
    for view in ("inbox", "all", "flagged"):
        assert name + "FS" in mailfs.names(view)
        assert name not in mailfs.names(view)
        assert mailfs.path(view, "cur", name + "FS").read_bytes() == raw
        assert_gone(mailfs.path(view, "cur", name))
    assert name + "FS" not in mailfs.names("unread")
    assert_gone(mailfs.path("unread/cur", name))


def test_an_old_name_is_gone_also_in_a_view_that_was_never_listed(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    name = mailfs.only("inbox").name
    elsewhere = mailfs.path("all/cur", name)
    assert elsewhere.exists()  # by name only: nobody lists `all`
    mailfs.path("inbox/cur", name).rename(mailfs.path("inbox/cur", name + "S"))
    assert mailfs.path("all/cur", name + "S").exists()
    assert_gone(elsewhere)


@pytest.mark.parametrize("letters", ["SF", "SS"])
def test_a_name_that_is_not_the_one_shown_is_understood_until_the_message_changes(
    mailfs: Mailfs, letters: str
) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    path = mailfs.only("inbox")
    chosen = path.with_name(path.name + letters)
    path.rename(chosen)
    shown = mailfs.only("inbox")
    assert shown.name == path.name + "".join(sorted(set(letters)))
    assert chosen.read_bytes() == shown.read_bytes()
    shown.rename(path.with_name(path.name + "R"))
    assert_gone(chosen)
    assert_gone(shown)


def test_moving_from_new_to_cur_is_seen_in_all_views(mailfs: Mailfs) -> None:
    mailfs.create()
    with Store.open(mailfs.store) as store:
        add_messages(store, 1, flags=RECENT)
    mailfs.mount()
    old = mailfs.only("inbox", "new")
    assert ":" not in old.name
    assert mailfs.names("all", "new") == [old.name]
    old.rename(mailfs.path("inbox/cur", f"{old.name}:2,S"))
    assert mailfs.names("all", "new") == mailfs.names("inbox", "new") == []
    assert mailfs.names("all") == [f"{old.name}:2,S"]
    assert mailfs.count("is:recent or is:unread") == 0


def test_a_change_by_a_command_is_seen_by_the_next_listing_and_moves_the_folders_time(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=2)
    mailfs.mount()
    assert mailfs.names("flagged") == []
    first = mailfs.names("all")[0]
    before = {view: os.stat(mailfs.path(view, "cur")).st_mtime_ns for view in ("all", "flagged")}
    untouched = os.stat(mailfs.path("all/new")).st_mtime_ns
    mailfs.say("tag", "+flagged", "id:1@example.org")
    for view, time_ns in before.items():
        assert os.stat(mailfs.path(view, "cur")).st_mtime_ns > time_ns
    assert os.stat(mailfs.path("all/new")).st_mtime_ns == untouched
    assert mailfs.names("flagged") == [first + "F"]
    assert first + "F" in mailfs.names("all")
    assert_gone(mailfs.path("all/cur", first))


def test_the_times_are_the_same_after_a_remount_and_move_after_a_change_in_between(
    mailfs: Mailfs,
) -> None:
    mailfs.create(messages=2)
    mailfs.mount()

    def times() -> list[int]:
        return [
            os.stat(mailfs.path(view, part)).st_mtime_ns
            for view in ("all", "inbox")
            for part in ("cur", "new")
        ]

    mailfs.names("all")
    path = mailfs.path("all/cur", mailfs.names("all")[0])
    inode = path.stat().st_ino
    before = times()
    mailfs.umount()
    mailfs.mount()
    assert times() == before
    assert path.stat().st_ino == inode
    mailfs.umount()
    mailfs.say("tag", "+flagged", "*")
    mailfs.mount()
    assert all(after > then for after, then in zip(times(), before, strict=True))


def test_mail_imported_while_mounted_shows_up(mailfs: Mailfs, tmp_path: Path) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    assert len(mailfs.names("all")) == 1
    source = tmp_path / "Lists"
    for part in ("cur", "new", "tmp"):
        (source / part).mkdir(parents=True)
    (source / "cur/1:2,RS").write_bytes(make_message(100))
    (source / "new/2").write_bytes(make_message(101))
    mailfs.say("import", source)
    assert len(mailfs.names("all")) == 2
    assert len(mailfs.names("all", "new")) == 1
    assert "Lists" in os.listdir(mailfs.mountpoint)
    assert mailfs.only("Lists").name.endswith(":2,RS")
    assert mailfs.only("Lists", "new").read_bytes() == make_message(101)


def test_rm_in_a_label_view_unlinks_and_in_a_query_view_expunges(mailfs: Mailfs) -> None:
    mailfs.create(messages=2, keywords=("inbox", "work"))
    mailfs.say("save", "work", "tag:work")
    mailfs.mount()
    first, second = mailfs.names("inbox")
    mailfs.path("inbox/cur", first).unlink()
    assert mailfs.names("inbox") == [second]
    assert mailfs.names("work") == mailfs.names("all") == [first, second]
    mailfs.path("work/cur", first).unlink()
    assert mailfs.names("work") == mailfs.names("all") == [second]
    mailfs.path("unread/cur", second).unlink()
    assert mailfs.names("work") == mailfs.names("inbox") == mailfs.names("all") == []
    assert mailfs.count("*") == 0


def test_a_message_read_in_unread_stays_under_its_readers_eyes(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    path = mailfs.only("unread")
    read = path.with_name(path.name + "S")
    path.rename(read)
    assert mailfs.names("unread") == [read.name]
    assert read.read_bytes() == make_message(1, subject="message 1", body="text\n")
    assert mailfs.count("is:unread") == 0


def test_mkdir_saves_a_search_and_rmdir_forgets_it(mailfs: Mailfs) -> None:
    mailfs.create(messages=3)
    mailfs.mount()
    mailfs.account.output("mkdir", mailfs.path("subject:2 is:unread"))
    assert len(mailfs.names("subject:2 is:unread")) == 1
    mailfs.path("inbox/old").mkdir()
    assert sorted(os.listdir(mailfs.path("inbox"))) == ["cur", "new", "old", "tmp"]
    assert mailfs.path("inbox").stat().st_nlink == 6
    with pytest.raises(OSError, match="not empty") as caught:
        mailfs.path("inbox").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY
    for name, code in (
        ("inbox", errno.EEXIST),
        ("cur", errno.EPERM),
        ("subject:(", errno.EINVAL),
    ):
        with pytest.raises(OSError, match=name.replace("(", r"\(")) as caught:
            mailfs.path(name).mkdir()
        assert caught.value.errno == code
    mailfs.path("inbox/old").rmdir()
    mailfs.path("subject:2 is:unread").rmdir()
    assert sorted(os.listdir(mailfs.mountpoint)) == ["all", "flagged", "inbox", "unread"]
    assert mailfs.count("*") == 3


def test_a_search_saved_and_forgotten_by_commands_appears_and_disappears(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    assert not mailfs.path("lists").exists()
    mailfs.say("save", "lists/linux", "subject:message")
    assert len(mailfs.names("lists/linux")) == 1
    mailfs.say("forget", "lists/linux")
    assert_gone_directory(mailfs.path("lists/linux"))
    assert_gone_directory(mailfs.path("lists"))


def assert_gone_directory(path: Path) -> None:
    wait_until(lambda: not path.exists(), f"{path} not found")
    assert path.name not in os.listdir(path.parent if path.parent.exists() else path.parents[1])


def test_a_listing_held_open_survives_changes_without_skip_or_repeat(mailfs: Mailfs) -> None:
    mailfs.create(messages=1000)
    mailfs.mount()
    names = mailfs.names("all")
    removed = names[700:720]
    with os.scandir(mailfs.path("all/cur")) as entries:
        listed = [next(entries).name for _ in range(10)]
        for name in removed:
            mailfs.path("inbox/cur", name).unlink()
        with Store.open(mailfs.store) as store:
            add_messages(store, 5, first=2000)
        listed += [entry.name for entry in entries]
    assert len(listed) == len(set(listed))
    assert set(names) - set(removed) <= set(listed)
    assert len(mailfs.names("all")) == 985


def test_opening_for_writing_is_refused_and_times_are_accepted(mailfs: Mailfs) -> None:
    mailfs.create(messages=1)
    mailfs.mount()
    path = mailfs.only("all")
    raw, before = path.read_bytes(), path.stat()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(PermissionError) as caught:
            os.open(path, flags)
        assert caught.value.errno == errno.EPERM
    with pytest.raises(PermissionError):
        os.truncate(path, 0)
    os.utime(path, (1, 1))
    path.chmod(0o444)
    assert path.read_bytes() == raw
    after = path.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_two_clients_renaming_the_same_message_are_told_the_truth(mailfs: Mailfs) -> None:
    mailfs.create(messages=200)
    mailfs.mount()
    names = mailfs.names("all")
    mailfs.names("inbox")
    won: list[str] = []
    lost: list[str] = []
    start = threading.Barrier(2)

    def rename_all(view: str, letter: str) -> None:
        start.wait(DEADLINE_S)
        for name in names:
            try:
                mailfs.path(view, "cur", name).rename(mailfs.path(view, "cur", name + letter))
                won.append(name)
            except FileNotFoundError:
                lost.append(name)

    clients = [
        threading.Thread(target=rename_all, args=work) for work in (("all", "S"), ("inbox", "F"))
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(DEADLINE_S)
    assert sorted(won) == names == sorted(lost)
    assert mailfs.count("is:seen or is:flagged") == 200
    assert mailfs.count("is:seen is:flagged") == 0
