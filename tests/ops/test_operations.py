"""The handlers, one by one: their answers, their errnos, and that nothing but FUSEError leaves them."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pyfuse3
import pytest
from pyfuse3 import FUSEError

from mailfs.fuse import changes as changes_module
from mailfs.fuse.drain import in_thread
from mailfs.ids import Docid
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.store.journal import Actor
from mailfs.store.records import FRAME_BYTES
from mailfs.store.store import Store
from mailfs.views.edits import Edit, commit
from mailfs.views.tree import message_ino
from tests.fakes import Deliver, ExpectLog
from tests.ops.kernel import Kernel, name_of
from tests.views.kernel_model import Caller
from tests.views.world import World

NO_SUCH_INODE = 1 << 50


class CutFields(pyfuse3.SetattrFields):
    """As truncate(2) asks."""

    @property
    def update_size(self) -> bool:
        return True


# --- what is refused, and with which errno


@pytest.mark.parametrize(
    "flags",
    [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND],
)
def test_a_message_is_not_opened_for_writing(
    world: World, kernel: Kernel, expect_log: ExpectLog, flags: int
) -> None:
    docid = world.deliver()
    expect_log("open refused: a message cannot be changed")
    code = kernel.errno_of(kernel.operations.open, message_ino(docid), flags, kernel.context)
    assert name_of(code) == "EPERM"
    assert kernel.operations.handles.messages == {}


def test_a_message_is_neither_cut_nor_linked_to_where_no_messages_are(
    world: World, kernel: Kernel, expect_log: ExpectLog
) -> None:
    docid = world.deliver()
    ino, asked, context = message_ino(docid), kernel.operations, kernel.context
    expect_log("link refused")
    expect_log("setattr refused")
    codes = [
        kernel.errno_of(asked.link, ino, kernel.ino("inbox"), b"x", context),
        kernel.errno_of(asked.setattr, ino, pyfuse3.EntryAttributes(), CutFields(), None, context),
    ]
    assert [name_of(code) for code in codes] == ["EXDEV", "EPERM"]


def test_names_and_inodes_that_are_not_there_are_not_found_and_not_logged(
    world: World, kernel: Kernel
) -> None:
    docid = world.deliver()
    name = world.name(docid)
    asked, context = kernel.operations, kernel.context
    world.expunge(docid)
    codes = {
        "lookup": kernel.errno_of_lookup("inbox/cur", name),
        "lookup in a message": kernel.errno_of(asked.lookup, message_ino(1), b"x", context),
        "open of a directory": kernel.errno_of(asked.open, kernel.ino("inbox"), 0, context),
        "open": kernel.errno_of(asked.open, message_ino(99), 0, context),
        "getattr of a message": kernel.errno_of(asked.getattr, message_ino(99), context),
        "getattr": kernel.errno_of(asked.getattr, NO_SUCH_INODE, context),
        "opendir": kernel.errno_of(asked.opendir, NO_SUCH_INODE, context),
        "rename": kernel.rename("inbox/cur", name, "inbox/cur", name + b"F"),
        "unlink": kernel.unlink("inbox/cur", name),
        "rmdir": kernel.errno_of(asked.rmdir, kernel.ino(""), b"nothing", context),
    }
    assert {what: name_of(code) for what, code in codes.items()} == dict.fromkeys(codes, "ENOENT")


def test_exchanging_two_names_is_invalid_and_not_replacing_is_fine(
    world: World, kernel: Kernel, expect_log: ExpectLog
) -> None:
    docid = world.deliver(flags=0)
    name = world.name(docid)
    expect_log("rename refused: names cannot be exchanged")
    exchange, noreplace = pyfuse3.RENAME_EXCHANGE, pyfuse3.RENAME_NOREPLACE
    code = kernel.rename("inbox/cur", name, "inbox/cur", name + b"S", exchange)
    assert name_of(code) == "EINVAL"
    assert kernel.rename("inbox/cur", name, "inbox/cur", name + b"S", noreplace) == 0
    assert world.flags(docid) == SEEN


@pytest.mark.parametrize(
    ("parent", "name", "code"),
    [
        ("", b"inbox", errno.EEXIST),
        ("inbox", b"cur", errno.EEXIST),
        ("inbox/cur", b"x", 0),
        ("", b"tmp", errno.EPERM),
        ("", b"subject:(", errno.EINVAL),
        ("", b"\xff", errno.EILSEQ),
        ("", b"work", 0),
    ],
)
def test_mkdir_answers(
    kernel: Kernel, expect_log: ExpectLog, parent: str, name: bytes, code: int
) -> None:
    if code:
        expect_log("mkdir refused")
    found = kernel.errno_of(
        kernel.operations.mkdir, kernel.ino(parent), name, 0o755, kernel.context
    )
    assert name_of(found) == name_of(code)


def test_a_directory_that_holds_searches_is_not_removed_and_an_empty_one_is(
    world: World, kernel: Kernel, expect_log: ExpectLog
) -> None:
    world.save("inbox/old", "tag:old")
    expect_log("rmdir refused")
    rmdir, context = kernel.operations.rmdir, kernel.context
    assert name_of(kernel.errno_of(rmdir, kernel.ino(""), b"inbox", context)) == "ENOTEMPTY"
    assert kernel.errno_of(rmdir, kernel.ino("inbox"), b"old", context) == 0
    assert kernel.errno_of(rmdir, kernel.ino(""), b"inbox", context) == 0
    assert kernel.errno_of_lookup("", b"inbox") == errno.ENOENT


def test_a_view_is_renamed_but_not_its_parts(kernel: Kernel, expect_log: ExpectLog) -> None:
    expect_log("rename refused: a view always has")
    assert name_of(kernel.rename("inbox", b"cur", "inbox", b"old")) == "EPERM"
    assert kernel.rename("", b"inbox", "", b"outbox") == 0
    assert kernel.ino("outbox/cur")


def test_a_refusal_is_logged_once_however_often_it_is_asked_for(
    world: World, kernel: Kernel, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    docid = world.deliver()
    expect_log("open refused")
    for _ in range(5):
        kernel.errno_of(kernel.operations.open, message_ino(docid), os.O_RDWR, kernel.context)
    assert len(caplog.records) == 1


# --- what goes wrong


def test_an_unexpected_error_is_eio_and_the_next_request_is_served(
    world: World, kernel: Kernel, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    docid = world.deliver()
    inbox = kernel.ino("inbox/cur")

    def broken(parent: object, name: bytes) -> Docid:
        raise ZeroDivisionError("what nobody thought of")

    expect_log("ERROR .* lookup failed")
    with monkeypatch.context() as patch:
        patch.setattr(world.tree, "find_message_or_none", broken)
        code = kernel.errno_of(kernel.operations.lookup, inbox, world.name(docid), kernel.context)
        assert name_of(code) == "EIO"
    assert kernel.lookup(inbox, world.name(docid)).st_ino == message_ino(docid)


def test_an_error_of_the_system_keeps_its_errno(
    kernel: Kernel, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "no space")

    expect_log("fsync refused: .*no space")
    monkeypatch.setattr(kernel.world.store.writer, "sync", full)
    assert name_of(kernel.errno_of(kernel.operations.fsync, 1, False)) == "ENOSPC"


@pytest.mark.parametrize("body_bytes", [10, FRAME_BYTES + 1000])
def test_a_damaged_record_is_eio_for_its_message_and_for_no_other(
    world: World, kernel: Kernel, expect_log: ExpectLog, body_bytes: int
) -> None:
    noise = os.urandom(body_bytes).hex()
    first = world.deliver(subject=noise)
    second = world.deliver(subject="sound" + noise)
    where = world.store.index.location(first)
    pack = world.store.layout.pack(where.pack)
    whole = pack.read_bytes()
    place = where.offset + where.stored - 5
    expect_log("(open|read) refused: ")
    with pack.open("r+b") as file:
        file.seek(place)
        file.write(bytes([whole[place] ^ 1]))
    assert name_of(kernel_read_errno(kernel, first)) == "EIO"
    assert kernel_read(kernel, second) == world.store.load(second)
    assert name_of(kernel_read_errno(kernel, first)) == "EIO"
    pack.write_bytes(whole)  # the store is verified at the end


def kernel_read(kernel: Kernel, docid: Docid) -> bytes:
    """All bytes of a message as a client gets them: pages stored at open, else READs."""
    ino = message_ino(docid)
    kernel.pages.pop(ino, None)
    info = kernel.open(ino)
    try:
        if ino in kernel.pages:
            return kernel.pages[ino]
        raw = b""
        while piece := kernel.ask(kernel.operations.read, info.fh, len(raw), 100_000):
            raw += piece
        return raw
    finally:
        kernel.ask(kernel.operations.release, info.fh)


def kernel_read_errno(kernel: Kernel, docid: Docid) -> int:
    try:
        kernel_read(kernel, docid)
    except FUSEError as error:
        return error.errno
    return 0


def test_a_directory_whose_search_was_forgotten_can_be_read_on_and_closed(
    world: World, kernel: Kernel
) -> None:
    world.save("lists/linux", "*")
    world.deliver()
    fh, cur = kernel.open_directory("lists/linux/cur"), kernel.ino("lists/linux/cur")
    above = kernel.open_directory("lists/linux")
    world.forget("lists/linux")
    kernel.ino("inbox")
    asked, context = kernel.operations, kernel.context
    assert name_of(kernel.errno_of(asked.getattr, cur, context)) == "ENOENT"
    assert name_of(kernel.errno_of(asked.opendir, cur, context)) == "ENOENT"
    assert [name for name, _, _ in kernel.read_directory(fh)][:2] in ([], [b".", b".."])
    assert [name for name, _, _ in kernel.read_directory(above)][:2] in ([], [b".", b".."])
    assert kernel.errno_of(asked.releasedir, fh) == kernel.errno_of(asked.releasedir, above) == 0


# --- answers


def test_lookup_and_getattr_say_the_same_as_the_tree(world: World, kernel: Kernel) -> None:
    docid = world.deliver(received_s=1_300_000_000)
    kernel.names("inbox/cur")
    entry = kernel.lookup(kernel.ino("inbox/cur"), world.name(docid))
    size = len(world.store.load(docid))
    assert (entry.st_ino, entry.st_size, entry.st_nlink) == (message_ino(docid), size, 1)
    assert entry.st_mtime_ns == 1_300_000_000 * 10**9
    assert entry.st_mode == 0o100600
    assert (entry.st_uid, entry.st_gid) == (os.getuid(), os.getgid())
    assert entry.attr_timeout == entry.entry_timeout == 300
    again = kernel.ask(kernel.operations.getattr, message_ino(docid), kernel.context)
    assert again.st_size == size
    directory = kernel.ask(kernel.operations.getattr, kernel.ino("inbox/cur"), kernel.context)
    assert directory.st_mode == 0o040700
    assert directory.attr_timeout == 0
    assert directory.st_mtime_ns == world.mtimes("inbox")[1]


def test_a_name_in_a_view_nobody_listed_is_kept_by_the_kernel_only_if_it_will_be_told(
    world: World, kernel: Kernel
) -> None:
    """Either the kernel asks again each time, or the view's changes are followed from the lookup on."""
    docid = world.deliver(flags=SEEN)
    name = world.name(docid)
    entry = kernel.lookup(kernel.ino("inbox/cur"), name)
    kept_s = entry.entry_timeout
    world.set_flags(docid, add=FLAGGED)
    kernel.ask(kernel.operations.changes.tick)
    told = (world.directory("inbox/cur").ino, name) in kernel.forgotten()
    assert told or kept_s == 0


