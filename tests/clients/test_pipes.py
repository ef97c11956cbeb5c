"""procmail, maildrop, fdm and getmail with `mailfs deliver` at the end of a pipe, as the manual shows them."""

import os
import re
from pathlib import Path

import pytest

from tests.clients.sides import Side
from tests.clients.test_delivery_agents import (
    ODD_MESSAGES,
    Answer,
    ordinary_account,
    ordinary_mailfs,
    own_copy,
    pop3_server,
    run,
    write_rules,
)
from tests.fakes import PROJECT, make_mbox, make_message
from tests.mount.accounts import Account
from tests.mount.conftest import as_ordinary, packages, public_folder
from tests.mount.mounting import Mailfs

__all__ = ["as_ordinary", "ordinary_account", "ordinary_mailfs", "packages", "public_folder"]

# maildrop and fdm end a message with a newline.
RAWS = {name: raw for name, raw in ODD_MESSAGES.items() if raw.endswith(b"\n")}
# What getmail puts before a message it pipes.
GETMAILS_FIELD = b"Return-Path: <unknown>\n"
PIPES = ("procmail", "maildrop", "fdm")


def command_path(account: Account, store: Path) -> Path:
    """The command `mailfs`, in a folder of its own, for this store."""
    folder = account.home / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / "mailfs"
    found = account.packages or PROJECT
    words = f'{account.python} -W error -m mailfs --store "{store}" "$@"'
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{found}" exec {words}\n')
    path.chmod(0o755)
    account.own(folder)
    return path


def by_pipe(agent: str, side: Side, raw: bytes, view: str = "") -> Answer:
    """One message by this agent to `mailfs deliver VIEW`."""
    assert side.mailfs is not None
    search_path = f"{command_path(side.account, side.mailfs.store).parent}:/usr/bin:/bin"
    command = f"mailfs deliver {view}".strip()
    if agent == "procmail":
        rules = [f"PATH={search_path}", f"DEFAULT={side.account.home}/lost"]
        rules += [":0 rw", f"| {command}", ":0 e", "{", "  EXITCODE=75", "  HOST", "}"]
        config = write_rules(side, "procmailrc", "\n".join(rules) + "\n")
        return run(side, own_copy(side, "procmail"), "-m", config, input=raw)
    if agent == "maildrop":
        config = write_rules(side, "mailfilter", f'PATH="{search_path}"\nto "| {command}"\n')
        return run(side, own_copy(side, "maildrop"), config, input=raw)
    return run_fdm_pipe(side, 'account "in" stdin', search_path, command, raw)


def run_fdm_pipe(
    side: Side, source: str, search_path: str, command: str, raw: bytes = b""
) -> Answer:
    rules = [
        f'set default-user "{side.account.name}"',
        f'set lock-file "{side.account.home}/fdm.lock"',
        "set no-received",
        source,
        f'action "inbox" pipe "{command}"',
        'match all action "inbox"',
    ]
    config = write_rules(side, "fdm.conf", "\n".join(rules) + "\n")
    return run(side, "env", f"PATH={search_path}", "fdm", "-f", config, "fetch", input=raw)


@pytest.fixture(params=PIPES)
def agent(request: pytest.FixtureRequest) -> str:
    needs(str(request.param))
    return str(request.param)


def needs(program: str) -> None:
    if not any(os.access(f"{folder}/{program}", os.X_OK) for folder in os.get_exec_path()):
        pytest.skip(f"{program} is not installed")


def contents(side: Side) -> list[bytes]:
    """The messages a mail reader sees as new in the inbox of the mount."""
    new = side.root / "inbox" / "new"
    return sorted((new / name).read_bytes() for name in os.listdir(new))


def test_what_is_piped_is_in_the_mount_at_once_byte_for_byte(mounted: Side, agent: str) -> None:
    for number, raw in enumerate(RAWS.values(), 1):
        assert by_pipe(agent, mounted, raw)[0] == 0
        assert len(contents(mounted)) == number
    assert contents(mounted) == sorted(RAWS.values())
    # Nobody chose a name.
    names = os.listdir(mounted.root / "inbox" / "new")
    assert {name for name in names if not re.fullmatch(r"\d+\.M\d+\.\w+,S=\d+", name)} == set()


