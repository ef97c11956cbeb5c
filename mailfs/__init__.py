"""mailfs: a deduplicated mail store that shows every saved search as a live, writable Maildir.

The layers, each importing only what stands below it (checked by import-linter and by
tests/test_architecture.py):

    cli/      arguments, printing, environment           mailfs import, search, mount ...
    fuse/     the kernel's protocol: pyfuse3 and trio     adapter only
    views/    what the tree looks like, and what rename, unlink and mkdir mean
    ingest/   mail coming in: Maildir, mbox, MH, files
    store/    what is durable: packs, index, lock         the only package that knows SQLite
              upkeep/: compact, expire, dump, backup; rescue/: verify, repair, reindex
    search/   the query language: text -> tree -> SQL
    message/  bytes -> facts: headers, text, keywords, Maildir names
    errors, ids

Calls go down, results come up. A request: kernel -> fuse.operations -> views.tree or views.edits ->
store. A change: store.index.changes_since(modseq) -> views.refresh -> fuse.notify -> kernel.

Goals in order, so that conflicts are decided:
no mail is lost > what the client sees is true > speed > features.
"""

__version__ = "0.1.0"
