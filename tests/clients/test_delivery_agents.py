"""procmail, maildrop, fdm and getmail: a message brought into a mount is there as in a plain Maildir.

Each agent has its own way from tmp/ to new/: procmail, fdm and getmail link and unlink, maildrop of Courier writes the
inode number of its file in tmp/ into the name; fdm also reads Maildirs and takes messages out of them.
"""

import os
import re
import shutil
import socketserver
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.sides import Side
from tests.fakes import make_mbox, make_message
from tests.mount.accounts import Account, ourselves
from tests.mount.conftest import as_ordinary, packages, public_folder
from tests.mount.mounting import Mailfs

__all__ = ["as_ordinary", "packages", "public_folder"]

Answer = tuple[int, str, str]  # exit code, and what was said on standard output and error
Agent = Callable[[Side, bytes, tuple[str, ...]], Answer]

ODD_MESSAGES = {
    "plain": make_message(1),
    "8bit": make_message(2, subject="gr\xfc\xdfe", body="Stra\xdfe"),
    "mbox-like body": make_message(3, body="From here on\n>From there\n."),
    "no newline at the end": make_message(4).rstrip(b"\n"),
    "large": make_message(5, body="a line of text, and some more of it\n" * 30_000),
    "no body": b"From: ann@example.org\nSubject: no body\n\n",
    "no message-id": b"From: ann@example.org\nSubject: no name\n\nbody\n",
}


def run(side: Side, *words: str | Path, input: bytes = b"") -> Answer:
    """Run a program; what it says, without the folder's own path and without the numbers of that moment."""
    done = side.account.run(*words, input=input.decode("utf-8", "surrogateescape"))
    said = (done.stdout, done.stderr)
    out, err = (re.sub(r"\d+", "N", each.replace(str(side.root), "ROOT")) for each in said)
    return done.returncode, out, err


def write_rules(side: Side, name: str, text: str) -> Path:
    """A configuration file that only its owner may read, as these programs ask for."""
    path = side.account.home / f"{side.name}-{name}"
    path.write_text(text)
    path.chmod(0o600)
    side.account.own(path)
    return path


def own_copy(side: Side, name: str) -> Path:
    """A program without its setuid and setgid bits: FUSE lets in only who has no other group than the mounter's.

    Debian's procmail and maildrop are setgid mail, for spool folders; nobody's own Maildir needs that.
    """
    path = side.account.home / name
    if not path.exists():
        shutil.copyfile(shutil.which(name) or name, path)
        path.chmod(0o755)
    return path


def by_procmail(side: Side, raw: bytes, folders: tuple[str, ...]) -> Answer:
    *others, last = folders
    rules = [f"MAILDIR={side.root}", f"DEFAULT={side.root}/{last}/"]
    rules += [f":0 c\n{folder}/" for folder in others]
    return run_procmail(side, "\n".join(rules) + "\n", raw)


def run_procmail(side: Side, rules: str, raw: bytes) -> Answer:
    words = (own_copy(side, "procmail"), "-m", write_rules(side, "procmailrc", rules))
    return run(side, *words, input=raw)


def by_maildrop(side: Side, raw: bytes, folders: tuple[str, ...]) -> Answer:
    *others, last = folders
    rules = [f'cc "{side.root}/{folder}/"' for folder in others]
    rules += [f'to "{side.root}/{last}/"']
    config = write_rules(side, "mailfilter", "\n".join(rules) + "\n")
    return run(side, own_copy(side, "maildrop"), config, input=raw)


def by_fdm(side: Side, raw: bytes, folders: tuple[str, ...]) -> Answer:
    return run_fdm(side, 'account "in" stdin', folders, raw)


def run_fdm(side: Side, source: str, folders: tuple[str, ...], raw: bytes = b"") -> Answer:
    """One fetch by fdm from `source`, a line of its configuration, to some folders."""
    home = side.account.home
    rules = [
        f'set default-user "{side.account.name}"',
        f'set lock-file "{home}/fdm.lock"',
        # Its Received line has the second of the delivery.
        "set no-received",
        source,
    ]
    for number, folder in enumerate(folders):
        rules += [
            f'action "to{number}" maildir "{side.root}/{folder}"',
            # The last one ends the search: a message that goes on to the end is kept at its source.
            f'match all action "to{number}"' + " continue" * (folder != folders[-1]),
        ]
    config = write_rules(side, "fdm.conf", "\n".join(rules) + "\n")
    code, out, err = run(side, "fdm", "-f", config, "fetch", input=raw)
    # It wants folders of mode 0700, says so when they are not, and goes on; and it says how long it took.
    kept = [line for line in err.splitlines() if "bad permissions" not in line]
    return code, out, re.sub(r"in [N.]+ seconds.*", "", "\n".join(kept))