def test_the_line_of_an_mbox_is_dropped(mounted: Side, agent: str) -> None:
    raw = make_message(1)
    line = next(make_mbox([raw])).partition(b"\n")[0] + b"\n"
    assert by_pipe(agent, mounted, line + raw)[0] == 0
    assert contents(mounted) == [raw]


def test_a_message_that_cannot_be_delivered_is_to_be_tried_again(mounted: Side, agent: str) -> None:
    """fdm says so and ends with 0: its source must be one that keeps messages."""
    code, out, err = by_pipe(agent, mounted, make_message(1), "nowhere")
    assert code == {"procmail": os.EX_TEMPFAIL, "maildrop": os.EX_TEMPFAIL, "fdm": 0}[agent]
    assert "no saved search named nowhere" in out + err
    assert not (mounted.account.home / "lost").exists()
    assert contents(mounted) == []
    assert by_pipe(agent, mounted, make_message(1))[0] == 0
    assert contents(mounted) == [make_message(1)]


def test_procmail_does_not_wait_for_the_exit_code_without_w(mounted: Side) -> None:
    needs("procmail")
    assert mounted.mailfs is not None
    command = command_path(mounted.account, mounted.mailfs.store)
    rules = f"DEFAULT={mounted.account.home}/kept\n:0 r{{flags}}\n| {command} deliver nowhere\n"
    for flags, is_kept in (("", False), ("w", True)):
        config = write_rules(mounted, "procmailrc", rules.format(flags=flags))
        words = (own_copy(mounted, "procmail"), "-m", config)
        assert run(mounted, *words, input=make_message(1))[0] == 0
        assert (mounted.account.home / "kept").exists() == is_kept


def test_fdm_leaves_at_its_source_what_cannot_be_delivered(
    ordinary_account: Account, ordinary_mailfs: Mailfs
) -> None:
    needs("fdm")
    account = ordinary_account
    side = Side("mounted", ordinary_mailfs.mountpoint, account, ordinary_mailfs)
    box = account.home / "box"
    account.output("mkdir", "-p", *(box / part for part in ("cur", "new", "tmp")))
    (box / "new" / "1.x").write_bytes(make_message(1))
    account.own(box)
    search_path = f"{command_path(account, ordinary_mailfs.store).parent}:/usr/bin:/bin"
    source = f'account "box" maildir "{box}"'
    run_fdm_pipe(side, source, search_path, "mailfs deliver nowhere")
    assert os.listdir(box / "new") == ["1.x"]
    assert ordinary_mailfs.count("*") == 0
    assert run_fdm_pipe(side, source, search_path, "mailfs deliver")[0] == 0
    assert os.listdir(box / "new") == []
    assert ordinary_mailfs.count("tag:inbox") == 1


def test_getmail_fetches_again_what_could_not_be_delivered(
    ordinary_account: Account, ordinary_mailfs: Mailfs
) -> None:
    needs("getmail")
    account = ordinary_account
    command = command_path(account, ordinary_mailfs.store)
    raws = [RAWS[name] for name in ("plain", "8bit", "mbox-like body", "large")]
    with pop3_server(*raws) as port:
        config = account.home / "getmail-pipe"
        config.mkdir()
        (config / "getmailrc").write_text(getmailrc(port, command, "work"))
        account.own(config)
        done = account.run("getmail", "--getmaildir", config)
        assert "no saved search named work" in done.stdout + done.stderr
        assert ordinary_mailfs.count("*") == 0
        ordinary_mailfs.say("save", "work", "tag:work")
        # The second time nothing is new.
        for _ in range(2):
            done = account.run("getmail", "--getmaildir", config)
            assert done.returncode == 0, (done.stdout, done.stderr)
            assert ordinary_mailfs.count("tag:work") == len(raws)
    shown = account.output("find", ordinary_mailfs.path("work", "new"), "-type", "f")
    sizes = sorted(int(name.rpartition("S=")[2]) for name in shown.split())
    assert sizes == sorted(len(GETMAILS_FIELD + raw) for raw in raws)


def getmailrc(port: int, command: Path, view: str) -> str:
    lines = ["[retriever]", "type = SimplePOP3Retriever", "server = 127.0.0.1", f"port = {port}"]
    lines += ["username = bob", "password = secret"]
    lines += ["[destination]", "type = MDA_external", f"path = {command}"]
    lines += [f'arguments = ("deliver", "{view}")']
    lines += ["[options]", "read_all = false", "received = false", "delivered_to = false"]
    return "\n".join(lines) + "\n"
