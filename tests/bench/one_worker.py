"""One import with one process that parses: `python -m tests.bench.one_worker STORE MAILDIR`."""

import sys
from pathlib import Path

from mailfs.ingest.importer import Importer, Labels
from mailfs.ingest.mailboxes import Format, iter_source
from mailfs.ingest.workers import Workers
from mailfs.store.store import Store


def import_with_one_worker(store: Path, maildir: Path) -> None:
    """What `mailfs import` does, but for the number of processes."""
    labels = Labels("inbox")
    refs = iter_source(maildir, Format("auto"))
    with Workers(labels, 1) as workers, Store.open(store) as opened:
        for _ in Importer(opened, labels).add_all(workers.prepare_for(opened, refs)):
            pass


if __name__ == "__main__":
    import_with_one_worker(*map(Path, sys.argv[1:]))
