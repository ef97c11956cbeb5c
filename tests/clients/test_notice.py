"""Mail readers, servers, synchronisers and indexers notice what others change, and without a key pressed where they listen.

What is changed is changed elsewhere: by a command, in another view of the mount, or in another mount of the store.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.dovecot import Dovecot
from tests.clients.noticing import (
    LABELS,
    ByCommand,
    Changer,
    InOtherViews,
    Mutt,
    about,
    mutt_on,
    needs_tmux,
    path_of,
    second_mount,
)
from tests.clients.served import Served, give, needs_dovecot
from tests.clients.sides import Side
from tests.clients.syncing import Pair, Sync, letters_by_number
from tests.clients.test_aerc import running
from tests.clients.test_indexers import SEARCHES, Mu, need, notmuch_on
from tests.clients.test_sync import ONE_OF_EACH
from tests.mount.accounts import ourselves
from tests.mount.mounting import Mailfs

needs_aerc = pytest.mark.skipif(shutil.which("aerc") is None, reason="aerc is not installed")


@pytest.fixture
def mailfs_of(mounted: Side) -> Mailfs:
    """The store's commands, with a label view more."""
    assert mounted.mailfs is not None
    mounted.mailfs.say("save", LABELS, "tag:inbox tag:other")
    return mounted.mailfs


@pytest.fixture(params=["commands", "other views", "second mount"])
def changer(request: pytest.FixtureRequest, mounted: Side, mailfs_of: Mailfs) -> Iterator[Changer]:
    """Whoever changes inbox elsewhere."""
    if request.param == "commands":
        yield ByCommand(mailfs_of)
    elif request.param == "other views":
        yield InOtherViews(mounted)
    else:
        with second_mount(mailfs_of) as second:
            yield InOtherViews(second)


# --- Dovecot


@pytest.fixture(scope="module")
def patient_dovecot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dovecot]:
    """A server that looks for changes by itself only once an hour."""
    folder = tmp_path_factory.mktemp("patient")
    account = ourselves(folder)
    extra = "mailbox_idle_check_interval = 1 hour"
    server = Dovecot(folder / "dovecot", f"maildir:{folder}/nobody", account, extra)
    server.start()
    yield server
    server.end()
    complaints = server.complaints()
    assert not complaints, complaints


@pytest.fixture
def served(patient_dovecot: Dovecot, mounted: Side) -> Iterator[Served]:
    one = give(patient_dovecot, mounted, None)
    yield one
    one.end()


@needs_dovecot
def test_who_waits_in_idle_is_told_what_happens_elsewhere(served: Served, changer: Changer) -> None:
    waiting = served.connect("INBOX")
    told = [
        waiting.idle_until(b"EXISTS", lambda: changer.bring(1, "apples")),
        waiting.idle_until(b"EXISTS", lambda: changer.bring(2, "bread")),
        waiting.idle_until(b"FETCH", lambda: changer.flag(1)),
        waiting.idle_until(b"EXPUNGE", lambda: changer.remove(1)),
        waiting.idle_until(b"FETCH", lambda: changer.flag(2)),
        waiting.idle_until(b"EXISTS", lambda: changer.bring(3, "cheese")),
    ]
    assert told == [
        b"* 1 EXISTS",
        b"* 2 EXISTS",
        rb"* 1 FETCH (FLAGS (\Flagged \Recent))",
        b"* 1 EXPUNGE",
        rb"* 1 FETCH (FLAGS (\Flagged \Recent))",
        b"* 2 EXISTS",
    ]
    waiting.close()


@needs_dovecot
def test_who_waits_in_unread_is_told_that_a_message_was_read_in_inbox(
    served: Served, mailfs_of: Mailfs
) -> None:
    changer = ByCommand(mailfs_of)
    changer.bring(1, "apples")
    reading = served.connect("INBOX")
    waiting = served.connect("unread")
    told = waiting.idle_until(b"EXPUNGE", lambda: reading.store([1], "+FLAGS", "\\Seen"))
    assert told == b"* 1 EXPUNGE"
    told = waiting.idle_until(b"EXISTS", lambda: reading.store([1], "-FLAGS", "\\Seen"))
    assert told == b"* 1 EXISTS"
    for each in (waiting, reading):
        each.close()