AGENTS: dict[str, Agent] = {"procmail": by_procmail, "maildrop": by_maildrop, "fdm": by_fdm}


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture(params=list(AGENTS))
def agent(request: pytest.FixtureRequest) -> Agent:
    needs(str(request.param))
    return AGENTS[str(request.param)]


def names(side: Side, folder: str = "inbox") -> list[str]:
    return sorted(os.listdir(side.root / folder / "new"))


def assert_same_now_and_after_the_next_mount(
    sides: tuple[Side, Side], folders: tuple[str, ...]
) -> None:
    """The same messages in both; and in the mount the names they were given, for ever."""
    plain, mounted = sides
    assert mounted.mailfs is not None
    before = {folder: names(mounted, folder) for folder in folders}
    assert {folder: mounted.mails(folder) for folder in folders} == {
        folder: plain.mails(folder) for folder in folders
    }
    mounted.mailfs.umount()
    mounted.mailfs.mount()
    assert {folder: names(mounted, folder) for folder in folders} == before
    for folder in folders:
        assert mounted.mails(folder) == plain.mails(folder)
        assert os.listdir(mounted.root / folder / "tmp") == []


# --- one message, and its copies


def test_what_is_delivered_is_there_byte_for_byte_under_the_name_it_was_given(
    sides: tuple[Side, Side], agent: Agent
) -> None:
    answers = []
    for side in sides:
        side.folder()
        answers.append([agent(side, raw, ("inbox",)) for raw in ODD_MESSAGES.values()])
    assert answers[1] == answers[0]
    assert {code for code, _, _ in answers[0]} == {0}
    assert sides[0].mails().total() == len(ODD_MESSAGES)
    assert_same_now_and_after_the_next_mount(sides, ("inbox",))
    # The same kind of name in both: maildrop's has the inode and the size in it.
    kinds = [{re.sub(r"[0-9A-F]+", "N", name) for name in names(side)} for side in sides]
    assert kinds[1] == kinds[0]


def test_one_delivery_to_two_folders_is_one_message_with_both_keywords(
    sides: tuple[Side, Side], agent: Agent
) -> None:
    answers = []
    for side in sides:
        for folder in ("inbox", "work"):
            side.folder(folder)
        answers.append(agent(side, make_message(1), ("work", "inbox")))
    assert answers[1] == answers[0]
    mailfs = sides[1].mailfs
    assert mailfs is not None
    assert mailfs.count("*") == 1
    assert {"inbox", "work"} <= mailfs.keywords()["1@example.org"]
    assert_same_now_and_after_the_next_mount(sides, ("inbox", "work"))


def test_a_message_delivered_twice_is_there_twice_and_goes_with_its_last_name(
    sides: tuple[Side, Side], agent: Agent
) -> None:
    for side in sides:
        side.folder()
        for _ in range(2):
            assert agent(side, make_message(1), ("inbox",))[0] == 0
    assert sides[0].mails().total() == 2
    assert_same_now_and_after_the_next_mount(sides, ("inbox",))
    for left in (1, 0):
        for side in sides:
            (side.root / "inbox" / "new" / names(side)[0]).unlink()
        assert sides[0].mails().total() == left
        assert_same_now_and_after_the_next_mount(sides, ("inbox",))


