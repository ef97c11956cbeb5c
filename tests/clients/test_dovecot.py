"""Dovecot serves the Maildirs of a mount as it serves those on a disk.

One private Dovecot a side, `mail_location = maildir:<root>:LAYOUT=fs:UTF-8:INBOX=<root>/inbox`. Each test does the same over
IMAP on both; what the server answers, and which messages with which letters are left, must be equal, and the server's
log must have no complaint.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.imap import Facts, Imap
from tests.clients.served import (
    DATE,
    Both,
    Served,
    fill,
    needs_dovecot,
    numbered,
    same,
    served,
    shared_dovecot,
)
from tests.clients.sides import Mail
from tests.fakes import make_message

__all__ = ["served", "shared_dovecot"]

pytestmark = needs_dovecot

LATER = "03-Feb-2024 10:20:30 +0000"
MIXED = (
    b"From: Ann <ann@example.org>\nTo: bob@example.org\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\n"
    b"Date: Tue, 02 Jan 2024 03:04:05 +0000\nMessage-ID: <mixed@example.org>\nMIME-Version: 1.0\n"
    b'Content-Type: multipart/mixed; boundary="b"\n\n'
    b"--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\ngr\xc3\xbc\xc3\x9fe\n"
    b"--b\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\nAAECAwQ=\n--b--\n"
)


def with_crlf(raw: bytes) -> bytes:
    """As IMAP sends it."""
    return raw.replace(b"\n", b"\r\n")


def flags_of(one: Served) -> dict[int, str]:
    """What a new connection sees in INBOX."""
    connection = one.connect("INBOX")
    flags = connection.flags()
    connection.close()
    return flags


# --- messages come in and are read


def test_append_keeps_flags_keywords_date_and_content(served: Both) -> None:
    def steps(
        one: Served,
    ) -> tuple[dict[int, str], dict[int, Facts], dict[int, bytes], Counter[Mail]]:
        connection = one.connect("INBOX")
        connection.append(numbered(1), flags="\\Seen \\Flagged work", date=DATE)
        connection.append(MIXED, flags="\\Draft \\Answered $Label1 work", date=LATER)
        connection.append(numbered(3), date=LATER)
        found = connection.flags(), connection.facts(), connection.bodies()
        connection.close()
        return *found, one.side.mails()

    flags, facts, bodies, mails = same(served, steps)
    assert flags == {1: "\\Flagged \\Seen work", 2: "$Label1 \\Answered \\Draft work", 3: ""}
    assert facts[1] == Facts(DATE, len(with_crlf(numbered(1))))
    assert facts[2].date == LATER
    assert bodies[2] == with_crlf(MIXED)
    assert mails.total() == 3


def test_parts_headers_and_ranges_are_fetched(served: Both) -> None:
    def steps(one: Served) -> list[object]:
        connection = one.connect("INBOX")
        connection.append(MIXED, date=DATE)
        found: list[object] = [
            connection.bodies(section)
            for section in ("HEADER", "TEXT", "1", "2", "2.MIME", "HEADER.FIELDS (SUBJECT)")
        ]
        for item in ("ENVELOPE", "BODYSTRUCTURE", "BODY.PEEK[]<20.30>", "BINARY.PEEK[2]"):
            found.append(connection.ok("uid", "FETCH", "1", f"({item})"))
        connection.close()
        return found

    found = same(served, steps)
    assert found[5] == {1: b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\n"}
    assert b"\0\1\2\3\4" in repr(found[9]).encode().decode("unicode_escape").encode()


def test_reading_a_body_sets_seen(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[int, str], Counter[Mail]]:
        connection = one.connect("INBOX")
        fill(connection, 2)
        connection.ok("uid", "FETCH", "2", "(BODY[])")
        connection.close()
        return flags_of(one), one.side.mails()

    flags, _ = same(served, steps)
    assert flags == {1: "", 2: "\\Seen"}


def test_a_message_of_several_megabytes_is_appended_and_fetched(served: Both) -> None:
    raw = make_message(1, body="0123456789 abcdefghijklmnopqrstuvwxyz\n" * 150_000)

    def steps(one: Served) -> tuple[bool, dict[int, Facts]]:
        connection = one.connect("INBOX")
        connection.append(raw, date=DATE)
        is_whole = connection.bodies() == {1: with_crlf(raw)}
        facts = connection.facts()
        connection.close()
        return is_whole, facts

    is_whole, _ = same(served, steps)
    assert is_whole


def test_what_others_delivered_into_new_is_recent_and_goes_to_cur(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[str, int], dict[int, str], Counter[Mail]]:
        for number in range(1, 4):
            one.side.deliver(numbered(number), f"160000000{number}.M1P1.host")
        connection = one.connect()
        status = connection.status("INBOX")
        connection.open("INBOX")
        flags = connection.flags()
        connection.close()
        return status, flags, one.side.mails()

    status, flags, mails = same(served, steps)
    assert (status["MESSAGES"], status["RECENT"], status["UNSEEN"]) == (3, 3, 3)
    assert set(flags) == {1, 2, 3}
    assert {mail.part for mail in mails} == {"cur"}


def test_dovecot_lda_delivers_into_inbox_and_folders(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[int, bytes], dict[int, bytes], list[Counter[Mail]]]:
        connection = one.connect("INBOX")
        connection.ok("create", "work")
        one.dovecot.deliver(numbered(1), one.user)
        one.dovecot.deliver(numbered(2), one.user, "work")
        one.dovecot.deliver(numbered(3), one.user)
        delivered = [one.side.mails(), one.side.mails("work")]
        connection.ok("noop")
        inbox = connection.bodies("TEXT")
        connection.open("work")
        work = connection.bodies("TEXT")
        connection.close()
        return (
            inbox,
            work,
            [Counter(mail._replace(digest="") for mail in mails) for mails in delivered],
        )

    inbox, work, delivered = same(served, steps)
    assert (len(inbox), len(work)) == (2, 1)
    assert delivered[0] == {Mail("new", "", ""): 2}


# --- flags and keywords


def test_store_sets_adds_and_takes_flags_and_keywords(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[int, str], dict[int, str], Counter[Mail]]:
        connection = one.connect("INBOX")
        fill(connection, 6)
        connection.store([1, 2, 3], "+FLAGS", "\\Seen \\Answered work")
        connection.store([2], "-FLAGS", "\\Seen work")
        connection.store([3], "FLAGS", "\\Flagged home")
        connection.store([4], "+FLAGS", "\\Deleted \\Draft")
        connection.store([5], "+FLAGS", "$Label2 $Junk NonJunk")
        connection.store([5], "-FLAGS", "$Junk")
        own = connection.flags()
        connection.close()
        return own, flags_of(one), one.side.mails()

    own, anew, _ = same(served, steps)
    assert own == anew
    assert own == {
        1: "\\Answered \\Seen work",
        2: "\\Answered",
        3: "\\Flagged home",
        4: "\\Deleted \\Draft",
        5: "$Label2 NonJunk",
        6: "",
    }


def test_more_keywords_than_letters_do_no_harm(served: Both) -> None:
    """Maildir has 26 letters; Dovecot keeps the others in its index."""
    words = [f"word{number}" for number in range(30)]

    def steps(one: Served) -> dict[int, str]:
        connection = one.connect("INBOX")
        fill(connection, 2)
        for word in words:
            connection.store([1], "+FLAGS", word)
        connection.close()
        return flags_of(one)

    flags = same(served, steps)
    assert flags == {1: " ".join(sorted(words)), 2: ""}


def test_letters_changed_by_another_program_are_flags(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[int, str], dict[int, str], Counter[Mail]]:
        connection = one.connect("INBOX")
        fill(connection, 2)
        connection.store([1], "+FLAGS", "\\Flagged work")
        connection.close()
        cur = one.side.root / "inbox/cur"
        for path in sorted(cur.iterdir()):
            base, _, letters = path.name.partition(":2,")
            path.rename(cur / f"{base}:2,{''.join(sorted(set(letters) - {'F'} | {'R', 'S'}))}")
        first = flags_of(one)
        (worded,) = (path for path in cur.iterdir() if path.name.endswith("a"))
        worded.rename(cur / worded.name.removesuffix("a"))
        return first, flags_of(one), one.side.mails()

    first, second, _ = same(served, steps)
    assert first == {1: "\\Answered \\Seen work", 2: "\\Answered \\Seen"}
    assert second == {1: "\\Answered \\Seen", 2: "\\Answered \\Seen"}


def test_flags_are_read_from_the_names_when_the_index_is_lost(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[int, str], dict[int, str], Counter[Mail]]:
        connection = one.connect("INBOX")
        fill(connection, 3)
        connection.store([1], "+FLAGS", "\\Seen urgent")
        connection.store([2, 3], "+FLAGS", "\\Answered $Label1")
        connection.store([3], "-FLAGS", "$Label1")
        before = connection.flags()
        connection.close()
        one.dovecot.wait_for_processes(one.user)
        lost = [
            path
            for folder in (one.side.root, *one.elsewhere)
            for path in folder.rglob("dovecot.index*")
        ]
        assert lost
        for path in lost:
            path.unlink()
        return before, flags_of(one), one.side.mails()

    before, after, _ = same(served, steps)
    assert after == before == {1: "\\Seen urgent", 2: "$Label1 \\Answered", 3: "\\Answered"}


# --- messages leave and go elsewhere


def test_expunged_messages_are_gone_and_the_others_keep_their_uids(served: Both) -> None:
    def steps(one: Served) -> tuple[list[bytes], dict[int, bytes], Counter[Mail]]:
        connection = one.connect("INBOX")
        fill(connection, 6)
        connection.store([2, 4, 5], "+FLAGS", "\\Deleted")
        connection.ok("uid", "EXPUNGE", "4")
        connection.store([6], "+FLAGS", "\\Seen")
        expunged = connection.ok("expunge")
        connection.append(numbered(7), date=DATE)
        bodies = connection.bodies()
        connection.close()
        return expunged, bodies, one.side.mails()

    _, bodies, _ = same(served, steps)
    assert bodies == {number: with_crlf(numbered(number)) for number in (1, 3, 6, 7)}


def test_copy_and_move_bring_messages_with_their_flags_and_dates(served: Both) -> None:
    def look(connection: Imap, folder: str) -> tuple[dict[int, str], dict[int, Facts], list[bytes]]:
        connection.open(folder)
        return connection.flags(), connection.facts(), sorted(connection.bodies().values())

    def steps(one: Served) -> tuple[object, object, object, Counter[Mail], Counter[Mail]]:
        connection = one.connect("INBOX")
        connection.ok("create", "work")
        connection.ok("create", "done")
        fill(connection, 6)
        connection.store([1, 3], "+FLAGS", "\\Seen \\Flagged")
        connection.copy([1, 2], "work")
        connection.move([3, 4], "work")
        connection.open("work")
        connection.move([1, 3], "done")
        folders = [look(connection, folder) for folder in ("INBOX", "work", "done")]
        connection.close()
        return *folders, one.side.mails("work"), one.side.mails("done")  # type: ignore[return-value]

    inbox, work, done, *_ = same(served, steps)
    assert isinstance(inbox, tuple)
    assert isinstance(work, tuple)
    assert isinstance(done, tuple)
    assert inbox[0] == {1: "\\Flagged \\Seen", 2: "", 5: "", 6: ""}
    assert work[0] == {2: "", 4: ""}
    assert done[0] == {1: "\\Flagged \\Seen", 2: "\\Flagged \\Seen"}
    assert {facts.date for facts in done[1].values()} == {DATE}


def test_a_copy_leaves_the_original_under_its_name(served: Both) -> None:
    """Dovecot puts a copy without flags into new/; whoever reads the first folder must not notice.

    Of the copy only the content is compared: a message that is not new shows in cur/ of every view.
    """

    def steps(one: Served) -> tuple[bool, Counter[Mail], Counter[str]]:
        connection = one.connect("INBOX")
        connection.ok("create", "work")
        fill(connection, 2)
        connection.ok("noop")
        cur = one.side.root / "inbox/cur"
        before = sorted(path.name for path in cur.iterdir())
        connection.copy([1, 2], "work")
        after = sorted(path.name for path in cur.iterdir())
        connection.close()
        copies = Counter(mail.digest for mail in one.side.mails("work").elements())
        return before == after, one.side.mails(), copies

    is_unchanged, inbox, work = same(served, steps)
    assert is_unchanged
    assert {mail.part for mail in inbox} == {"cur"}
    assert work.total() == 2


def test_a_copy_outlives_its_original_and_the_other_way_round(served: Both) -> None:
    """As clients move messages that do not know MOVE; a copy must not be marked as deleted then."""

    def look(connection: Imap) -> tuple[dict[int, bytes], dict[int, str]]:
        return connection.bodies(), connection.flags()

    def steps(one: Served) -> list[tuple[dict[int, bytes], dict[int, str]]]:
        connection = one.connect("INBOX")
        connection.ok("create", "work")
        fill(connection, 2)
        connection.copy([1, 2], "work")
        connection.delete([1])
        found = [look(connection)]
        connection.open("work")
        connection.delete([2])
        found.append(look(connection))
        connection.open("INBOX")
        connection.ok("expunge")
        found.append(look(connection))
        connection.close()
        return found

    inbox, work, last = same(served, steps)
    assert inbox == last == ({2: with_crlf(numbered(2))}, {2: ""})
    assert work == ({1: with_crlf(numbered(1))}, {1: ""})


def test_a_message_copied_into_its_own_folder_is_there_twice(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[int, bytes], dict[int, bytes], Counter[Mail]]:
        connection = one.connect("INBOX")
        fill(connection, 2)
        connection.copy([1], "INBOX")
        connection.ok("noop")
        twice = connection.bodies()
        connection.delete([1])
        once = connection.bodies()
        connection.close()
        return twice, once, one.side.mails()

    twice, once, _ = same(served, steps)
    assert set(twice) == {1, 2, 3}
    assert once == {2: with_crlf(numbered(2)), 3: with_crlf(numbered(1))}


def test_the_same_bytes_appended_twice_are_two_messages(served: Both) -> None:
    def steps(one: Served) -> tuple[list[int], list[int], Counter[Mail]]:
        connection = one.connect("INBOX")
        connection.append(numbered(1), date=DATE)
        connection.append(numbered(1), date=DATE)
        both = connection.search("ALL")
        connection.delete([2])
        one_left = connection.search("ALL")
        connection.close()
        return both, one_left, one.side.mails()

    both, one_left, _ = same(served, steps)
    assert (both, one_left) == ([1, 2], [1])


# --- questions


@pytest.mark.parametrize("served", ["beside"], indirect=True)
def test_search_sort_and_thread_find_the_same(served: Both) -> None:
    questions: list[tuple[str | bytes, ...]] = [
        ("SEEN",),
        ("UNSEEN", "UNFLAGGED"),
        ("KEYWORD", "work"),
        ("UNKEYWORD", "work"),
        ("SUBJECT", '"message 1"'),
        ("FROM", "ann"),
        ("CHARSET", "UTF-8", "TEXT", '"grüße"'.encode()),
        ("BODY", "text"),
        ("SINCE", "01-Feb-2024"),
        ("LARGER", "300"),
        ("HEADER", "Message-ID", '"<3@example.org>"'),
        ("OR", "UID", "1:2", "ANSWERED"),
    ]

    def steps(one: Served) -> list[object]:
        connection = one.connect("INBOX")
        fill(connection, 12)
        reply = make_message(40, subject="Re: message 3", references=["3@example.org"])
        connection.append(reply, flags="\\Answered", date=LATER)
        connection.append(MIXED, flags="work", date=LATER)
        connection.store([2, 3], "+FLAGS", "\\Seen work")
        found: list[object] = [connection.search(*question) for question in questions]
        found.append(connection.ok("uid", "SORT", "(REVERSE SIZE)", "UTF-8", "ALL"))
        found.append(connection.ok("uid", "SORT", "(SUBJECT ARRIVAL)", "UTF-8", "UNSEEN"))
        found.append(connection.ok("uid", "THREAD", "REFERENCES", "UTF-8", "ALL"))
        connection.close()
        return found

    found = same(served, steps)
    assert found[0] == [2, 3]
    assert found[2] == [2, 3, 14]
    assert found[8] == [13, 14]
    assert b"(3 13)" in found[-1][0]  # type: ignore[index]
    assert all(found)


# --- two at once


def test_two_connections_see_what_the_other_changes(served: Both) -> None:
    def steps(one: Served) -> list[object]:
        first, second = one.connect("INBOX"), one.connect("INBOX")
        told: list[object] = []
        fill(first, 3)
        told.append(second.news())
        second.store([1], "+FLAGS", "\\Seen work")
        told.append(first.news())
        first.delete([2])
        told.append(second.news())
        second.append(numbered(4), date=DATE)
        first.store([3], "+FLAGS", "\\Flagged")
        told += [first.news(), second.news()]
        told += [first.flags(), second.flags()]
        first.close()
        second.close()
        return told

    told = same(served, steps)
    assert told[2] == {"EXPUNGE": [b"2"]}
    assert told[-1] == told[-2] == {1: "\\Seen work", 3: "\\Flagged", 4: ""}


@pytest.mark.parametrize("served", ["beside"], indirect=True)
def test_who_waits_in_idle_is_told_at_once(served: Both) -> None:
    def steps(one: Served) -> list[bytes]:
        waiting, working = one.connect("INBOX"), one.connect("INBOX")
        told = [
            waiting.idle_until(b"EXISTS", lambda: working.append(numbered(1), date=DATE)),
            waiting.idle_until(b"Seen", lambda: working.store([1], "+FLAGS", "\\Seen")),
            waiting.idle_until(
                b"EXISTS", lambda: one.side.deliver(numbered(2), "1600000002.M1P1.host")
            ),
            waiting.idle_until(b"EXPUNGE", lambda: working.delete([1])),
        ]
        waiting.close()
        working.close()
        return told

    told = same(served, steps)
    assert told[0] == b"* 1 EXISTS"
    assert told[3] == b"* 1 EXPUNGE"


def test_a_connection_sees_what_programs_do_to_the_folder(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[str, list[bytes]], dict[int, str], dict[int, str]]:
        connection = one.connect("INBOX")
        fill(connection, 2)
        one.side.deliver(numbered(3), "1600000003.M1P1.host")
        arrived = connection.news()
        flags = connection.flags()
        cur = one.side.root / "inbox/cur"
        (third,) = (path for path in cur.iterdir() if path.name.startswith("1600000003."))
        third.rename(cur / (third.name + "F"))
        (first,) = (path for path in cur.iterdir() if path.read_bytes() == numbered(1))
        first.unlink()
        connection.ok("noop")
        left = connection.flags()
        connection.close()
        return arrived, flags, left

    arrived, flags, left = same(served, steps)
    assert arrived == {"EXISTS": [b"3"]}
    assert set(flags) == {1, 2, 3}
    assert left == {2: "", 3: "\\Flagged"}


def test_four_connections_working_at_once_lose_nothing(served: Both) -> None:
    def work(one: Served, numbers: range) -> None:
        connection = one.connect("INBOX")
        for number in numbers:
            uid = connection.append(numbered(number), date=DATE)
            connection.ok("noop")
            if number % 2 == 0:
                connection.store([uid], "+FLAGS", "\\Seen urgent")
            if number % 3 == 0:
                connection.move([uid], "work")
            elif number % 5 == 0:
                connection.delete([uid])
        connection.close()

    def steps(one: Served) -> list[list[tuple[bytes, str]]]:
        connection = one.connect()
        connection.ok("create", "work")
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda first: work(one, range(first, first + 20)), (1, 21, 41, 61)))
        found = []
        for folder in ("INBOX", "work"):
            connection.open(folder)
            flags, bodies = connection.flags(), connection.bodies()
            found.append(sorted((bodies[uid], flags[uid]) for uid in bodies))
        connection.close()
        return found

    inbox, moved = same(served, steps)
    assert len(moved) == 26
    assert len(inbox) == 80 - 26 - 11


# --- many


def test_two_hundred_messages_are_flagged_moved_and_expunged(served: Both) -> None:
    def steps(one: Served) -> tuple[dict[int, str], list[bytes], dict[int, str], dict[int, Facts]]:
        connection = one.connect("INBOX")
        connection.ok("create", "work")
        fill(connection, 200)
        connection.store("1:200", "+FLAGS", "\\Seen")
        connection.store("2:100", "+FLAGS", "urgent")
        connection.move("151:200", "work")
        connection.store("1:50", "+FLAGS", "\\Deleted")
        connection.ok("expunge")
        connection.close()
        connection = one.connect("INBOX")
        inbox, facts = connection.flags(), connection.facts()
        connection.open("work")
        moved = sorted(connection.bodies().values())
        work = connection.flags()
        connection.close()
        return inbox, moved, work, facts

    inbox, moved, work, _ = same(served, steps)
    assert set(inbox) == set(range(51, 151))
    assert moved == sorted(with_crlf(numbered(number)) for number in range(151, 201))
    assert set(work.values()) == {"\\Seen"}
