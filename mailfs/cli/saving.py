"""mailfs save, mailfs searches, mailfs forget."""

import argparse
import sys
from pathlib import Path

from mailfs.cli.commands import (
    Commands,
    Parser,
    add_command,
    add_query,
    harmless,
    json_text,
)

ON_RM = ("unlink", "untag", "expunge", "refuse")


def add_commands(commands: "Commands[Parser]") -> None:
    save = add_command(commands, "save", run_save, "save a search; mounted, it is a Maildir")
    save.add_argument("--on-rm", choices=ON_RM, default="", help="what rm does in the view")
    save.add_argument("--replace", action="store_true", help="replace a search of this name")
    save.add_argument("name", metavar="NAME", help="may contain /")
    add_query(save)
    searches = add_command(commands, "searches", run_searches, "list the saved searches")
    searches.add_argument("--json", action="store_true", help="print an array of objects")
    forget = add_command(commands, "forget", run_forget, "forget a saved search, no message")
    forget.add_argument("name", metavar="NAME", help="as listed by searches")


def run_save(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.search.names import check_search_name
    from mailfs.search.query import parse_query
    from mailfs.store.journal import Operation
    from mailfs.store.store import Store
    from mailfs.views.searches import check_on_rm

    text = " ".join(arguments.query)
    check_on_rm(arguments.on_rm, parse_query(text))
    name = check_search_name(arguments.name)
    with (
        Store.open(root) as store,
        store.writer.transaction(
            "save", durable=True, operation=Operation(f"save {name}")
        ) as transaction,
    ):
        transaction.searches.save(name, text, arguments.on_rm, replace=arguments.replace)
    return 0


def run_searches(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.store import Store

    with Store.open(root) as store:
        searches = store.index.searches()
    if arguments.json:
        rows = [
            {"name": search.name, "query": search.query, "on_rm": search.on_rm or None}
            for search in searches
        ]
        print(json_text(rows))
        return 0
    width = max((len(search.name) for search in searches), default=0)
    for search in searches:
        on_rm = f"  (on-rm = {search.on_rm})" if search.on_rm else ""
        # A query that was typed or written into a file may have anything in it.
        print(harmless(f"{search.name:<{width}}  {search.query}{on_rm}").replace("\n", " "))
    return 0


def run_forget(arguments: argparse.Namespace, root: Path) -> int:
    from mailfs.store.journal import Operation
    from mailfs.store.saved import check_nothing_spooled
    from mailfs.store.store import Store

    with Store.open(root) as store:
        search = store.index.search(arguments.name)
        check_nothing_spooled(store.layout, search.search_id)
        operation = Operation(f"forget {search.name}")
        with store.writer.transaction("forget", durable=True, operation=operation) as transaction:
            transaction.searches.forget(arguments.name)
        left = store.layout.sidecar / str(search.search_id)
        if any(path.is_file() for path in left.rglob("*")):
            print(f"mailfs: files of other programs stay in {left}", file=sys.stderr)
    return 0
