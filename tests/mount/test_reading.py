"""Real mail read back through the mount, and what the kernel asks for while a client reads."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailfs.ingest.mailboxes import SourceProblem, iter_source, read_ref
from mailfs.message.keywords import keyword_for_folder
from mailfs.store.records import FRAME_BYTES
from tests.mount.accounts import ourselves
from tests.mount.mounting import Mailfs
from tests.oracle import assert_sound

# What fits into one READDIRPLUS answer, with names of our length; measured.
ENTRIES_PER_REQUEST = 154
# The largest message whose pages are stored when it is opened.
STORED_BYTES = FRAME_BYTES // 2


@pytest.fixture(scope="module")
def imported(unpacked_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Mailfs:
    """A store with all of the corpus, made by the command."""
    folder = tmp_path_factory.mktemp("imported")
    made = Mailfs(ourselves(folder), folder)
    made.say("init")
    made.say("import", *sorted(unpacked_corpus.iterdir()))
    assert_sound(made.store)
    return made


@pytest.fixture(scope="module")
def mounted(imported: Mailfs) -> Iterator[Mailfs]:
    """One mount that is only read; the caches are as the tests before left them."""
    imported.mount()
    yield imported
    imported.umount()
    assert "Traceback" not in imported.log_text()


@pytest.fixture
def fresh(imported: Mailfs, tmp_path: Path) -> Iterator[Mailfs]:
    """A mount of its own of the same store: the kernel knows nothing of it yet."""
    made = Mailfs(imported.account, imported.folder)
    made.mountpoint = tmp_path / "fresh"
    before = set(imported.pids())
    made.mount()
    (made.served_by,) = set(made.pids()) - before
    yield made
    made.umount()


@pytest.fixture(scope="module")
def sources(unpacked_corpus: Path) -> dict[str, Counter[str]]:
    """Keyword of a folder -> hashes of the messages in it, each once; '' for all messages."""
    found: dict[str, Counter[str]] = {"": Counter()}
    for path in sorted(unpacked_corpus.iterdir()):
        for ref in iter_source(path):
            assert not isinstance(ref, SourceProblem), ref
            message = read_ref(ref)
            digest = hashlib.sha256(message.raw).hexdigest()
            keyword = keyword_for_folder(message.folder or path.name)
            found.setdefault(keyword, Counter())[digest] = 1
            found[""][digest] = 1
    return found


def read_view(mailfs: Mailfs, view: str) -> Counter[str]:
    """The hashes of everything in a view; sizes must be exact."""
    found: Counter[str] = Counter()
    for part in ("cur", "new"):
        with os.scandir(mailfs.path(view, part)) as entries:
            for entry in entries:
                raw = Path(entry.path).read_bytes()
                assert entry.stat().st_size == len(raw), entry.path
                found[hashlib.sha256(raw).hexdigest()] += 1
    return found


@pytest.mark.corpus
@pytest.mark.slow
def test_every_message_of_the_corpus_is_read_back_in_every_folder_and_in_all(
    mounted: Mailfs, sources: dict[str, Counter[str]]
) -> None:
    assert len(sources[""]) > 2500
    assert read_view(mounted, "all") == sources[""]
    searches = json.loads(mounted.say("searches", "--json"))
    folders = {
        row["query"].removeprefix("tag:"): row["name"]
        for row in searches
        if row["query"].startswith("tag:") and row["name"] != "inbox"
    }
    assert set(folders) == set(sources) - {""}
    for keyword, view in folders.items():
        listed = [name for part in ("cur", "new") for name in mounted.names(view, part)]
        assert len(listed) == len(set(listed)) == len(sources[keyword]), view
        assert read_view(mounted, view) == sources[keyword], view


@pytest.mark.corpus
def test_a_listing_asks_a_page_of_entries_at_a_time_and_stat_behind_it_nothing(
    fresh: Mailfs,
) -> None:
    cur = fresh.path("all/cur")
    with fresh.counted() as listing:
        names = os.listdir(cur)
    assert len(names) > 1000
    assert listing["opendir"] == listing["releasedir"] == 1
    expected = len(names) / ENTRIES_PER_REQUEST
    assert expected * 0.7 <= listing["readdir"] <= expected * 1.3 + 2
    with fresh.counted() as stats:
        for name in names:
            os.stat(cur / name)
    assert stats["lookup"] == 0
    # The directory's own attributes are asked for, those of messages are not.
    assert stats["getattr"] <= 2


@pytest.mark.corpus
def test_a_message_is_read_once_by_open_and_afterwards_from_the_kernels_pages(
    fresh: Mailfs,
) -> None:
    cur = fresh.path("linux-man/cur")
    sizes = {entry.path: entry.stat().st_size for entry in os.scandir(cur)}
    paths = [path for path, size in sizes.items() if 0 < size <= STORED_BYTES]
    count = len(paths)
    assert count > 200
    read_requests = ("lookup", "getattr", "open", "read", "release", "opendir", "readdir")

    def requests_to_read(paths: list[str]) -> dict[str, int]:
        with fresh.counted() as made:
            for path in paths:
                assert len(Path(path).read_bytes()) == sizes[path]
        found = {name: made[name] for name in read_requests if made[name]}
        # Of the directories on the way, not of the messages.
        assert found.pop("getattr", 0) <= 5
        assert found.pop("lookup", 0) <= 5
        return found

    assert requests_to_read(paths) == {"open": count, "release": count}
    assert requests_to_read(paths) == {"open": count, "release": count}
    os.listdir(fresh.path("all/cur"))
    in_all = [str(fresh.path("all/cur", os.path.basename(path))) for path in paths]
    sizes |= {path: os.stat(path).st_size for path in in_all}
    assert requests_to_read(in_all) == {"open": count, "release": count}


@pytest.mark.corpus
def test_a_large_message_is_read_in_pieces_once_and_then_from_the_kernels_pages(
    fresh: Mailfs,
) -> None:
    os.listdir(fresh.path("usrp-users/cur"))
    entries = list(os.scandir(fresh.path("usrp-users/cur")))
    path = Path(max(entries, key=lambda entry: entry.stat().st_size).path)
    assert path.stat().st_size > STORED_BYTES
    with fresh.counted() as first:
        raw = path.read_bytes()
    assert first["open"] == 1
    assert first["read"] >= 1
    with fresh.counted() as second:
        assert path.read_bytes() == raw
    assert second["open"] == second["release"] == 1
    assert second["read"] == 0
    with path.open("rb") as file:
        for place in (0, len(raw) // 2, FRAME_BYTES - 1, len(raw) - 10):
            file.seek(place)
            assert file.read(100) == raw[place : place + 100]


@pytest.mark.corpus
def test_the_space_shown_is_that_of_the_file_system_the_store_lies_on(mounted: Mailfs) -> None:
    shown, real = os.statvfs(mounted.mountpoint), os.statvfs(mounted.store)
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(shown, field) == getattr(real, field), field
    # Others write to the same disk meanwhile.
    assert abs(shown.f_bfree - real.f_bfree) < real.f_blocks / 20
