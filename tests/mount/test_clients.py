"""mutt, neomutt, mblaze and Python's mailbox: the same mail with the same flags as in an ordinary Maildir.

Which client sets and clears which letter: mutt and neomutt S (set-flag and toggle-new), R and F (set-flag) and T
(delete-message with maildir_trash); they know no D (draft) and no P (passed), and must keep them. mflag of mblaze sets
and clears all six.
"""

import mailbox
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailfs.message.keywords import flags_of_letters, keywords_of_flags
from mailfs.message.parse import parse_message
from tests.mount.mounting import Mailfs
from tests.mount.terminal import run_in_terminal

pytestmark = pytest.mark.corpus

LETTERS = "DFPRST"
Listing = dict[str, str]  # Message-ID -> what a client says of its flags

# All combinations of the letters.
COMBINATIONS = [
    "".join(letter for bit, letter in enumerate(LETTERS) if number >> bit & 1)
    for number in range(1 << len(LETTERS))
]
RECENT_MESSAGES = 4


def keywords_of(letters: str) -> set[str]:
    return set(keywords_of_flags(flags_of_letters(letters.encode())))


@pytest.fixture(scope="session")
def usable_messages(unpacked_corpus: Path) -> list[bytes]:
    """Messages with a Message-ID of their own, on one line, which every client reads alike."""
    found: dict[str, bytes] = {}
    for path in sorted((unpacked_corpus / "blinux-list").rglob("*")):
        raw = path.read_bytes() if path.is_file() else b""
        head = raw.partition(b"\n\n")[0]
        ids = re.findall(rb"(?im)^message-id: <([\w.+=@-]+)>$", head)
        if len(ids) == 1 and parse_message(raw).message_id == ids[0].decode():
            found.setdefault(ids[0].decode(), raw)
    assert len(found) > len(COMBINATIONS) + RECENT_MESSAGES
    return list(found.values())


@pytest.fixture
def original(usable_messages: list[bytes], tmp_path: Path) -> Path:
    """An ordinary Maildir with every combination of flags in cur/, and some mail in new/."""
    root = tmp_path / "original" / "Mail"
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    for number, letters in enumerate(COMBINATIONS):
        (root / f"cur/{1_600_000_000 + number}.x.host:2,{letters}").write_bytes(
            usable_messages[number]
        )
    for number in range(RECENT_MESSAGES):
        raw = usable_messages[len(COMBINATIONS) + number]
        (root / f"new/{1_600_001_000 + number}.y.host").write_bytes(raw)
    return root


@pytest.fixture
def mailfs_of_original(mailfs: Mailfs, original: Path) -> Mailfs:
    mailfs.create()
    mailfs.say("import", "-k", "inbox", original)
    mailfs.mount()
    return mailfs


# --- what clients say


def by_mailbox(mailfs: Mailfs, path: Path) -> Listing:
    found = {}
    for message in mailbox.Maildir(path, create=False):
        assert isinstance(message, mailbox.MaildirMessage)
        found[str(message["Message-ID"]).strip("<>")] = (
            f"{message.get_subdir()} {message.get_flags()}"
        )
    return found


def by_mblaze(mailfs: Mailfs, path: Path) -> Listing:
    files = mailfs.account.output("mlist", path)
    scanned = mailfs.account.run("mscan", "-f", r"%I\t%M", input=files)
    assert scanned.returncode == 0, scanned.stderr
    return dict(
        line.strip("<>").replace(">", "").split("\t") for line in scanned.stdout.splitlines()
    )


MUTT_PATTERNS = {
    "N": "new",
    "O": "old",
    "R": "read",
    "F": "flagged",
    "Q": "replied",
    "D": "deleted",
}


