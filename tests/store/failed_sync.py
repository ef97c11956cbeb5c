"""A process whose n-th sync fails: `python -m tests.store.failed_sync FOLDER once|on`, with the shim of tests/torture loaded.

A message is added to a store, then another in each round; in round n the n-th sync of that fails, or all from there on. Behind it the files are
copied as they are, which is what a crash may leave when the disk had written all there was. A line a round: how many
syncs there were, what was raised, and what the copy has.
"""

import errno
import shutil
import sys
from pathlib import Path

from mailfs.errors import MailfsError
from mailfs.store import health
from mailfs.store.store import Store
from tests.fakes import make_message, new_message
from tests.oracle import contents_of, problems_of
from tests.torture.tracing import Harm, Kind, Order, Shim


def add(store: Store, number: int) -> str:
    """The name of the error, empty when the message is in."""
    try:
        with store.writer.transaction("test", durable=True) as transaction:
            transaction.add(new_message(make_message(number)))
    except MailfsError as error:
        return type(error).__name__
    return ""


def run_round(root: Path, shim: Shim, number: int, *, goes_on: bool) -> str:
    with Store.create(root) as store:
        add(store, 0)
        shim.arm(root, Order(Harm.FAIL, number, Kind.SYNC, errno.EIO, goes_on))
        raised = add(store, 1)
        hit = shim.disarm()
        copy = root.with_name("copy")
        shutil.copytree(root, copy)
        (copy / "index.sqlite3-shm").unlink()
        after = add(store, 2)
        found = len(contents_of(store))
    with Store.open(copy) as crashed:
        problems = len(problems_of(crashed))
        recovered = len(contents_of(crashed))
    shutil.rmtree(copy)
    shutil.rmtree(root)
    return f"{hit.harmed} {raised or '-'} {recovered} {problems} {after or '-'} {found}"


def main(folder: Path, how: str) -> None:
    health.QUIET_S = 0.0
    shim = Shim()
    shim.become_subject()
    for number in range(1, 100):
        line = run_round(folder / "store", shim, number, goes_on=how == "on")
        sys.stdout.write(f"{line}\n")
        if line.startswith("0 "):
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
