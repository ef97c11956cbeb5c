"""What the packs do not tell, as text: `mailfs dump`, and STORE/dump, from which an index that is lost is rebuilt.

One snapshot of the index, streamed in order, so that two dumps can be compared with diff(1). Takes no lock.
"""

import gzip
import itertools
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from mailfs.errors import BadDump, storage_error
from mailfs.ids import Docid, Keyword, Modseq, PackNumber, SearchId, ThreadId
from mailfs.message.maildir import ChosenName
from mailfs.search.plan import Plan
from mailfs.store.index import Index
from mailfs.store.layout import Layout, sync_directory
from mailfs.store.source import chunks, marks
from mailfs.store.upkeep.dump_lines import (
    DumpedBlob,
    DumpedDictionary,
    DumpedKeyword,
    DumpedMessage,
    DumpedSearch,
    DumpedThread,
    DumpEnd,
    DumpHeader,
    Line,
    dump_hasher,
    format_line,
    parse_line,
)

_GZIP_MAGIC = b"\x1f\x8b"
_SLICE_MESSAGES = 500
# A line names so many Message-IDs of a thread; each is at most 990 characters.
_IDS_A_LINE = 500
# A message with all its names in all views stays far below.
MAX_LINE_BYTES = 64 * 1024 * 1024


def dump_path(layout: Layout) -> Path:
    """The dump a store keeps of itself."""
    return layout.root / "dump"


def dump_lines(
    layout: Layout, plan: Plan | None = None, query: str | None = None
) -> Iterator[Line]:
    """Everything, or the live messages of `plan`, which is that of `query`, and all searches and keywords."""
    with closing(Index(layout)) as index, index.snapshot():
        yield _header(index, layout, query)
        for keyword_id, name in index.rows("SELECT keyword_id, name FROM keyword ORDER BY 1"):
            yield DumpedKeyword(keyword_id, Keyword(name))
        for row in index.rows("SELECT dictionary_id, made_ns, messages FROM dictionary ORDER BY 1"):
            yield DumpedDictionary(*row)
        for search in sorted(index.searches(), key=lambda search: search.search_id):
            yield DumpedSearch(
                search.search_id, search.name, search.query, search.on_rm, search.changed_ns
            )
        if plan is None:
            yield from _threads(index)
            docids: Iterable[Docid] = _all_docids(index)
        else:
            docids = index.docids(plan)
        for chunk in _sliced(docids):
            yield from _messages(index, chunk)
        yield DumpEnd()


def _header(index: Index, layout: Layout, query: str | None) -> DumpHeader:
    state = index.state()
    last: dict[str, int] = dict(index.rows("SELECT name, seq FROM sqlite_sequence"))
    return DumpHeader(
        layout.store_id.decode(),
        state.modseq,
        state.searches_modseq,
        state.reclaimed_modseq,
        Docid(last.get("message", 0)),
        SearchId(last.get("search", 0)),
        query,
    )


def _threads(index: Index) -> Iterator[DumpedThread]:
    rows = index.iter_rows("SELECT thread, message_id FROM reference ORDER BY thread, message_id")
    for thread, named in itertools.groupby(rows, key=lambda row: row[0]):
        message_ids = (str(message_id) for _, message_id in named)
        while chunk := tuple(itertools.islice(message_ids, _IDS_A_LINE)):
            yield DumpedThread(ThreadId(thread), chunk)


def _all_docids(index: Index) -> Iterator[Docid]:
    for (docid,) in index.iter_rows("SELECT docid FROM message ORDER BY docid"):
        yield Docid(docid)


def _sliced(docids: Iterable[Docid]) -> Iterator[Sequence[Docid]]:
    iterator = iter(docids)
    while chunk := tuple(itertools.islice(iterator, _SLICE_MESSAGES)):
        yield chunk


def _messages(index: Index, docids: Sequence[Docid]) -> Iterator[DumpedMessage]:
    keywords: dict[Docid, list[Keyword]] = {}
    blobs: dict[Docid, list[DumpedBlob]] = {}
    names: dict[Docid, list[tuple[SearchId, ChosenName]]] = {}
    rows = []
    for chunk in chunks(docids):
        places = marks(chunk)
        for docid, keyword in index.rows(
            "SELECT docid, name FROM message_keyword JOIN keyword USING (keyword_id) "
            f"WHERE docid IN ({places}) ORDER BY docid, name",
            chunk,
        ):
            keywords.setdefault(docid, []).append(keyword)
        for docid, digest, raw, pack, offset in index.rows(
            "SELECT docid, hash, raw, pack, offset FROM message_blob JOIN blob USING (blob_id) "
            f"WHERE docid IN ({places}) ORDER BY docid, blob_id",
            chunk,
        ):
            blobs.setdefault(docid, []).append(DumpedBlob(digest, raw, PackNumber(pack), offset))
        rows += index.rows(
            "SELECT docid, flags, expunged, received_ns, modseq, changed_ns, thread, size "
            f"FROM message WHERE docid IN ({places}) ORDER BY docid",
            chunk,
        )
    for search_id, docid, name in index.chosen_names_of(docids):
        names.setdefault(docid, []).append((search_id, name))
    for docid, flags, expunged, received_ns, modseq, changed_ns, thread, size in rows:
        yield DumpedMessage(
            docid=docid,
            flags=flags,
            keywords=tuple(keywords.get(docid, ())),
            expunged=expunged,
            received_ns=received_ns,
            modseq=Modseq(modseq),
            changed_ns=changed_ns,
            thread=ThreadId(thread),
            size=size,
            blobs=tuple(blobs.get(docid, ())),
            names=tuple(names.get(docid, ())),
        )


