"""Mending what a verify finds: in rounds, each a verify and then what it found, until nothing more can be done.

Each repair is a write transaction of its own with a row in the journal, so that clients wait for moments, and a repair that is
cut off is gone on with by the next one. A message is given up only when there is no second copy; what is left of it is
kept in STORE/damaged, and it is expunged: its row stays, and it is whole again when a copy is found later.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from mailfs.errors import Corrupt, storage_error
from mailfs.store.journal import Operation
from mailfs.store.layout import Layout, restore_format, sync_directory, write_format
from mailfs.store.rescue.checks_files import check_files, check_waiting, find_layout
from mailfs.store.rescue.copies import Copies, find_backup
from mailfs.store.rescue.findings import Finding, Kind, Severity, Step, problem
from mailfs.store.rescue.mend_packs import (
    begin_pack_if_needed,
    mend_dead_pack,
    mend_dictionary_row,
    mend_gap,
    mend_head,
    mend_pack_dictionary,
    mend_place,
    mend_seal,
    mend_size,
    mend_tail,
    mend_unknown_pack,
)
from mailfs.store.rescue.mend_records import mend_blob
from mailfs.store.rescue.mend_rows import (
    adopt_blob,
    adopt_orphan,
    give_up_message,
    mend_dump,
    mend_rows,
    mend_texts,
)
from mailfs.store.rescue.mending import Fate, Outcome, Repair, kept, mended
from mailfs.store.rescue.reindex import Parser, reindex
from mailfs.store.rescue.verify import examine
from mailfs.store.schema import FORMAT_VERSION
from mailfs.store.store import Store

# What mends a kind of finding, in the order in which it is done: bytes first, because rows are made from them.
_MENDERS: dict[Kind, Callable[[Repair, Finding], Outcome | None]] = {
    Kind.PACK_HEAD: mend_head,
    Kind.DICTIONARY: mend_dictionary_row,
    Kind.PACK_DICTIONARY: mend_pack_dictionary,
    Kind.PACK_SIZE: mend_size,
    Kind.BLOB: mend_blob,
    Kind.BLOB_PLACE: mend_place,
    Kind.GAP: mend_gap,
    Kind.RECORD: mend_gap,
    Kind.SEAL: mend_seal,
    Kind.ROWS: mend_rows,
    Kind.UNOWNED: adopt_blob,
    Kind.ORPHAN: adopt_orphan,
    Kind.BYTES: give_up_message,
    Kind.ENVELOPE: mend_texts,
    Kind.THREAD: mend_texts,
    Kind.WORDS: mend_texts,
    Kind.PACK_TAIL: mend_tail,
    Kind.PACK_FILE: mend_unknown_pack,
    Kind.DEAD_PACK: mend_dead_pack,
    Kind.DUMP: mend_dump,
}
# A repair may show what was hidden behind the damage: rows behind bytes, messages behind rows.
_MOST_ROUNDS = 6
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_REASON = "verify --repair"


def repair(
    root: Path, *, backups: Iterable[Path] = (), full: bool = False
) -> Iterator[Outcome | Step]:
    """Mend a store as far as it can be; what became of each finding, and how far it is.

    What is left at the end is told as KEPT or LOST. Raises StoreMissing, FormatTooNew, Busy, Unhealthy, StoreFull: then
    what was mended so far stays, and it may be run again.
    """
    sources = [find_backup(backup) for backup in backups]
    if waiting := list(check_waiting(root)):
        yield from _rest(waiting, set(), {})
        return
    try:
        yield from _mend_files(root)
        yield from _mend_all(root, sources, full=full)
    except OSError as error:
        raise storage_error(error, f"the store {root} cannot be mended") from error


def _mend_all(root: Path, sources: Sequence[Layout], *, full: bool) -> Iterator[Outcome | Step]:
    findings: list[Finding] = []
    lost: set[tuple[Kind, int]] = set()
    said: dict[Finding, Outcome] = {}
    for _ in range(_MOST_ROUNDS):
        findings = []
        for found in examine(root, full=full):
            if isinstance(found, Step):
                yield found
            else:
                findings.append(found)
        has_mended, said = False, {}
        for outcome in _round(root, tuple(findings), sources) if findings else ():
            has_mended |= outcome.fate is not Fate.KEPT
            if outcome.fate is Fate.LOST:
                lost.add((outcome.finding.kind, outcome.finding.number))
            if outcome.fate is Fate.KEPT:
                said[outcome.finding] = outcome
            else:
                yield outcome
        if not has_mended:
            break
    yield from _rest(findings, lost, said)


def _rest(
    findings: Iterable[Finding], lost: set[tuple[Kind, int]], said: Mapping[Finding, Outcome]
) -> Iterator[Outcome]:
    """What the last round could do nothing about, with what it said, but for what was told as lost already."""
    for finding in findings:
        if finding.severity is Severity.PROBLEM:
            advice = _ADVICE.get(finding.kind, "nothing could be done")
            yield said.get(finding) or kept(finding, advice)
        elif finding.severity is Severity.LOST and (finding.kind, finding.number) not in lost:
            yield Outcome(Fate.LOST, finding, "`--from BACKUP` may have it")


_ADVICE = {
    Kind.CONFIG: "change the file, or remove it",
    Kind.SEARCH: "give it another query, or `mailfs forget` it",
    Kind.FILE: "see to it by hand",
    Kind.FORMAT: "put back `format` from a backup: it has the name of the store, which is part of all file names",
}


def _round(
    root: Path, findings: tuple[Finding, ...], backups: Sequence[Layout]
) -> Iterator[Outcome]:
    if any(finding.kind is Kind.INDEX for finding in findings):
        yield from _rebuild_index(root, findings)
        return
    with Store.open(root) as store:
        copies = Copies(store.packs, store.layout, backups)
        with closing(copies):
            work = Repair(store, Operation(_REASON), copies, findings)
            begin_pack_if_needed(work)
            copies.look_for(_hashes(store, findings))
            for kind, mender in _MENDERS.items():
                for finding in [each for each in findings if each.kind is kind]:
                    outcome = _mend(work, mender, finding)
                    if outcome is not None:
                        yield outcome


def _mend(
    work: Repair, mender: Callable[[Repair, Finding], Outcome | None], finding: Finding
) -> Outcome | None:
    """What becomes of one finding; one that cannot be mended keeps no other from being."""
    try:
        return mender(work, finding)
    except Corrupt:
        return None  # told of by another finding, or by this one in the next round


def _hashes(store: Store, findings: Iterable[Finding]) -> set[bytes]:
    """Of the records that are damaged."""
    return {
        digest
        for finding in findings
        if finding.kind is Kind.BLOB
        for (digest,) in store.index.rows(
            "SELECT hash FROM blob WHERE blob_id = ?", (finding.number,)
        )
    }


def _rebuild_index(root: Path, findings: Iterable[Finding]) -> Iterator[Outcome]:
    """An index that is damaged itself is made anew, from the packs, a dump and what it still says."""
    layout, _ = find_layout(root)
    if layout is None:
        return
    rebuilt = reindex(layout, Parser(layout).prepare)
    how = f"the index was rebuilt: {rebuilt.messages} messages, {rebuilt.expunged} expunged"
    if rebuilt.recovered:
        how += f", {rebuilt.recovered} that it did not know"
    for finding in findings:
        if finding.kind is Kind.INDEX:
            yield mended(finding, how)


# --- files


def _mend_files(root: Path) -> Iterator[Outcome]:
    layout, findings = find_layout(root)
    if layout is not None and not layout.packs.exists():
        layout.packs.mkdir(mode=_FOLDER_MODE)
        sync_directory(root)
        yield mended(problem("packs", "is missing", Kind.FILE), "made anew, empty")
    for finding in findings:
        if finding.kind is Kind.FORMAT and layout is not None:
            restore_format(layout)
            yield mended(finding, "put back from format.bak")
        elif (
            finding.kind is Kind.FORMAT_COPY
            and layout is not None
            and layout.version == FORMAT_VERSION
        ):
            write_format(layout)
            yield mended(finding, "copied from format")
    for finding in check_files(root):
        if finding.kind is Kind.MODE:
            path = root / finding.mend
            is_folder = stat.S_ISDIR(path.lstat().st_mode)
            os.chmod(path, _FOLDER_MODE if is_folder else _FILE_MODE)
            yield mended(finding, "nobody else can any more")
