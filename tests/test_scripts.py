"""The commands in scripts/: they parse, they say what they are for, and scripts/try shows a new user their mail."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from mailfs.fuse.mounts import find_mounted_or_none
from tests.fakes import PROJECT, RunMailfs

SCRIPTS = sorted(path for path in (PROJECT / "scripts").iterdir() if path.is_file())
SHELL_SCRIPTS = [
    path
    for path in [*SCRIPTS, *sorted((PROJECT / ".ci").iterdir())]
    if re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes())
]
SAMPLE = PROJECT / "scripts" / "sample"
SAMPLE_VIEWS = {"all": 9, "flagged": 1, "inbox": 7, "lists/mailfs": 2, "unread": 7}
# scripts/setup may have something to install.
TRY_DEADLINE_S = 280.0
LETTERS = "".join(
    f"From ann@example.org Mon Jan  1 00:00:0{n} 2024\n"
    f"From: ann@example.org\nSubject: letter {n}\nMessage-ID: <{n}@example.org>\n\ntext\n\n"
    for n in range(2)
)


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=_name)
def test_bash_can_parse_every_shell_script(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)


@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_every_script_says_with_help_what_it_is_for(script: Path) -> None:
    # As a user types it: the file is executable, and its first line names what runs it.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(script), "--help"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].strip()


class Try(Protocol):
    """Run scripts/try with a store and a home of its own; the result, and what it mounts is unmounted."""

    def __call__(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]": ...


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    return tmp_path / "v mail"


@pytest.fixture
def run_try(tmp_path: Path, mountpoint: Path, run_mailfs: RunMailfs) -> Iterator[Try]:
    environment = os.environ | {
        "HOME": str(tmp_path / "home"),
        "MAILFS_STORE": str(tmp_path / "store"),
        "LC_ALL": "C.UTF-8",
    }

    def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(PROJECT / "scripts" / "try"), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=TRY_DEADLINE_S,
            check=False,
        )

    yield run
    if find_mounted_or_none(mountpoint) is not None:
        done = run_mailfs("umount", mountpoint)
        if done.returncode:
            run_mailfs("umount", "--lazy", mountpoint)
        assert done.stderr == ""


def _listed(output: str, mountpoint: Path) -> dict[str, int]:
    """The views scripts/try lists, with the numbers of messages it says they show."""
    found = re.findall(r"^ +(\d+)  (.*)$", output, re.MULTILINE)
    shown = str(mountpoint).replace(" ", "\\ ") + "/"
    return {path.removeprefix(shown): int(number) for number, path in found}


def _messages(view: Path) -> list[Path]:
    return [*(view / "cur").iterdir(), *(view / "new").iterdir()]


@pytest.mark.mount
@pytest.mark.slow
def test_try_shows_the_sample_and_adds_nothing_when_run_again(
    run_try: Try, mountpoint: Path, tmp_path: Path, run_mailfs: RunMailfs
) -> None:
    first = run_try(SAMPLE, mountpoint)
    assert first.returncode == 0, first.stderr
    assert _listed(first.stdout, mountpoint) == SAMPLE_VIEWS
    assert {name: len(_messages(mountpoint / name)) for name in SAMPLE_VIEWS} == SAMPLE_VIEWS
    assert "mutt -f" in first.stdout
    assert " umount " in first.stdout
    mounted = find_mounted_or_none(mountpoint)

    with_mail = run_try(SAMPLE, mountpoint)
    assert with_mail.returncode == 0, with_mail.stderr
    assert "nothing new, 9 here already" in with_mail.stdout
    assert "mounted already" in with_mail.stdout

    without_mail = run_try("", mountpoint)
    assert without_mail.returncode == 0, without_mail.stderr
    assert "nothing new to import: the store holds 9 messages" in without_mail.stdout
    assert _listed(without_mail.stdout, mountpoint) == SAMPLE_VIEWS
    assert find_mounted_or_none(mountpoint) == mounted is not None
    assert run_mailfs("verify", "--quiet", store=tmp_path / "store").returncode == 0


@pytest.mark.mount
@pytest.mark.slow
def test_try_takes_an_mbox_named_from_where_the_user_is(
    run_try: Try, mountpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "letters.mbox").write_text(LETTERS)
    done = run_try("letters.mbox", mountpoint.name)
    assert done.returncode == 0, done.stderr
    assert (
        _listed(done.stdout, mountpoint)["letters"] == len(_messages(mountpoint / "letters")) == 2
    )


@pytest.mark.mount
@pytest.mark.slow
def test_try_goes_on_when_some_files_cannot_be_read(
    run_try: Try, mountpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "Maildir" / "cur").mkdir(parents=True)
    (tmp_path / "Maildir" / "cur" / "1.good:2,S").write_text("Subject: one\n\ntext\n")
    os.mkfifo(tmp_path / "Maildir" / "cur" / "2.bad:2,")
    done = run_try("Maildir", mountpoint)
    assert done.returncode == 0, done.stderr
    assert "2.bad:2,: not read" in done.stderr
    assert "could not be read; going on" in done.stdout
    assert _listed(done.stdout, mountpoint)["inbox"] == 1


@pytest.mark.mount
@pytest.mark.slow
def test_try_does_not_hide_what_lies_in_the_mount_point(
    run_try: Try, mountpoint: Path, tmp_path: Path
) -> None:
    mountpoint.mkdir()
    (mountpoint / "letter").touch()
    done = run_try(SAMPLE, mountpoint)
    assert done.returncode == 73
    assert f"{mountpoint} is not empty" in done.stderr
    assert find_mounted_or_none(mountpoint) is None


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("nowhere.mbox",), 66, "there is no "),
        (("--mount",), 64, "unknown option --mount"),
        (("a", "b", "c"), 64, "at most a source of mail and a mount point"),
    ],
)
def test_try_refuses_nonsense_before_it_does_anything(
    run_try: Try, tmp_path: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    done = run_try(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert reason in done.stderr
    assert not (tmp_path / "store").exists()


def test_the_sample_is_nobodys_mail() -> None:
    hosts = {
        host
        for path in SAMPLE.rglob("*.mbox")
        for host in re.findall(r"[\w.+-]+@([\w.-]+\w)", path.read_text("utf-8"))
    }
    assert hosts == {"example.org", "lists.example.org"}
