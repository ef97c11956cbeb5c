"""Who runs mailfs: root from the checkout, or an ordinary user from a copy that every user can read."""

import importlib.metadata
import os
import pwd
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import PROJECT

COMMAND_DEADLINE_S = 60.0
ORDINARY = "nobody"


@dataclass(frozen=True)
class Account:
    """A user, and how to run a program as that user. `uid` owns what is made for it."""

    name: str
    uid: int
    gid: int
    prefix: tuple[str, ...]
    python: str
    packages: Path | None
    home: Path

    def environment(self) -> dict[str, str]:
        found = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
        found |= {"HOME": str(self.home), "LC_ALL": "C.UTF-8", "TZ": "UTC", "TERM": "xterm"}
        found["MBLAZE"] = str(self.home / ".mblaze")
        return found | ({"PYTHONPATH": str(self.packages)} if self.packages else {})

    def own(self, path: Path) -> None:
        """Give a folder and all in it to this account."""
        for each in (path, *path.rglob("*")):
            os.chown(each, self.uid, self.gid, follow_symlinks=False)

    def arguments(self, *words: str | Path) -> list[str]:
        return [*self.prefix, *map(str, words)]

    def mailfs_arguments(self, store: Path, *words: str | Path) -> list[str]:
        """`python -m mailfs`, with Python's warnings as errors."""
        command = (self.python, "-W", "error", "-m", "mailfs", "--store", store)
        return self.arguments(*command, *words)

    def folder(self) -> Path:
        """Where programs start: from the checkout `-m mailfs` is found, elsewhere by PYTHONPATH."""
        return self.home if self.packages else PROJECT

    def execute(
        self, arguments: list[str], input: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run what arguments() or mailfs_arguments() gave; what it says is text."""
        return subprocess.run(
            arguments,
            input="" if input is None else input,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=self.environment(),
            cwd=self.folder(),
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )

    def run(
        self, *words: str | Path, input: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program as this user."""
        return self.execute(self.arguments(*words), input)

    def output(self, *words: str | Path) -> str:
        """What a program says that must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout


def ourselves(home: Path) -> Account:
    """Whoever runs the tests."""
    name = pwd.getpwuid(os.getuid()).pw_name
    return Account(name, os.getuid(), os.getgid(), (), sys.executable, None, home)


def ordinary(packages: Path, home: Path) -> Account:
    """An ordinary user, when the tests run as root."""
    entry = pwd.getpwnam(ORDINARY)
    prefix = ("setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups")
    python = os.path.realpath(sys.executable)
    return Account(ORDINARY, entry.pw_uid, entry.pw_gid, prefix, python, packages, home)


def copy_packages(target: Path) -> None:
    """mailfs and all it needs at run time, readable by everybody."""
    shutil.copytree(
        PROJECT / "mailfs", target / "mailfs", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in _closure("mailfs") - {"mailfs"}:
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            # Scripts lie outside of the packages' folder.
            if ".." not in file.parts and "__pycache__" not in file.parts:
                destination = target / file
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(distribution.locate_file(file)), destination)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _closure(name: str) -> set[str]:
    """A distribution and everything it requires without extras; what is not installed is for other systems."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        for requirement in requirements:
            wanted = re.match(r"[A-Za-z0-9._-]*[A-Za-z0-9]", requirement)
            assert wanted is not None, requirement
            if "extra ==" not in requirement:
                waiting.append(wanted[0])
    return found
