"""mutt and neomutt on two folders of a mount: the same screens' worth of work leaves the same mail as in plain Maildirs.

They write a message to tmp/, link it into new/ or cur/ and unlink it in tmp/ (rename only where link fails with certain
errors), set the times afterwards, and rename for flags. Both know the letters S, R, F and T, and keep the others.
"""

import os
import re
import shutil
from collections import Counter

import pytest

from tests.clients.sides import Side
from tests.fakes import make_message
from tests.mount.terminal import run_in_terminal

SETTINGS = (
    "mbox_type=Maildir",
    "realname=Ann",
    "from=ann@example.org",
    "hostname=example.org",
    "sendmail=/bin/true",
    "mark_old=no",
    "move=no",
    "delete=yes",
    "quit=yes",
    "wait_key=no",
    "sleep_time=0",
    "confirmappend=no",
    "confirmcreate=no",
    "resolve=no",
    "auto_tag=no",
    "edit_headers=yes",
    "fast_reply=yes",
    "include=no",
    "abort_unmodified=no",
    "abort_nosubject=no",
    "abort_noattach=no",
    "fcc_attach=yes",
    "mail_check=0",
    "pipe_decode=no",
)


@pytest.fixture(params=["mutt", "neomutt"])
def client(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def work_in(
    client: str, side: Side, folder: str, *commands: str, settings: tuple[str, ...] = ()
) -> str:
    """Open a folder, do these commands, and leave it as the last one says. What the screen showed."""
    rc = side.account.home / f"{side.name}-{client}rc"
    lines = [f"set {setting}" for setting in (*SETTINGS, f'folder="{side.root}"', *settings)]
    lines += [f"push '{command}'" for command in reversed(commands)]
    rc.write_text("\n".join(lines) + "\n")
    words = [client, "-n", "-F", str(rc), "-f", str(side.root / folder)]
    return run_in_terminal(side.account, words, side.account.home)


def at(number: int) -> str:
    """Go to the message <number@example.org>."""
    return f"<search>~i {number}@example<enter>"


def fill(side: Side) -> None:
    """inbox: 1 to 6 read, some with letters neither client knows (D and P); 7 and 8 new. work: 9."""
    for number, letters in enumerate(("DS", "FS", "PS", "RS", "S", "DPRS"), 1):
        side.deliver(make_message(number), f"160000000{number}.x.host:2,{letters}")
    for number in (7, 8):
        side.deliver(make_message(number), f"160000000{number}.x.host")
    side.deliver(make_message(9), "1600000009.x.host:2,S", "work")


def assert_same(sides: tuple[Side, Side], *folders: str) -> None:
    """The same mail in these folders, and after the next mount too."""
    plain, mounted = sides
    assert mounted.mailfs is not None
    expected = {folder: plain.mails(folder) for folder in folders}
    assert {folder: mounted.mails(folder) for folder in folders} == expected
    for folder in folders:
        assert os.listdir(mounted.root / folder / "tmp") == []
    mounted.mailfs.umount()
    mounted.mailfs.mount()
    assert {folder: mounted.mails(folder) for folder in folders} == expected


def assert_stored(side: Side, count: int) -> None:
    """How many messages the store has; nothing to ask of a plain folder."""
    if side.mailfs is not None:
        assert side.mailfs.count("*") == count


Content = Counter[tuple[str, str, str]]


def written(side: Side, folder: str) -> Content:
    """What a client wrote itself, without the lines that have the moment in them: part, letters, text."""
    found: Content = Counter()
    for part in ("cur", "new"):
        for path in (side.root / folder / part).iterdir():
            text = path.read_text().replace(str(side.root), "ROOT")
            text = re.sub(r"(?mi)^(date|message-id|in-reply-to|references):.*\n", "", text)
            found[part, "".join(sorted(path.name.partition(":2,")[2])), text] += 1
    return found


# --- in one folder


def test_reading_flagging_and_deleting(sides: tuple[Side, Side], client: str) -> None:
    for side in sides:
        fill(side)
        commands = (
            f"{at(7)}<display-message><exit>",
            f"{at(1)}<flag-message>",
            f"{at(2)}<flag-message>",
            f"{at(3)}<delete-message>",
            f"{at(4)}<toggle-new>",
            "<sync-mailbox>",
            f"{at(8)}<delete-message>{at(5)}<set-flag>r",
            "<quit>",
        )
        shown = work_in(client, side, "inbox", *commands)
        assert side.mails().total() == 6, shown[-1500:]
        assert_stored(side, 7)
    assert_same(sides, "inbox", "work")


def test_with_maildir_trash_a_message_is_marked_and_stays(
    sides: tuple[Side, Side], client: str
) -> None:
    for side in sides:
        fill(side)
        trash = ("maildir_trash=yes",)
        commands = (f"{at(7)}<delete-message>{at(1)}<delete-message>", "<quit>")
        work_in(client, side, "inbox", *commands, settings=trash)
        assert side.mails().total() == 8
        # What is marked can be taken back, and is taken out without maildir_trash.
        work_in(client, side, "inbox", f"{at(1)}<undelete-message>", "<quit>", settings=trash)
        work_in(client, side, "inbox", "<delete-pattern>~D<enter>", "<quit>")
    assert_same(sides, "inbox", "work")


def test_marking_new_mail_old_renames_it_to_cur(sides: tuple[Side, Side], client: str) -> None:
    for side in sides:
        fill(side)
        work_in(client, side, "inbox", "<quit>", settings=("mark_old=yes",))
        assert os.listdir(side.root / "inbox" / "new") == []
    assert_same(sides, "inbox")


# --- from one folder to another


@pytest.mark.parametrize(
    ("command", "left"),
    [("<save-message>", 5), ("<copy-message>", 8)],
    ids=["save", "copy"],
)
def test_saving_and_copying_to_another_folder(
    sides: tuple[Side, Side], client: str, command: str, left: int
) -> None:
    for side in sides:
        fill(side)
        commands = [f"{at(number)}{command}=work<enter>" for number in (1, 2, 7)]
        shown = work_in(client, side, "inbox", *commands, "<quit>")
        assert side.mails().total() == left, shown[-1500:]
        assert side.mails("work").total() == 4
    assert_same(sides, "inbox", "work")


def test_a_copy_stays_when_the_original_is_deleted_and_goes_when_it_is_deleted_itself(
    sides: tuple[Side, Side], client: str
) -> None:
    for side in sides:
        fill(side)
        work_in(client, side, "inbox", f"{at(1)}<copy-message>=work<enter>", "<quit>")
        work_in(client, side, "inbox", f"{at(1)}<delete-message>", "<quit>")
        assert side.mails().total() == 7
        assert side.mails("work").total() == 2
        work_in(client, side, "work", f"{at(1)}<delete-message>", "<quit>")
        assert_stored(side, 8)
    assert_same(sides, "inbox", "work")


def test_a_message_goes_to_another_folder_and_comes_back(
    sides: tuple[Side, Side], client: str
) -> None:
    before = []
    for side in sides:
        fill(side)
        before.append(side.mails())
        work_in(client, side, "inbox", f"{at(2)}<save-message>=work<enter>", "<quit>")
        work_in(client, side, "work", f"{at(2)}<save-message>=inbox<enter>", "<quit>")
    assert_same(sides, "inbox", "work")
    assert before[1] == before[0]


def test_all_of_a_folder_is_saved_with_one_command(sides: tuple[Side, Side], client: str) -> None:
    for side in sides:
        for number in range(1, 101):
            side.deliver(make_message(number), f"16000000{number:03}.x.host:2,{'S' * (number % 2)}")
        side.folder("work")
        everything = "<tag-pattern>~A<enter><tag-prefix><save-message>=work<enter>"
        work_in(client, side, "inbox", everything, "<quit>")
        assert side.mails("work").total() == 100
        assert_stored(side, 100)
    assert_same(sides, "inbox", "work")


def test_saving_to_a_folder_that_is_missing_makes_it(sides: tuple[Side, Side], client: str) -> None:
    for side in sides:
        fill(side)
        shown = work_in(client, side, "inbox", f"{at(1)}<save-message>=fresh<enter>", "<quit>")
        assert side.mails("fresh").total() == 1, shown[-1500:]
    assert_same(sides, "inbox", "fresh")


# --- what they write


def an_editor(side: Side, script: str) -> str:
    """A program that changes the file it is given with sed."""
    path = side.account.home / f"{side.name}-editor"
    path.write_text(f'#!/bin/sh\nsed -i "{script}" "$1"\n')
    path.chmod(0o700)
    return f"editor={path}"


def test_what_is_sent_is_kept_in_the_fcc_folder_and_a_reply_marks_the_original(
    sides: tuple[Side, Side], client: str
) -> None:
    for side in sides:
        fill(side)
        side.folder("sent")
        settings = ("record==sent", an_editor(side, "s/^$/an answer/"))
        work_in(client, side, "inbox", f"{at(1)}<reply><send-message>", "<quit>", settings=settings)
        assert side.mails("sent").total() == 1
    assert_same(sides, "inbox", "work")
    assert written(sides[1], "sent") == written(sides[0], "sent")
    ((part, letters, text),) = written(sides[0], "sent")
    assert (part, letters) == ("cur", "S")
    assert "an answer" in text


def test_a_draft_is_postponed_and_taken_up_again(sides: tuple[Side, Side], client: str) -> None:
    kept = []
    for side in sides:
        fill(side)
        for name in ("drafts", "sent"):
            side.folder(name)
        settings = ("record==sent", "postponed==drafts", "postpone=yes", "recall=yes")
        editing = (*settings, an_editor(side, "s/^$/a line more/"))
        work_in(client, side, "inbox", f"{at(1)}<reply><exit>", "<quit>", settings=editing)
        kept.append(written(side, "drafts"))
        assert kept[-1].total() == 1
        work_in(client, side, "inbox", "<recall-message><send-message>", "<quit>", settings=editing)
        assert side.mails("drafts").total() == 0
        assert written(side, "sent").total() == 1
        # The draft is gone for good; the sent one and the nine of before are there.
        assert_stored(side, 10)
    assert kept[1] == kept[0]
    assert written(sides[1], "sent") == written(sides[0], "sent")
    assert_same(sides, "inbox", "drafts")


def test_editing_a_message_puts_another_in_its_place(sides: tuple[Side, Side], client: str) -> None:
    for side in sides:
        fill(side)
        settings = (an_editor(side, "s/some text/another text/"),)
        commands = [f"{at(number)}<edit>" for number in (2, 8)]
        shown = work_in(client, side, "inbox", *commands, "<quit>", settings=settings)
        texts = [path.read_text() for path in (side.root / "inbox").glob("*/*")]
        assert sum("another text" in text for text in texts) == 2, shown[-1500:]
        assert len(texts) == 8
        assert_stored(side, 9)
    assert_same(sides, "inbox")


def test_linking_threads_and_labelling_rewrites_headers(
    sides: tuple[Side, Side], client: str
) -> None:
    for side in sides:
        fill(side)
        commands = (
            f"{at(1)}<tag-message>{at(2)}<link-threads>",
            f"{at(3)}<edit-label>urgent<enter>",
        )
        shown = work_in(client, side, "inbox", *commands, "<quit>", settings=("sort=threads",))
        texts = [path.read_text() for path in (side.root / "inbox").glob("*/*")]
        assert any("X-Label: urgent" in text for text in texts), shown[-1500:]
        assert any("In-Reply-To: <2@example.org>" in text for text in texts), shown[-1500:]
        assert len(texts) == 8
    assert_same(sides, "inbox")


# --- with a header cache, and with other programs


def listing(client: str, side: Side, settings: tuple[str, ...]) -> list[str]:
    """What the client says of each message of inbox: pattern of flags and subject, as it pipes them."""
    out = side.account.home / f"{side.name}-listing"
    out.write_text("")
    script = side.account.home / f"{side.name}-listing.sh"
    script.write_text(f'sed -n "s/^Message-ID: /$1 /p;/^$/q" >> {out}\n')
    commands = []
    for pattern in "NRFQD":
        commands += [
            "<untag-pattern>~A<enter>",
            f"<tag-pattern>~{pattern}<enter>",
            f"<tag-prefix-cond><pipe-message>sh {script} {pattern}<enter><end-cond>",
        ]
    piping = ("pipe_split=yes", "delete=no")
    work_in(client, side, "inbox", *commands, "<exit>", settings=(*settings, *piping))
    return sorted(out.read_text().splitlines())


@pytest.mark.parametrize("place", ["elsewhere", "beside the folders"])
def test_a_header_cache_is_used_and_never_shows_what_is_no_more(
    sides: tuple[Side, Side], client: str, place: str
) -> None:
    """The cache's database is written through a shared mapping."""
    said = []
    for side in sides:
        fill(side)
        home = side.account.home / side.name if place == "elsewhere" else side.root
        home.mkdir(exist_ok=True)
        cache = home / ".cache"
        cache.mkdir()
        cached = (f'header_cache="{cache}"', "maildir_header_cache_verify=yes")
        said.append([listing(client, side, cached)])
        assert any(path.is_file() for path in cache.rglob("*"))
        said[-1].append(listing(client, side, cached))
        # What is in the cache changes: flags, a message less, a message more, another in the place of one.
        commands = f"{at(1)}<flag-message>{at(3)}<delete-message>{at(8)}<edit>"
        editing = (*cached, an_editor(side, "s/^Message-ID: <8@/Message-ID: <88@/"))
        work_in(client, side, "inbox", commands, "<quit>", settings=editing)
        side.deliver(make_message(20), "1600000020.x.host")
        said[-1].append(listing(client, side, cached))
        assert said[-1][2] == listing(client, side, ())
    assert said[1] == said[0]
    assert said[0][0] == said[0][1] != said[0][2]
    assert_same(sides, "inbox", "work")


def test_mail_that_comes_while_the_folder_is_open_is_seen_and_can_be_saved(
    sides: tuple[Side, Side], client: str
) -> None:
    """Another program brings a message, and changes the flags of one that mutt is about to change."""
    for side in sides:
        fill(side)
        box = side.root / "inbox"
        raw = side.account.home / f"{side.name}-raw"
        raw.write_bytes(make_message(30))
        script = side.account.home / f"{side.name}-other.sh"
        script.write_text(
            f"cp {raw} {box}/tmp/1600000030.x.host && mv {box}/tmp/1600000030.x.host {box}/new/\n"
            f"mv {box}/cur/1600000001.x.host:2,DS {box}/cur/1600000001.x.host:2,DRS\n"
        )
        commands = (
            f"<shell-escape>sh {script}<enter>",
            f"{at(1)}<flag-message>",
            "<sync-mailbox>",
            f"{at(30)}<save-message>=work<enter>",
            "<quit>",
        )
        shown = work_in(client, side, "inbox", *commands)
        assert side.mails("work").total() == 2, shown[-1500:]
    assert_same(sides, "inbox", "work")


def test_the_same_work_is_done_in_the_view_of_a_query(mounted: Side, client: str) -> None:
    """No plain folder is like `unread`: reading takes a message out of it, but not from under the reader."""
    fill(mounted)
    assert mounted.mails("unread").total() == 2
    commands = (
        f"{at(7)}<display-message><exit><sync-mailbox>",
        f"{at(7)}<save-message>=work<enter>",
        "<quit>",
    )
    shown = work_in(client, mounted, "unread", *commands)
    assert mounted.mails("work").total() == 2, shown[-1500:]
    assert mounted.mailfs is not None
    # It left by the rule of a query's view, so only the copy in work is kept.
    assert mounted.mailfs.count("tag:work") == 2
    assert sorted(mail.letters for mail in mounted.mails("work")) == ["S", "S"]
    assert mounted.mails("unread").total() == 1


def test_a_message_that_a_view_refuses_stays_where_it_is(mounted: Side, client: str) -> None:
    """`from:carol` takes nothing of Ann's: the save fails and nothing is deleted."""
    fill(mounted)
    mounted.folder("from:carol")
    before = mounted.mails()
    work_in(client, mounted, "inbox", f"{at(1)}<save-message>=from:carol<enter>", "<quit>")
    assert mounted.mails("from:carol").total() == 0
    assert mounted.mails() == before
    assert os.listdir(mounted.root / "from:carol" / "tmp") == []