def mutt_words(client: str, folder: Path, mail: Path, *commands: str) -> list[str]:
    """A client that does these commands in a mailbox and leaves it as `commands` say."""
    rc = folder / "muttrc"
    settings = [
        "mbox_type=Maildir",
        f'folder="{folder}"',
        "header_cache=",
        "maildir_trash=yes",
        "mark_old=no",
        "pipe_split=yes",
        "pipe_decode=no",
        "wait_key=no",
        "move=no",
        "delete=yes",
        "quit=yes",
        "confirmappend=no",
        "resolve=no",
        "auto_tag=no",
        "sort=mailbox-order",
    ]
    lines = [f"set {setting}" for setting in settings if not setting.endswith("=")]
    lines += [f"push '{command}'" for command in reversed(commands)]
    rc.write_text("\n".join(lines) + "\n")
    return [client, "-n", "-F", str(rc), "-f", str(mail)]


def by_mutt(client: str) -> "Callable[[Mailfs, Path], Listing]":
    def listing(mailfs: Mailfs, path: Path) -> Listing:
        folder = mailfs.account.home
        commands = []
        for pattern, word in MUTT_PATTERNS.items():
            out = folder / word
            out.write_text("")
            script = folder / f"{word}.sh"
            script.write_text(f"sed -n '/^$/q;s/^message-id: <\\(.*\\)>/\\1/Ip' >> {out}\n")
            commands += [
                "<untag-pattern>~A<enter>",
                f"<tag-pattern>~{pattern}<enter>",
                f"<tag-prefix-cond><pipe-message>sh {script}<enter><end-cond>",
            ]
        words = mutt_words(client, folder, path, *commands, "<exit>")
        shown = run_in_terminal(mailfs.account, words, folder)
        found: dict[str, list[str]] = {}
        for word in MUTT_PATTERNS.values():
            for message_id in (folder / word).read_text().split():
                found.setdefault(message_id, []).append(word)
        assert found, shown[-2000:]
        return {message_id: " ".join(words) for message_id, words in found.items()}

    return listing


CLIENTS: dict[str, "Callable[[Mailfs, Path], Listing]"] = {
    "mailbox.Maildir": by_mailbox,
    "mlist": by_mblaze,
    "mutt": by_mutt("mutt"),
    "neomutt": by_mutt("neomutt"),
}


@pytest.fixture(params=list(CLIENTS))
def client_listing(request: pytest.FixtureRequest) -> "Callable[[Mailfs, Path], Listing]":
    name = str(request.param)
    if name != "mailbox.Maildir" and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return CLIENTS[name]


def test_a_client_lists_the_same_messages_with_the_same_flags_as_in_the_original(
    mailfs_of_original: Mailfs,
    original: Path,
    client_listing: "Callable[[Mailfs, Path], Listing]",
) -> None:
    mailfs = mailfs_of_original
    before = client_listing(mailfs, original)
    assert len(before) == len(COMBINATIONS) + RECENT_MESSAGES
    assert len(set(before.values())) > 8
    for view in ("inbox", "all"):
        assert client_listing(mailfs, mailfs.path(view)) == before
    mailfs.umount()
    mailfs.mount()
    assert client_listing(mailfs, mailfs.path("inbox")) == before


# --- what clients change


def assert_kept(mailfs: Mailfs, expected: dict[str, set[str]], view: str) -> None:
    """In the store now, and after the next mount in the names too."""
    own = {"inbox", "mail"}
    assert {key: words - own for key, words in mailfs.keywords().items()} == expected
    mailfs.umount()
    mailfs.mount()
    assert {key: words - own for key, words in mailfs.keywords().items()} == expected
    # Where they were set: T is a mark of the entry in one view.
    names = by_mblaze(mailfs, mailfs.path(view))
    assert {key: keywords_of(letters) for key, letters in names.items()} == expected


SET_WITH_MUTT = {
    "S": "<clear-flag>N",
    "R": "<set-flag>r",
    "F": "<set-flag>!",
    "T": "<delete-message>",
}
CLEAR_WITH_MUTT = {
    "S": "<toggle-new>",
    "R": "<clear-flag>r",
    "F": "<clear-flag>!",
    "T": "<undelete-message>",
}