# --- mutt and neomutt


# As long as nobody presses a key they look at a folder only when they hear something in its new/ by inotify(7) ...
LISTENING = ("set timeout=600", "set mail_check=1")
# ... or once a second.
LOOKING = ("set timeout=1", "set mail_check=1")


@pytest.fixture(params=["mutt", "neomutt"])
def client(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@needs_tmux
def test_delivered_mail_is_shown_without_a_key_pressed(
    mounted: Side, changer: Changer, client: str
) -> None:
    changer.bring(1, "apples")
    with mutt_on(client, mounted, "inbox", *LISTENING) as mutt:
        mutt.wait_for_rows(apples="N")
        mutt.settle()
        changer.bring(2, "bread")
        mutt.wait_for_rows(apples="N", bread="N")
        mutt.settle()
        changer.bring(3, "cheese")
        mutt.wait_for_rows(apples="N", bread="N", cheese="N")


@needs_tmux
def test_flags_and_removals_are_shown_without_a_key_pressed(
    mounted: Side, mailfs_of: Mailfs, client: str
) -> None:
    changer = ByCommand(mailfs_of)
    for number, subject in enumerate(("apples", "bread", "cheese"), 1):
        changer.bring(number, subject)
    with mutt_on(client, mounted, "inbox", *LOOKING) as mutt:
        mutt.wait_for_rows(apples="N", bread="N", cheese="N")
        mutt.settle()
        changer.flag(1)
        mutt.wait_for(lambda: mutt.rows()["apples"].endswith("!"), "the flag")
        mutt.settle()
        changer.remove(2)
        # neomutt marks what is gone as deleted, on a disk too.
        mutt.wait_for(lambda: "D" in mutt.rows().get("bread", "D"), "the end of a message")
        assert set(mutt.rows()) >= {"apples", "cheese"}


@needs_tmux
def test_new_mail_in_another_mailbox_is_announced_without_a_key_pressed(
    mounted: Side, mailfs_of: Mailfs, client: str
) -> None:
    mailfs_of.say("save", "work", "tag:work")
    mounted.mails("work")
    with mutt_on(client, mounted, "inbox", *LISTENING, "mailboxes =inbox =work") as mutt:
        mutt.wait_for_rows()
        mutt.settle()
        done = mailfs_of.command("deliver", "work", input=about(1, "apples").decode())
        assert done.returncode == 0
        mutt.screen.wait_for_text("New mail in =work")


SUBJECTS = ("apples", "bread", "cheese", "dates", "eggs")


def read(mutt: Mutt, subject: str) -> None:
    """Show a message, leave it, and write what has changed."""
    mutt.screen.press("Enter")
    mutt.screen.wait_for_text(f"the text of {subject}")
    mutt.screen.press("i", "$")
    mutt.wait_for(lambda: mutt.rows().get(subject) == "", f"{subject} as read")


@needs_tmux
def test_unread_is_read_to_its_end_and_others_see_each_as_read_at_once(
    mounted: Side, mailfs_of: Mailfs, client: str
) -> None:
    changer = ByCommand(mailfs_of)
    for number, subject in enumerate(SUBJECTS, 1):
        changer.bring(number, subject)
    inbox, expected = mounted.root / "inbox", dict.fromkeys(SUBJECTS, "N")
    with (
        second_mount(mailfs_of) as second,
        mutt_on(client, mounted, "unread", *LOOKING) as mutt,
        mutt_on(client, mounted, "inbox", *LOOKING) as watching,
    ):
        for each in (mutt, watching):
            each.wait_for_rows(**expected)
            each.settle()
        for number, subject in enumerate(SUBJECTS, 1):
            if number > 1:
                mutt.screen.press("Tab")
            read(mutt, subject)
            expected[subject] = ""
            mutt.wait_for_rows(**expected)
            mutt.wait_for(lambda n=number: path_of(inbox, n).name.endswith(":2,S"), "S in inbox")  # type: ignore[misc]  # the loop's of now
            assert second.mails("unread").total() == len(SUBJECTS) - number
            watching.wait_for_rows(**expected)
            watching.settle()
            assert "externally modified" not in mutt.screen.text()
        mutt.screen.press("q")
        mutt.wait_for(mutt.screen.has_ended, "its end")


# --- aerc


@needs_tmux
@needs_aerc
def test_aerc_shows_what_comes_and_goes_without_a_key_pressed_and_finds_what_is_flagged(
    mounted: Side, changer: Changer
) -> None:
    for number, subject in enumerate(("apples", "bread"), 1):
        changer.bring(number, f"about {subject}")
    with running(mounted) as aerc:
        aerc.wait_for_subjects("apples", "bread")
        changer.bring(3, "about cheese")
        aerc.wait_for_subjects("apples", "bread", "cheese")
        changer.remove(2)
        aerc.wait_for_subjects("apples", "cheese")
        changer.flag(1)
        # It shows no flags that others change, on a disk neither.
        aerc.select("apples")
        aerc.command(":view")
        aerc.wait_for(lambda: "the text of about apples" in aerc.screen(), "the message")
        aerc.wait_for(
            lambda: path_of(mounted.root / "inbox", 1).name.endswith(":2,FS"), "its flags"
        )


# --- synchronisers


@needs_dovecot
@pytest.mark.parametrize("sync", ONE_OF_EACH)
def test_what_commands_change_while_a_sync_runs_is_at_both_ends_after_the_next(
    mounted: Side, mailfs_of: Mailfs, sync: Sync, tmp_path: Path
) -> None:
    changer = ByCommand(mailfs_of)
    far = tmp_path / "far"
    pair = Pair(mounted, Dovecot(far, f"maildir:{far}/mail:LAYOUT=fs", mounted.account), tmp_path)

    def change(first: int) -> None:
        for number in range(first, first + 3):
            changer.bring(number, "apples")
            changer.flag(number)
        changer.remove(first)

    expected: dict[int, str] = {}
    for first in (1, 11):
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change, first)
            sync(pair)
            changing.result()
        sync(pair)
        expected |= {first + 1: "F", first + 2: "F"}
        assert letters_by_number(pair.near_holds()) == expected
        assert letters_by_number(pair.far_holds()) == expected