@pytest.mark.parametrize("letters", [b":2,SF", b":2,SS", b":2,SaA"])
def test_a_name_a_client_chose_but_we_do_not_show_is_taken_back_from_the_kernel(
    world: World, kernel: Kernel, letters: bytes
) -> None:
    """After a rename the kernel believes in the new name; when we show another, it must be told."""
    docid = world.deliver(flags=SEEN)
    name = world.name(docid)
    chosen = name.partition(b":")[0] + letters
    cur = kernel.ino("inbox/cur")
    kernel.names("inbox/cur")
    assert kernel.rename("inbox/cur", name, "inbox/cur", chosen) == 0
    assert world.name(docid) != chosen
    assert (cur, chosen) in kernel.forgotten()


@pytest.mark.parametrize("room", [1, 3, 1000])
def test_a_listing_in_pieces_is_the_whole_listing(world: World, kernel: Kernel, room: int) -> None:
    docids = [world.deliver() for _ in range(20)]
    recent = world.deliver(flags=RECENT)
    assert kernel.names("inbox/cur", room) == [world.name(docid) for docid in docids]
    assert kernel.names("inbox/new", room) == [world.name(recent)]
    assert kernel.names("inbox", room) == [b"cur", b"new", b"tmp"]
    assert kernel.names("", room) == [b"all", b"flagged", b"inbox", b"unread"]
    assert kernel.names("inbox/tmp", room) == []