@pytest.mark.parametrize("client", ["mutt", "neomutt"])
def test_mutt_sets_and_clears_flags_and_keeps_the_letters_it_does_not_know(
    mailfs: Mailfs, usable_messages: list[bytes], tmp_path: Path, client: str
) -> None:
    if shutil.which(client) is None:
        pytest.skip(f"{client} is not installed")
    source = tmp_path / "source" / "Mail"
    for part in ("cur", "new", "tmp"):
        (source / part).mkdir(parents=True)
    commands: list[str] = []
    expected: dict[str, set[str]] = {}
    number = 0
    for setting, table in ((True, SET_WITH_MUTT), (False, CLEAR_WITH_MUTT)):
        for letter, command in table.items():
            raw = usable_messages[number]
            has = "DP" if setting else "".join(sorted("DP" + letter))
            (source / f"cur/{1_600_000_000 + number}.x.host:2,{has}").write_bytes(raw)
            message_id = parse_message(raw).message_id
            commands.append(f"<search>~i {re.escape(message_id)}<enter>{command}")
            # To mutt what was replied to is read.
            implied = "S" if setting and letter == "R" else ""
            expected[message_id] = keywords_of("DP" + implied + (letter if setting else ""))
            number += 1
    mailfs.create()
    mailfs.say("import", source)
    mailfs.mount()
    words = mutt_words(
        client, mailfs.account.home, mailfs.path("all"), *commands, "<sync-mailbox><exit>"
    )
    shown = run_in_terminal(mailfs.account, words, mailfs.account.home)
    assert mailfs.keywords().keys() == expected.keys(), shown[-2000:]
    assert_kept(mailfs, expected, "all")


@pytest.mark.parametrize("letter", LETTERS)
def test_mflag_sets_and_clears_every_letter(mailfs_of_original: Mailfs, letter: str) -> None:
    mailfs = mailfs_of_original
    if shutil.which("mflag") is None:
        pytest.skip("mblaze is not installed")
    word = next(iter(keywords_of(letter)))
    before = {key: words - {"inbox", "mail"} for key, words in mailfs.keywords().items()}
    # mflag leaves mail in new/ alone; minc moves it to cur/ first.
    listed = mailfs.account.output("mlist", "-C", mailfs.path("inbox")).splitlines()
    paths = {id_of(Path(path)): path for path in listed}
    without = [key for key, words in before.items() if key in paths and word not in words][:3]
    having = [key for key, words in before.items() if key in paths and word in words][:3]
    expected = dict(before)
    for message_ids_, flag, change in (
        (without, letter, set.union),
        (having, letter.lower(), set.difference),
    ):
        mailfs.account.output("mflag", f"-{flag}", *(paths[key] for key in message_ids_))
        for key in message_ids_:
            expected[key] = change(before[key], {word})
    assert len(without) == len(having) == 3
    assert_kept(mailfs, expected, "inbox")


def id_of(path: Path) -> str:
    return parse_message(path.read_bytes()).message_id


def test_mail_read_with_mutt_in_unread_moves_from_new_to_cur_and_is_seen(
    mailfs_of_original: Mailfs,
) -> None:
    """The everyday use: open `unread`, display a message, leave."""
    mailfs = mailfs_of_original
    if shutil.which("mutt") is None:
        pytest.skip("mutt is not installed")
    (path, *_) = sorted(mailfs.path("unread/new").iterdir())
    message_id = id_of(path)
    unread = mailfs.count("is:unread")
    commands = (
        f"<search>~i {re.escape(message_id)}<enter><display-message><exit>",
        "<sync-mailbox><exit>",
    )
    words = mutt_words("mutt", mailfs.account.home, mailfs.path("unread"), *commands)
    shown = run_in_terminal(mailfs.account, words, mailfs.account.home)
    assert mailfs.count("is:unread") == unread - 1, shown[-2000:]
    assert "$seen" in mailfs.keywords()[message_id]
    in_all = {id_of(each): each for each in mailfs.path("all/cur").iterdir()}
    assert in_all[message_id].name.endswith(":2,S")
