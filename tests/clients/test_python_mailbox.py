"""Python's mailbox module: CPython's own tests of it (Debian: libpython3.11-testsuite), and a day's work."""

import mailbox
import os
import re

import pytest

from tests.clients.sides import Mail, Side
from tests.fakes import make_message

# Debian's interpreter, which its test suite belongs to.
PYTHON = "/usr/bin/python3"
SUITE = "test.test_mailbox.TestMaildir"
RESULT = re.compile(r"^(test_\w+) .*\.\.\. (.+)$", re.MULTILINE)


def run_suite(side: Side) -> dict[str, str]:
    """What each test of the suite says; it makes and removes its Maildir in the folder it is started in."""
    folder = side.folder("python")
    done = side.account.run(
        "env", "-C", folder, f"TMPDIR={folder}", PYTHON, "-m", "unittest", "-v", SUITE
    )
    found = dict(RESULT.findall(done.stderr))
    assert f"Ran {len(found)} tests" in done.stderr, done.stderr
    failed = [name for name, result in found.items() if result != "ok"]
    assert not failed, f"{side.name}: {done.stderr[-8000:]}"
    assert sorted(os.listdir(folder)) == ["cur", "new", "tmp"]
    return found


def test_every_test_cpython_has_for_a_maildir_passes(sides: tuple[Side, Side]) -> None:
    plain, mounted = sides
    if plain.account.run(PYTHON, "-c", f"import {SUITE.rpartition('.')[0]}").returncode:
        pytest.skip("CPython's test suite is not installed (libpython3.11-testsuite)")
    wanted = run_suite(plain)
    assert len(wanted) > 50
    assert run_suite(mounted) == wanted
    assert mounted.mailfs is not None
    assert "python/" not in mounted.mailfs.say("searches")


def a_day(side: Side) -> list[tuple[str, str, bytes]]:
    """Add, flag, answer, file into another folder, delete and look again; (folder and place, flags, bytes) of what is left."""
    inbox = mailbox.Maildir(side.folder("inbox"), create=False)
    work = mailbox.Maildir(side.folder("work"), create=False)
    keys = [inbox.add(make_message(number)) for number in range(6)]
    message = inbox.get_message(keys[0])
    message.set_subdir("cur")
    message.set_flags("RS")
    inbox[keys[0]] = message
    message = inbox.get_message(keys[1])
    message.set_flags("F")
    message.set_subdir("cur")
    work.add(message)
    inbox.remove(keys[1])
    inbox.discard(keys[2])
    work.add(inbox.get_message(keys[3]))
    archive = work.add_folder("old")
    archive.add(make_message(7))
    inbox.lock()
    inbox.flush()
    inbox.unlock()
    inbox.clean()
    found = []
    for name, box in (("inbox", inbox), ("work", work), ("work/.old", work.get_folder("old"))):
        again = mailbox.Maildir(box._path, create=False)
        for each in again:
            assert isinstance(each, mailbox.MaildirMessage)
            found.append((f"{name}/{each.get_subdir()}", each.get_flags(), each.as_bytes()))
    assert work.list_folders() == ["old"]
    return sorted(found)


def test_adding_flagging_filing_and_deleting_leave_the_same_mail(sides: tuple[Side, Side]) -> None:
    plain, mounted = map(a_day, sides)
    assert mounted == plain
    assert len(plain) == 7
    assert sides[0].mails("work") == sides[1].mails("work")


def make_maildir(side: Side) -> list[Mail]:
    box = mailbox.Maildir(side.root / "made-by-python")
    box.add(make_message(1))
    return sorted(side.mails("made-by-python"))


def test_a_maildir_python_makes_is_one(sides: tuple[Side, Side]) -> None:
    plain, mounted = map(make_maildir, sides)
    assert mounted == plain