def test_a_listing_continued_after_changes_skips_and_repeats_none_that_stayed(
    world: World, kernel: Kernel
) -> None:
    docids = [world.deliver() for _ in range(20)]
    fh = kernel.open_directory("inbox/cur")
    first = kernel.read_directory(fh, room=7)
    gone, stayed = docids[4:8], [*docids[:4], *docids[8:]]
    for docid in gone:
        world.expunge(docid)
    added = world.deliver()
    kernel.ask(kernel.operations.changes.tick)
    rest = kernel.read_directory(fh, first[-1][2], room=1000)
    listed = [name for name, _, _ in first + rest]
    assert len(set(listed)) == len(listed)
    assert {world.name(docid) for docid in [*stayed, added]} <= set(listed)


def test_the_dots_have_the_inodes_of_the_directory_and_of_the_one_above(kernel: Kernel) -> None:
    fh = kernel.open_directory("inbox/cur")
    (dot, dot_ino, _), (dots, dots_ino, _) = kernel.read_directory(fh)
    assert (dot, dot_ino) == (b".", kernel.ino("inbox/cur"))
    assert (dots, dots_ino) == (b"..", kernel.ino("inbox"))


def test_a_change_by_another_process_is_seen_by_the_next_request(
    world: World, kernel: Kernel
) -> None:
    docid = world.deliver(flags=SEEN)
    assert kernel.names("inbox/cur") == [world.name(docid)]
    old = world.name(docid)
    world.set_flags(docid, add=FLAGGED)
    assert kernel.errno_of_lookup("inbox/cur", old) == errno.ENOENT
    assert (world.directory("inbox/cur").ino, old) in kernel.forgotten()
    assert kernel.names("inbox/cur") == [world.name(docid)]


