"""Stores with packs as they are after some time, for tests about packs."""

from collections.abc import Iterable, Iterator, Sequence

from mailfs.ids import Docid, PackNumber
from mailfs.store.prepare import prepare_message
from mailfs.store.records import RecordHeader
from mailfs.store.store import Store
from tests.fakes import make_message


def messages(count: int, first: int = 0) -> list[bytes]:
    """Messages that compress, each its own."""
    return [
        make_message(number, subject=f"number {number}", body=f"{number} text and more of it\n" * 9)
        for number in range(first, first + count)
    ]


def add(store: Store, raws: Iterable[bytes]) -> list[Docid]:
    """Add messages in one transaction, compressed with the newest dictionary."""
    dictionary = store.newest_dictionary_or_none()
    news = [prepare_message(raw, 0, (), None, dictionary) for raw in raws]
    with store.writer.transaction("test", durable=True) as transaction:
        return [transaction.add(new).docid for new in news]


def expunge(store: Store, docids: Iterable[Docid]) -> None:
    with store.writer.transaction("test", durable=True) as transaction:
        for docid in docids:
            transaction.expunge(docid)


def reclaim(store: Store, docids: Sequence[Docid]) -> None:
    """Expunge messages and give up their bytes."""
    expunge(store, docids)
    with store.writer.transaction("test", durable=True) as transaction:
        transaction.reclaim(docids)


def records_of(store: Store, pack: int) -> Iterator[tuple[int, RecordHeader]]:
    return store.packs.file(PackNumber(pack)).iter_records()


def codecs_of(store: Store, pack: int) -> list[int]:
    """The kinds of record in a pack, in their order."""
    return [header.codec for _, header in records_of(store, pack)]


def packs_of(store: Store) -> list[int]:
    """The numbers of the pack files that are there."""
    return sorted(int(path.stem) for path in store.layout.packs.iterdir())
