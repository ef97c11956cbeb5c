"""mblaze: deliver, incorporate, flag, list, move and copy, send; the same answers and the same mail as in a plain Maildir.

To mblaze a message is its path, so a name must stay until the program that changes it says the new one.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.clients.sides import Side
from tests.fakes import make_message

pytestmark = pytest.mark.skipif(shutil.which("mlist") is None, reason="mblaze is not installed")

LETTERS = "DFPRST"
# The part of a name that mdeliver makes up: seconds of now, microseconds, process id, host name. Ours begin with 16.
MADE_UP = re.compile(r"\b(?!16)\d{10}\.[^/:\s]+")


def say(side: Side, *words: str | Path, input: str = "", code: int = 0) -> str:
    """What a program answers, without the folder's own path and without the names it made up."""
    done = side.account.run(*words, input=input)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return MADE_UP.sub("NAME", (done.stdout + done.stderr).replace(str(side.root), "ROOT"))


def paths(side: Side, *words: str) -> list[str]:
    """The paths that mlist answers, in the order of the messages' numbers."""
    found = side.account.output("mlist", *words).splitlines()
    return sorted(found, key=lambda path: Path(path).read_bytes())


def fill(side: Side) -> None:
    """inbox: every letter alone, all of them, and two new messages; work: nothing."""
    for number, letters in enumerate(("", *LETTERS, LETTERS)):
        side.deliver(make_message(number), f"16000000{number:02}.x.host:2,{letters}")
    for number in (20, 21):
        side.deliver(make_message(number), f"16000000{number}.x.host")
    side.folder("work")


def assert_same(sides: tuple[Side, Side], *folders: str) -> None:
    """The same mail, also after the mount was made anew."""
    plain, mounted = sides
    assert mounted.mailfs is not None
    expected = {folder: plain.mails(folder) for folder in folders}
    assert {folder: mounted.mails(folder) for folder in folders} == expected
    names = {folder: sorted(paths(mounted, str(mounted.root / folder))) for folder in folders}
    mounted.mailfs.umount()
    mounted.mailfs.mount()
    assert {folder: mounted.mails(folder) for folder in folders} == expected
    assert {
        folder: sorted(paths(mounted, str(mounted.root / folder))) for folder in folders
    } == names


@pytest.mark.parametrize("words", [(), ("-c",), ("-X", "FS"), ("-c", "-X", "FRS"), ("-X", "abZ")])
def test_mdeliver_brings_a_message_and_says_its_path(
    sides: tuple[Side, Side], words: tuple[str, ...]
) -> None:
    """-X puts letters on names in new/ too."""
    answers = []
    for side in sides:
        text = make_message(1).decode()
        box = side.folder()
        answers.append(say(side, "mdeliver", "-v", *words, box, input=text))
        (path,) = paths(side, str(box))
        assert Path(path).read_text() == text
        assert os.listdir(box / "tmp") == []
    assert answers[1] == answers[0]
    assert_same(sides, "inbox")


def test_mdeliver_imports_an_mbox_with_its_states(sides: tuple[Side, Side]) -> None:
    """-M: Status and X-Status become letters, `>From ` is unquoted, Date becomes the time of the file."""
    states = ("", "Status: RO\n", "Status: O\n", "Status: RO\nX-Status: AF\n", "X-Status: TD\n")
    mbox = "".join(
        f"From ann@example.org Tue Jan  2 03:04:05 2024\n{state}"
        + make_message(number, body=">From here").decode()
        + "\n"
        for number, state in enumerate(states)
    )
    times, answers = [], []
    for side in sides:
        box = side.folder()
        answers.append(say(side, "mdeliver", "-v", "-M", box, input=mbox))
        found = paths(side, str(box))
        times.append([Path(path).stat().st_mtime for path in found])
    assert answers[1] == answers[0]
    assert times[1] == times[0]
    assert len(times[0]) == len(states)
    assert_same(sides, "inbox")


def test_minc_moves_what_is_new_to_cur(sides: tuple[Side, Side]) -> None:
    answers = []
    for side in sides:
        fill(side)
        box = side.root / "inbox"
        # Nothing is new the second time.
        answers.append([say(side, "minc", box), say(side, "minc", box)])
        assert os.listdir(box / "new") == []
    assert answers[1] == answers[0]
    assert_same(sides, "inbox")