def test_a_rename_and_an_unlink_reach_the_store_and_every_view(
    world: World, kernel: Kernel
) -> None:
    docid = world.deliver(flags=RECENT, keywords=["inbox"])
    assert kernel.names("unread/new") == kernel.names("inbox/new") == [world.name(docid)]
    old = world.name(docid)
    assert kernel.rename("inbox/new", old, "inbox/cur", old + b":2,S") == 0
    assert world.flags(docid) == SEEN
    assert kernel.names("unread/new") == kernel.names("unread/cur") == []
    assert kernel.names("inbox/cur") == [old + b":2,S"]
    assert kernel.operations.changes.is_dirty
    assert kernel.unlink("inbox/cur", old + b":2,S") == 0
    assert not world.is_live(docid)
    assert kernel.names("inbox/cur") == []


@contextmanager
def another_writer(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold the writer lock in a second thread till a handler waits for it in a third; the event says that it did."""
    inside, waits = threading.Event(), threading.Event()

    def watched(store: Store, edit: Edit, deadline_s: float, *, actor: Actor | None) -> None:
        if threading.current_thread() is not threading.main_thread():
            waits.set()
        commit(store, edit, deadline_s, actor=actor)

    def write() -> None:
        with world.store.writer.transaction("test", durable=False):
            inside.set()
            assert waits.wait(10)

    monkeypatch.setattr(changes_module, "commit", watched)
    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(10)
    yield waits
    writer.join(10)


def test_an_edit_waits_for_another_writer_in_a_thread(
    world: World, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    docid = world.deliver(flags=0)
    name = world.name(docid)
    with another_writer(world, monkeypatch) as waits:
        assert kernel.rename("inbox/cur", name, "inbox/cur", name + b"S") == 0
    assert waits.is_set()
    assert world.flags(docid) == SEEN


def test_a_writer_that_does_not_let_go_is_eagain_and_nothing_is_changed(
    world: World, kernel: Kernel, expect_log: ExpectLog
) -> None:
    docid = world.deliver(flags=0)
    name = world.name(docid)
    kernel.operations.changes.edit_deadline_s = 0.01
    expect_log("rename refused: .* is writing")
    inside, done = threading.Event(), threading.Event()

    def write() -> None:
        with world.store.writer.transaction("test", durable=False):
            inside.set()
            assert done.wait(10)

    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(10)
    code = kernel.rename("inbox/cur", name, "inbox/cur", name + b"S")
    done.set()
    writer.join(10)
    assert name_of(code) == "EAGAIN"
    assert world.flags(docid) == 0


# --- bytes and pages


def test_a_small_message_is_stored_in_the_kernel_once_until_it_forgets(
    world: World, kernel: Kernel
) -> None:
    docid = world.deliver()
    ino, raw = message_ino(docid), world.store.load(docid)
    kernel.ask(kernel.operations.release, kernel.open(ino).fh)
    assert kernel.pages.pop(ino) == raw
    kernel.ask(kernel.operations.release, kernel.open(ino).fh)
    assert ino not in kernel.pages
    kernel.ask(kernel.operations.forget, [(ino, 1)])
    first = kernel.open(ino)
    assert kernel.pages.pop(ino) == raw
    kernel.ask(kernel.operations.forget, [(ino, 1)])
    # While somebody has it open, pages may be locked by a READ that waits for us.
    kernel.open(ino)
    assert ino not in kernel.pages
    assert first.keep_cache


def test_the_next_message_of_a_client_that_reads_in_order_is_stored_before_it_is_opened(
    world: World, kernel: Kernel
) -> None:
    docids = [world.deliver(keywords=[word]) for word in ("inbox", "other", "inbox", "inbox")]
    first, other, second, third = map(message_ino, docids)
    kernel.names("inbox/cur")
    for ino in (first, second):
        assert third not in kernel.pages
        kernel.ask(kernel.operations.release, kernel.open(ino).fh)
    assert kernel.pages[third] == world.store.load(docids[3])
    assert other not in kernel.pages, "of another view"


def test_a_client_that_has_the_next_message_open_keeps_its_pages_to_itself(
    world: World, kernel: Kernel
) -> None:
    """Its READ may be under way: storing would wait for a page that is locked till we answer."""
    first, second, third = (message_ino(world.deliver()) for _ in range(3))
    kernel.names("inbox/cur")
    reader = kernel.open(third).fh
    kernel.ask(kernel.operations.forget, [(third, 1)])
    kernel.pages.clear()
    for ino in (first, second):
        kernel.ask(kernel.operations.release, kernel.open(ino).fh)
    assert third not in kernel.pages
    kernel.ask(kernel.operations.release, reader)


def test_a_large_and_an_empty_message_are_read_when_asked_for(
    deliver: Deliver, kernel: Kernel
) -> None:
    large = deliver(raw=b"Subject: large\n\n" + os.urandom(FRAME_BYTES * 2).hex().encode())
    empty = deliver(raw=b"")
    for docid in (large, empty):
        raw = kernel.world.store.load(docid)
        info = kernel.open(message_ino(docid))
        assert message_ino(docid) not in kernel.pages
        for offset, length in ((0, 10), (FRAME_BYTES - 3, 7), (len(raw) - 2, 99), (len(raw), 9)):
            piece = kernel.ask(kernel.operations.read, info.fh, max(offset, 0), length)
            assert piece == raw[max(offset, 0) : max(offset, 0) + length]
        kernel.ask(kernel.operations.release, info.fh)
    assert kernel.operations.handles.messages == {}
    assert kernel.operations.handles.open_counts == {}


def test_an_open_message_can_be_read_after_it_was_expunged(world: World, kernel: Kernel) -> None:
    docid = world.deliver()
    raw = world.store.load(docid)
    kernel.ask(kernel.operations.release, kernel.open(message_ino(docid)).fh)
    info = kernel.open(message_ino(docid))
    world.expunge(docid)
    kernel.ask(kernel.operations.changes.tick)
    assert kernel.ask(kernel.operations.read, info.fh, 0, 1 << 20) == raw


def test_times_and_modes_are_accepted_and_change_nothing(world: World, kernel: Kernel) -> None:
    docid = world.deliver()
    asked = pyfuse3.EntryAttributes()
    asked.st_mode, asked.st_mtime_ns, asked.st_uid = 0o100777, 5, 12345
    for ino in (message_ino(docid), kernel.ino("inbox/cur")):
        before = kernel.ask(kernel.operations.getattr, ino, kernel.context)
        then = (before.st_mode, before.st_mtime_ns, before.st_uid)
        answer = kernel.ask(
            kernel.operations.setattr, ino, asked, pyfuse3.SetattrFields(), None, kernel.context
        )
        assert (answer.st_mode, answer.st_mtime_ns, answer.st_uid) == then


def test_handles_are_counted_so_that_lingering_waits_for_them(world: World, kernel: Kernel) -> None:
    view = world.tree.views["inbox"]
    first, second = kernel.open_directory("inbox/cur"), kernel.open_directory("inbox/new")
    kernel.open_directory("inbox")
    assert view.open_handles == 2
    kernel.ask(kernel.operations.releasedir, first)
    kernel.ask(kernel.operations.releasedir, second)
    assert view.open_handles == 0
    assert len(kernel.operations.handles.directories) == 1


def test_requests_are_counted_by_name(world: World, kernel: Kernel) -> None:
    kernel.names("inbox/cur")
    counts = kernel.operations.requests.counts
    assert counts["opendir"] == counts["releasedir"] == 1
    assert counts["lookup"] == 2
    assert counts["readdir"] == 2


def test_a_message_read_while_another_process_writes_lingers_all_the_same(
    world: World, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other clients' requests bring the tree up to date while the rename is being committed in a thread."""
    docid = world.deliver(flags=0)
    name = world.name(docid)
    kernel.names("unread/cur")

    async def blocking(function: Callable[..., None], *arguments: object, **_: object) -> None:
        await in_thread(function, *arguments)
        kernel.operations.changes.sync_tree()  # what the next request of another client does first

    monkeypatch.setattr(kernel.operations.requests, "in_thread", blocking)
    with another_writer(world, monkeypatch):
        assert kernel.rename("unread/cur", name, "unread/cur", name + b"S") == 0
    assert kernel.names("unread/cur") == [name + b"S"]
    assert docid in world.tree.views["unread"].lingering


def test_a_thread_of_the_echo_that_is_late_changes_nothing(world: World, kernel: Kernel) -> None:
    """It was given up when it got stuck, with its batch; what it still asks for is for no client."""
    docid = world.deliver(flags=SEEN)
    name = world.name(docid)
    cur = kernel.ino("inbox/cur")
    operations, caller = kernel.operations, Caller(4711)
    vars(operations.echo)["_thread"] = SimpleNamespace(number=4711)
    assert not operations.echo.is_usable
    for late in (
        lambda: operations.unlink(cur, name, caller),
        lambda: operations.rename(cur, name, cur, name + b"F", 0, caller),
        lambda: operations.mknod(cur, b"new", stat.S_IFREG | 0o600, 0, caller),
        lambda: operations.mkdir(pyfuse3.ROOT_INODE, b"later", 0o700, caller),
        lambda: operations.rmdir(pyfuse3.ROOT_INODE, b"inbox", caller),
    ):
        assert name_of(kernel.errno_of(late)) == "ENOENT"
    assert kernel.names("inbox/cur") == [name]
    assert sorted(world.tree.views) == ["all", "flagged", "inbox", "unread"]