# --- files


def write_dump(lines: Iterable[Line], file: BinaryIO) -> int:
    """Write lines as they come, with a checksum in the last; how many messages."""
    count = 0
    hasher = dump_hasher()
    for line in lines:
        written = format_line(DumpEnd(hasher.hexdigest()) if isinstance(line, DumpEnd) else line)
        file.write(written)
        hasher.update(written)
        count += isinstance(line, DumpedMessage)
    return count


def save_dump(lines: Iterable[Line], path: Path) -> int:
    """Write a dump to a file, compressed by gzip when its name ends in .gz, durably; how many messages.

    A file of this name is replaced when the dump is whole, a pipe or terminal is written to. Raises StoreError, StoreFull.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as pipe:
                return write_dump(lines, pipe)
        path = path.resolve()  # a symbolic link stays one
        temporary = path.with_name(f"{path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            try:
                count = _write(lines, file, path.name)
                file.flush()
                os.fsync(file.fileno())
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"cannot write the dump {path}") from error
    return count


def _write(lines: Iterable[Line], file: BinaryIO, name: str) -> int:
    if not name.endswith(".gz"):
        return write_dump(lines, file)
    # No name and no time in it: the same dump is the same file.
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        return write_dump(lines, cast(BinaryIO, packed))


def save_own_dump(layout: Layout) -> int:
    """Bring STORE/dump up to date; how many messages. Raises StoreError, StoreFull."""
    return save_dump(dump_lines(layout), dump_path(layout))


@contextmanager
def opened_dump(
    file: BinaryIO, name: str, bad_lines: list[str] | None = None
) -> Iterator[Iterator[tuple[int, Line]]]:
    """The lines of a dump, compressed or not, and their numbers from 1; `file` can seek and is read from its start.

    Reading raises BadDump, which names the line, also for one that is cut off; with `bad_lines` that is put there instead,
    and the next line is read.
    """
    file.seek(0)
    is_packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    file.seek(0)
    if not is_packed:
        yield _read(file, name, bad_lines)
        return
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
        yield _read(cast(BinaryIO, unpacked), name, bad_lines)


def _read(file: BinaryIO, name: str, bad_lines: list[str] | None) -> Iterator[tuple[int, Line]]:
    last: Line | None = None
    hasher = dump_hasher()
    for number, raw in _raw_lines(file, name, bad_lines):
        try:
            if isinstance(last, DumpEnd):
                raise BadDump(f"{name}: line {number} comes behind the end")
            last = _parse(raw, name, number)
            if isinstance(last, DumpEnd) and last.check not in ("", hasher.hexdigest()):
                raise BadDump(
                    f"{name}: does not match the checksum in its last line: if you have changed it on "
                    "purpose, take that out"
                )
        except BadDump as error:
            _tell(error, bad_lines)
        else:
            yield number, last
        hasher.update(raw)
    if not isinstance(last, DumpEnd):
        _tell(BadDump(f"{name}: is cut off: the last line of a dump says that it is"), bad_lines)


def _raw_lines(
    file: BinaryIO, name: str, bad_lines: list[str] | None
) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        while raw := file.readline(MAX_LINE_BYTES):
            number += 1
            yield number, raw
    except (OSError, EOFError, zlib.error) as error:
        _tell(BadDump(f"{name}: cannot be read behind line {number}: {error}"), bad_lines)


def _tell(problem: BadDump, bad_lines: list[str] | None) -> None:
    if bad_lines is None:
        raise problem
    bad_lines.append(str(problem))


def why_unsound(path: Path) -> str | None:
    """What is wrong with a dump; None with one that is sound. Raises StoreError where it cannot be read."""
    try:
        with path.open("rb") as file, opened_dump(file, str(path)) as lines:
            for _ in lines:
                pass
    except BadDump as error:
        return str(error)
    except OSError as error:
        raise storage_error(error, f"cannot read {path}") from error
    return None


def _parse(raw: bytes, name: str, number: int) -> Line:
    if not raw.endswith(b"\n"):
        what = "is too long" if len(raw) == MAX_LINE_BYTES else "is cut off"
        raise BadDump(f"{name}: line {number} {what}")
    try:
        line = parse_line(raw)
    except BadDump as error:
        raise BadDump(f"{name}: line {number} {error}") from None
    if isinstance(line, DumpHeader) != (number == 1):
        raise BadDump(
            f"{name}: line {number} "
            + ("is the first line of a dump" if number > 1 else "is not that of a mailfs dump")
        )
    return line
