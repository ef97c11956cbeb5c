"""mailfs dump, mailfs restore: what the packs do not tell, as text."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import EACCES, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mailfs.cli.commands import Commands, Parser, add_command
from mailfs.cli.status import progress_told_by
from mailfs.errors import BadSource, MailfsError, storage_error

if TYPE_CHECKING:
    from mailfs.store.upkeep.restore import Restored

_SHOWN = 20


def add_commands(commands: "Commands[Parser]") -> None:
    dump = add_command(
        commands, "dump", run_dump, "write keywords, searches and chosen names as text"
    )
    dump.set_defaults(takes_words=True)
    dump.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="where to; - is standard output"
    )
    dump.add_argument(
        "query", metavar="QUERY", nargs="*", help="only of these messages; see mailfs-search(7)"
    )
    restore = add_command(commands, "restore", run_restore, "put back what a dump says")
    restore.add_argument(
        "--accumulate", action="store_true", help="only add, take nothing off and change nothing"
    )
    restore.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="the dump; - is standard input"
    )


def run_dump(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.cli.commands import plan_of
    from mailfs.store.store import Store
    from mailfs.store.upkeep.dump import dump_lines, save_dump, write_dump

    query = " ".join(arguments.query) or None
    plan = plan_of(arguments.query) if query else None
    with Store.open(root) as store:
        lines = dump_lines(store.layout, plan, query)
        if arguments.file == "-":
            write_dump(lines, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            count = save_dump(lines, Path(arguments.file))
            print(f"{count} messages dumped to {arguments.file}")
    return 0


def run_restore(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store
    from mailfs.store.upkeep.restore import Restored, restore

    done = Restored()
    name = "standard input" if arguments.file == "-" else arguments.file
    with (
        Store.open(root) as store,
        _opened(arguments.file, root) as file,
        progress_told_by(lambda: f"{name}: {done.messages} messages restored so far"),
    ):
        for _ in restore(store, file, name, done, accumulate=arguments.accumulate):
            pass
    _report(done)
    return 0


@contextmanager
def _opened(path: str, root: Path) -> Iterator[BinaryIO]:
    """A file that can be read twice. What comes through a pipe is put into one without a name, in the store."""
    with ExitStack() as stack:
        try:
            fd = sys.stdin.fileno() if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            source = stack.enter_context(os.fdopen(fd, "rb", closefd=path != "-"))
        except OSError as error:
            raise cannot_read(path, error) from None
        if source.seekable():
            yield source
        else:
            file = stack.enter_context(tempfile.TemporaryFile(dir=root))
            shutil.copyfileobj(source, file)
            yield cast(BinaryIO, file)


def cannot_read(path: str, error: OSError) -> MailfsError:
    """It is the data's fault only where nothing can be read under that name."""
    what = f"cannot read the dump {path}"
    if error.errno in (ENOENT, ENOTDIR, EISDIR, EACCES, ELOOP, ENAMETOOLONG):
        return BadSource(f"{what}: {error.strerror}")
    return storage_error(error, what)


def _report(done: "Restored") -> None:
    for problem in done.problems[:_SHOWN]:
        print(f"mailfs restore: {problem}", file=sys.stderr)
    if len(done.problems) > _SHOWN:
        print(f"mailfs restore: and {len(done.problems) - _SHOWN} more", file=sys.stderr)
    if done.missing:
        shown = ", ".join(map(str, done.missing[:_SHOWN]))
        more = f" and {len(done.missing) - _SHOWN} more" if len(done.missing) > _SHOWN else ""
        print(
            f"mailfs restore: {len(done.missing)} messages of the dump are not here "
            f"(there their numbers are {shown}{more})",
            file=sys.stderr,
        )
    print(
        f"{done.messages} messages found, {done.changed} of them changed; "
        f"{done.searches} searches changed"
    )