def test_mlist_counts_and_selects_by_folder_and_letter(sides: tuple[Side, Side]) -> None:
    questions = [("-i",), ("-N",), ("-n",), ("-C",), ("-c",), ("-X", "FS"), ("-x", "S")]
    questions += [(f"-{letter}",) for letter in LETTERS + LETTERS.lower()]
    answers = []
    for side in sides:
        fill(side)
        box = side.root / "inbox"
        answers.append([sorted(say(side, "mlist", *each, box).splitlines()) for each in questions])
    assert answers[1] == answers[0]


def test_mflag_sets_and_clears_letters_and_says_the_new_paths(sides: tuple[Side, Side]) -> None:
    steps = [
        ("-FS",),
        ("-f", "-R"),
        ("-X", "ac"),
        ("-T", "-x", "a"),
        ("-dfprst",),
    ]
    answers = []
    for side in sides:
        fill(side)
        side.account.output("minc", side.root / "inbox")
        for words in steps:
            listed = "\n".join(paths(side, str(side.root / "inbox"))) + "\n"
            told = side.account.run("mflag", "-v", *words, input=listed)
            assert told.returncode == 0, told.stderr
            # What it says is where the messages are now, in the order it was asked.
            texts = [Path(path).read_bytes() for path in told.stdout.splitlines()]
            assert len(texts) == 10
            answers.append([*texts, sorted(side.mails())])
    half = len(answers) // 2
    assert answers[half:] == answers[:half]
    assert_same(sides, "inbox")


@pytest.mark.parametrize(
    ("words", "left", "brought"), [((), 5, 5), (("-k", "-C"), 10, 4)], ids=["move", "copy"]
)
def test_mrefile_brings_messages_to_another_folder_with_their_flags(
    sides: tuple[Side, Side], words: tuple[str, ...], left: int, brought: int
) -> None:
    """Under a new name, in cur/; it renames, and with -k it copies to tmp/ first.

    No new message is copied here: its copy in cur/ would end that it is new, which copies share in a mount.
    """
    answers = []
    for side in sides:
        fill(side)
        chosen = paths(side, *words[1:], str(side.root / "inbox"))[::2]
        answers.append(say(side, "mrefile", "-v", *words[:1], *chosen, side.root / "work"))
    assert answers[1] == answers[0]
    assert sides[0].mails("work").total() == brought
    assert sides[0].mails().total() == left
    assert_same(sides, "inbox", "work")


def test_a_message_refiled_there_and_back_and_copied_twice_is_one_message(
    sides: tuple[Side, Side],
) -> None:
    for side in sides:
        inbox, work = side.folder(), side.folder("work")
        side.deliver(make_message(1), "1600000001.x.host:2,F")
        say(side, "mrefile", *paths(side, str(inbox)), work)
        say(side, "mrefile", "-k", *paths(side, str(work)), inbox)
        say(side, "mrefile", "-k", *paths(side, str(work)), inbox)
        say(side, "mflag", "-S", *paths(side, str(work)))
    mounted = sides[1]
    assert mounted.mailfs is not None
    # The flags are the message's, here; in plain folders each copy has its own.
    letters = [{mail.letters for mail in mounted.mails(name)} for name in ("inbox", "work")]
    assert letters == [{"FS"}, {"FS"}]
    assert {name: sides[0].mails(name).total() for name in ("inbox", "work")} == {
        name: mounted.mails(name).total() for name in ("inbox", "work")
    }
    assert mounted.mailfs.count("*") == 1


def test_rm_of_the_paths_that_mpick_answers_takes_them_out(sides: tuple[Side, Side]) -> None:
    answers = []
    for side in sides:
        fill(side)
        box = str(side.root / "inbox")
        listed = "\n".join(paths(side, box)) + "\n"
        picked = side.account.run("mpick", "-t", "flagged", input=listed)
        chosen = picked.stdout.splitlines()
        side.account.output("rm", *chosen)
        answers.append((len(chosen), picked.returncode, say(side, "mlist", "-i", box)))
    assert answers[1] == answers[0]
    assert answers[0][0] == 2
    assert_same(sides, "inbox")