# --- indexers


def change_by_command(changer: Changer) -> None:
    for number, subject in enumerate(("apples", "bread", "cheese"), 1):
        changer.bring(number, subject)
    changer.flag(1)
    changer.remove(2)


def test_notmuch_new_finds_what_was_delivered_tagged_and_expunged(
    mounted: Side, mailfs_of: Mailfs, tmp_path: Path
) -> None:
    need("notmuch")
    changer = ByCommand(mailfs_of)
    notmuch = notmuch_on(mounted, tmp_path)
    changer.bring(9, "zucchini")
    notmuch.say("new")
    change_by_command(changer)
    changer.remove(9)
    notmuch.say("new")
    assert notmuch.search("tag:flagged") == ["id:1@example.org"]
    assert notmuch.search("*") == ["id:1@example.org", "id:3@example.org"]
    # A flag alone is seen, too.
    changer.flag(3)
    notmuch.say("new")
    assert notmuch.search("tag:flagged") == ["id:1@example.org", "id:3@example.org"]


def test_mu_index_finds_what_was_delivered_tagged_and_expunged(
    mounted: Side, mailfs_of: Mailfs, tmp_path: Path
) -> None:
    need("mu")
    changer = ByCommand(mailfs_of)
    for name in SEARCHES:
        (mounted.root / name / ".noindex").touch()
    mu = Mu(mounted, tmp_path / "mu")
    mounted.account.output("mu", "init", f"--muhome={mu.home}", f"--maildir={mounted.root}")
    changer.bring(9, "zucchini")
    mu.say("index")
    change_by_command(changer)
    changer.remove(9)
    # mu knows no flags of what is in new/.
    path = path_of(mounted.root / "inbox", 1)
    path.rename(mounted.root / "inbox" / "cur" / path.name)
    mu.say("index")
    assert mu.say("find", "--fields=i", "flag:flagged") == "1@example.org\n"
    assert (
        mu.say("find", "--fields=i", "--sortfield=subject", "") == "1@example.org\n3@example.org\n"
    )
    mailfs_of.say("tag", "+answered", "--", "id:1@example.org")
    mu.say("index")
    assert mu.say("find", "--fields=i", "flag:replied") == "1@example.org\n"