def test_deliveries_at_the_same_time_do_not_hinder_one_another(
    sides: tuple[Side, Side], agent: Agent
) -> None:
    for side in sides:
        side.folder()
        failed: list[Answer] = []

        def bring(first: int, side: Side = side, failed: list[Answer] = failed) -> None:
            for number in range(first, first + 5):
                answer = agent(side, make_message(number), ("inbox",))
                if answer[0] != 0:
                    failed.append(answer)

        # A configuration file and fdm's lock file are for one home.
        lanes = [
            threading.Thread(target=bring, args=(first,), kwargs={"side": at_home(side, first)})
            for first in (10, 20, 30)
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        assert failed == []
    assert sides[0].mails().total() == 15
    assert_same_now_and_after_the_next_mount(sides, ("inbox",))


def at_home(side: Side, number: int) -> Side:
    """The same side with another home."""
    home = side.account.home / str(number)
    home.mkdir(exist_ok=True)
    return Side(side.name, side.root, ourselves(home), side.mailfs)


@pytest.mark.parametrize(
    ("name", "missing"), [("procmail", "fresh"), ("fdm", "fresh"), ("fdm", "lists/fresh")]
)
def test_an_agent_makes_a_folder_that_is_missing(
    sides: tuple[Side, Side], name: str, missing: str
) -> None:
    """procmail makes no folder above it, maildrop makes none at all."""
    needs(name)
    answers = [AGENTS[name](side, make_message(1), (missing,)) for side in sides]
    assert answers[1] == answers[0]
    assert answers[0][0] == 0
    assert_same_now_and_after_the_next_mount(sides, (missing,))


def test_a_delivery_that_a_view_refuses_goes_to_procmails_default(mounted: Side) -> None:
    """The view of a query takes only what matches it."""
    needs("procmail")
    for folder in ("from:carol", "inbox"):
        mounted.folder(folder)
    rules = f"MAILDIR={mounted.root}\nDEFAULT={mounted.root}/inbox/\n:0\nfrom:carol/\n"
    for number, sender in enumerate(("ann", "carol"), 1):
        raw = make_message(number, sender=f"{sender}@example.org")
        assert run_procmail(mounted, rules, raw)[0] == 0
        assert len(names(mounted)) == 1
    assert len(names(mounted, "from:carol")) == 1


@pytest.mark.parametrize("name", ["maildrop", "fdm"])
def test_a_delivery_that_a_view_refuses_is_an_error(mounted: Side, name: str) -> None:
    """maildrop's exit code asks for another try; fdm only says it, so its source must be one that keeps messages."""
    needs(name)
    mounted.folder("from:carol")
    code, _, err = AGENTS[name](mounted, make_message(1), ("from:carol",))
    assert code == {"maildrop": os.EX_TEMPFAIL, "fdm": 0}[name]
    assert {"maildrop": "link() failed", "fdm": "Operation not permitted"}[name] in err
    assert names(mounted, "from:carol") == []
    carols = make_message(2, sender="carol@example.org")
    assert AGENTS[name](mounted, carols, ("from:carol",))[0] == 0
    assert len(names(mounted, "from:carol")) == 1


@pytest.mark.parametrize("name", ["procmail", "maildrop"])
def test_a_setgid_program_is_let_in_with_allow_other(mounted: Side, name: str) -> None:
    """The kernel's rule, for every mount of FUSE; the message is refused, so whoever called tries again or bounces it."""
    needs(name)
    installed = Path(shutil.which(name) or name)
    if not installed.stat().st_mode & stat.S_ISGID:
        pytest.skip(f"{name} is not installed setgid here")
    if os.getuid() != 0:
        pytest.skip("allow_other is for root, or needs user_allow_other in /etc/fuse.conf")
    assert mounted.mailfs is not None
    path = mounted.account.home / name
    path.symlink_to(installed)
    assert AGENTS[name](mounted, make_message(1), ("inbox",))[0] in (
        os.EX_CANTCREAT,
        os.EX_TEMPFAIL,
    )
    assert names(mounted) == []
    mounted.mailfs.umount()
    mounted.mailfs.mount("-o", "allow_other")
    assert AGENTS[name](mounted, make_message(1), ("inbox",)) == (0, "", "")
    assert len(names(mounted)) == 1


# --- what else they do in a folder


def test_procmail_keeps_its_log_its_lock_and_formails_cache_of_message_ids_in_a_folder(
    sides: tuple[Side, Side],
) -> None:
    needs("procmail", "formail")
    answers = []
    for side in sides:
        side.folder()
        box = side.root / "inbox"
        rules = [
            f"MAILDIR={side.root}",
            f"DEFAULT={box}/",
            f"LOGFILE={box}/procmail.log",
            f":0 Wh : {box}/msgid.lock",
            f"| formail -D 8192 {box}/msgid.cache",
            f":0 : {box}/.lock",
            f"{box}/",
        ]
        text = "\n".join(rules) + "\n"
        for number in (1, 2, 1):
            answers.append(run_procmail(side, text, make_message(number)))
        log = (box / "procmail.log").read_text().replace(str(side.root), "ROOT")
        answers.append((0, re.sub(r"\d+", "N", log), ""))
    half = len(answers) // 2
    assert answers[half:] == answers[:half]
    assert sides[0].mails().total() == 2
    assert sides[1].files() == sides[0].files()
    assert {"msgid.cache", "procmail.log"} <= sides[0].files()
    assert_same_now_and_after_the_next_mount(sides, ("inbox",))
    caches = [(side.root / "inbox" / "msgid.cache").read_bytes() for side in sides]
    assert caches[1] == caches[0] != b""


def test_formail_splits_an_mbox_into_many_deliveries(sides: tuple[Side, Side]) -> None:
    needs("procmail", "formail")
    raws = [make_message(number) for number in range(30)]
    for side in sides:
        side.folder()
        rules = f"MAILDIR={side.root}\nDEFAULT={side.root}/inbox/\n"
        config = write_rules(side, "procmailrc", rules)
        words = ("formail", "-s", own_copy(side, "procmail"), "-m", config)
        assert run(side, *words, input=b"".join(make_mbox(raws)))[0] == 0
    assert sides[0].mails().total() == len(raws)
    assert_same_now_and_after_the_next_mount(sides, ("inbox",))


def test_a_folder_and_a_subfolder_of_maildirmake_take_deliveries(sides: tuple[Side, Side]) -> None:
    """A Maildir++ subfolder is a folder on the disk: no saved search, only files."""
    needs("maildrop", "maildirmake.maildrop")
    answers = []
    for side in sides:
        made = "maildirmake.maildrop"
        answers.append(
            [
                run(side, made, side.root / "fresh"),
                run(side, made, "-f", "sub", side.root / "fresh"),
                by_maildrop(side, make_message(1), ("fresh", "fresh/.sub")),
            ]
        )
    assert answers[1] == answers[0]
    assert {code for code, _, _ in answers[0]} == {0}
    assert_same_now_and_after_the_next_mount(sides, ("fresh", "fresh/.sub"))


def test_deliverquota_counts_what_is_in_a_folder(sides: tuple[Side, Side]) -> None:
    """maildirsize is written beside cur/ and replaced with rename; over the quota the message is bounced."""
    deliverquota = shutil.which("deliverquota.maildrop", path="/usr/sbin:/usr/bin")
    if deliverquota is None:
        pytest.skip("deliverquota.maildrop is not installed")
    answers = []
    for side in sides:
        box = side.folder()
        size = len(make_message(1))
        run(side, "maildirmake.maildrop", "-q", f"{3 * size}S", box)
        answers.append(
            [run(side, deliverquota, box, input=make_message(number)) for number in range(1, 5)]
            + [(0, (box / "maildirsize").read_text(), "")]
        )
    assert answers[1] == answers[0]
    assert {code for code, _, _ in answers[0]} == {0, 77}
    assert_same_now_and_after_the_next_mount(sides, ("inbox",))


# --- as an ordinary user: getmail delivers no mail as root, fdm fetches none


class _Mailboxes(socketserver.ThreadingTCPServer):
    """A POP3 server (RFC 1939) with the same messages for whoever asks, on a port of its own."""

    daemon_threads = True
    messages: tuple[bytes, ...] = ()


class _Pop3(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self._say(b"+OK")
        for line in self.rfile:
            command, *rest = line.upper().split() or [b""]
            if command == b"CAPA":
                self._say(b"-ERR")
                continue
            self._say(b"+OK")
            if command == b"QUIT":
                return
            if command in (b"UIDL", b"LIST", b"RETR"):
                self._say_all(self._lines(command, rest))

    def _lines(self, command: bytes, rest: list[bytes]) -> list[bytes]:
        assert isinstance(self.server, _Mailboxes)
        messages = self.server.messages
        if command == b"RETR":
            return messages[int(rest[0]) - 1].split(b"\n")[:-1]
        return [
            b"%d %s" % (number, b"u%d" % number if command == b"UIDL" else b"%d" % len(raw))
            for number, raw in enumerate(messages, 1)
        ]

    def _say(self, line: bytes) -> None:
        self.wfile.write(line + b"\r\n")

    def _say_all(self, lines: list[bytes]) -> None:
        for line in lines:
            self._say(b"." + line if line.startswith(b".") else line)
        self._say(b".")


@contextmanager
def pop3_server(*messages: bytes) -> Iterator[int]:
    """Serve these messages; yields the port."""
    with _Mailboxes(("127.0.0.1", 0), _Pop3) as server:
        server.messages = messages
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


class Found(NamedTuple):
    name: str
    content: str


@pytest.fixture
def ordinary_account(request: pytest.FixtureRequest, tmp_path: Path) -> Account:
    """Whoever runs the tests, unless it is root."""
    if os.getuid() == 0:
        found = request.getfixturevalue("as_ordinary")
        assert isinstance(found, Account)
        return found
    home = tmp_path / "getmail"
    home.mkdir()
    return ourselves(home)


@pytest.fixture
def ordinary_mailfs(ordinary_account: Account) -> Iterator[Mailfs]:
    folder = ordinary_account.home / "files"
    folder.mkdir()
    ordinary_account.own(folder)
    made = Mailfs(ordinary_account, folder)
    made.create()
    made.mount()
    yield made
    made.end()


def test_getmail_brings_what_a_pop3_server_has(
    ordinary_account: Account, ordinary_mailfs: Mailfs
) -> None:
    needs("getmail")
    account = ordinary_account
    plain = account.home / "plain" / "inbox"
    account.output("mkdir", "-p", *(plain / part for part in ("cur", "new", "tmp")))
    raws = [ODD_MESSAGES[name] for name in ("plain", "8bit", "mbox-like body", "large")]
    found = []
    with pop3_server(*raws) as port:
        for number, box in enumerate((plain, ordinary_mailfs.path("inbox"))):
            config = account.home / f"getmail-{number}"
            config.mkdir()
            (config / "getmailrc").write_text(getmailrc(port, box))
            account.own(config)
            done = account.run("getmail", "--getmaildir", config)
            assert done.returncode == 0, (done.stdout, done.stderr)
            # Once more, with what it knows: nothing is new.
            done = account.run("getmail", "--getmaildir", config)
            assert done.returncode == 0, (done.stdout, done.stderr)
            found.append(Counter(content for _, content in in_folder(account, box)))
    assert found[1] == found[0]
    assert found[0].total() == len(raws)
    names = {each.name for each in in_folder(account, ordinary_mailfs.path("inbox"))}
    ordinary_mailfs.umount()
    ordinary_mailfs.mount()
    assert {each.name for each in in_folder(account, ordinary_mailfs.path("inbox"))} == names


def test_fdm_takes_messages_out_of_one_folder_and_brings_them_to_another(
    ordinary_account: Account, ordinary_mailfs: Mailfs
) -> None:
    needs("fdm")
    account = ordinary_account
    found, answers = [], []
    plain = Side("plain", account.home / "plain", account, None)
    for side in (plain, Side("mounted", ordinary_mailfs.mountpoint, account, ordinary_mailfs)):
        for number in range(1, 4):
            answers.append(by_fdm(side, make_message(number), ("inbox",)))
        inbox, work = side.root / "inbox", side.root / "work"
        assert len(in_folder(account, inbox)) == 3
        answers.append(run_fdm(side, f'account "box" maildir "{inbox}"', ("work",)))
        assert in_folder(account, inbox) == []
        found.append(Counter(content for _, content in in_folder(account, work)))
    assert answers[len(answers) // 2 :] == answers[: len(answers) // 2]
    assert {code for code, _, _ in answers} == {0}
    assert found[1] == found[0]
    assert found[0].total() == 3
    assert ordinary_mailfs.count("tag:work not tag:inbox") == 3


def getmailrc(port: int, box: Path) -> str:
    lines = ["[retriever]", "type = SimplePOP3Retriever", "server = 127.0.0.1", f"port = {port}"]
    lines += ["username = bob", "password = secret"]
    lines += ["[destination]", "type = Maildir", f"path = {box}/"]
    # What it may add to a message has the time in it.
    lines += ["[options]", "read_all = false", "received = false", "delivered_to = false"]
    return "\n".join(lines) + "\n"


def in_folder(account: Account, box: Path) -> list[Found]:
    """Names and digests, as the account sees them: the mount is for nobody else."""
    lines = account.output("find", box, "-type", "f", "-exec", "sha256sum", "{}", "+").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines]
    return [Found(str(Path(path).relative_to(box)), digest) for digest, path in pairs]