def test_a_sequence_stays_good_while_its_messages_get_flags(sides: tuple[Side, Side]) -> None:
    """mseq -f finds a message again by its name without letters."""
    answers = []
    for side in sides:
        fill(side)
        box = str(side.root / "inbox")
        listed = "\n".join(paths(side, box)) + "\n"
        (side.account.home / ".mblaze").mkdir(exist_ok=True)
        say(side, "mseq", "-S", input=listed)
        side.account.output("mflag", "-F", "1:4")
        fixed = side.account.run("mseq", "-f", input=listed)
        say(side, "mseq", "-S", input=fixed.stdout)
        answers.append(
            [
                MADE_UP.sub("NAME", fixed.stdout.replace(str(side.root), "ROOT")),
                say(side, "mscan", "-f", r"%M %f %S %i", "1:9"),
                say(side, "magrep", "subject:a subject", "2"),
                say(side, "mshow", "3"),
            ]
        )
    assert answers[1] == answers[0]


def test_mdirs_and_mmkdir_make_and_find_folders(sides: tuple[Side, Side]) -> None:
    """A mount has the views of a new store beside them."""
    own = {"ROOT/all", "ROOT/flagged", "ROOT/unread"}
    answers = []
    for side in sides:
        side.folder()
        for name in ("fresh", "fresh/below", "fresh"):
            say(side, "mmkdir", side.root / name)
        say(side, "mdeliver", side.root / "fresh/below", input=make_message(1).decode())
        answers.append(set(say(side, "mdirs", "-a", side.root).splitlines()) - own)
    assert answers[1] == answers[0] == {"ROOT/inbox", "ROOT/fresh", "ROOT/fresh/below"}
    assert_same(sides, "fresh/below")


@pytest.mark.parametrize("name", ["outbox", ".outbox"])
def test_what_mcom_sends_is_kept_in_its_outbox(sides: tuple[Side, Side], name: str) -> None:
    """It delivers an empty message to cur/, writes into that, and moves another with a Date over it.

    In a folder whose name begins with a dot all that happens to ordinary files.
    """
    answers = []
    for side in sides:
        settings = side.account.home / ".mblaze"
        settings.mkdir(exist_ok=True)
        outbox = side.root / name
        profile = ["Local-Mailbox: ann@example.org", "FQDN: example.org", f"Outbox: {outbox}"]
        profile += ["Sendmail: cat", "Sendmail-Args: -"]
        (settings / "profile").write_text("\n".join(profile) + "\n")
        body = side.account.home / "body"
        body.write_text("what Ann has to say\n")
        say(side, "mmkdir", outbox, side.root / "sent")
        words = ("-to", "bob@example.org", "-subject", "hello", "-body", body, "-send")
        sent = side.account.run("mcom", *words)
        kept = paths(side, str(outbox))
        text = Path(kept[0]).read_text()
        assert "Subject: hello\n" in text
        assert "what Ann has to say\n" in text
        # Message-ID and Date are of the moment.
        heads = sorted(line.partition(":")[0] for line in text.splitlines())
        answers.append((sent.returncode, sent.stderr, len(kept), heads))
        say(side, "mrefile", *kept, side.root / "sent")
        answers.append(
            (0, "", side.mails("sent").total(), [mail[1] for mail in side.mails("sent")])
        )
    assert answers[2:] == answers[:2]
    assert answers[1] == (0, "", 1, ["S"])


def test_mdeliver_and_mrefile_fail_where_a_view_refuses(mounted: Side) -> None:
    """The message stays where it was: mdeliver leaves it in tmp/, as it does wherever it cannot rename."""
    fill(mounted)
    carol = mounted.folder("from:carol")
    before = mounted.mails()
    say(mounted, "mdeliver", carol, input=make_message(1).decode(), code=2)
    assert [path.read_bytes() for path in (carol / "tmp").iterdir()] == [make_message(1)]
    (chosen, *_) = paths(mounted, str(mounted.root / "inbox"))
    # It ends with 0 all the same, as on any file system.
    assert "Operation not permitted" in mounted.account.run("mrefile", chosen, carol).stderr
    assert mounted.mails() == before
    assert mounted.mails("from:carol").total() == 0


def test_what_is_delivered_to_a_view_of_flags_has_them(mounted: Side) -> None:
    flagged, unread, everything = (mounted.root / view for view in ("flagged", "unread", "all"))
    for number, view in enumerate((flagged, unread, everything)):
        say(mounted, "mdeliver", view, input=make_message(number).decode())
    listed = [len(paths(mounted, str(view))) for view in (flagged, unread, everything)]
    assert listed == [1, 3, 3]
    (path,) = paths(mounted, "-F", str(everything))
    assert Path(path).read_bytes() == make_message(0)
