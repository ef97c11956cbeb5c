"""Programs that watch folders hear what changed, by whomever, exactly once; and the kernel's names are right behind it."""

import errno
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from mailfs.ids import Docid, Keyword
from mailfs.message.keywords import ANSWERED, FLAGGED, RECENT, SEEN
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from mailfs.views.announce import STIRRED
from tests.fakes import make_mbox, make_message
from tests.mount.accounts import Account
from tests.mount.calls import deliver, refused
from tests.mount.mounting import Mailfs, add_messages, is_alive
from tests.mount.waiting import DEADLINE_S, pause, wait_until
from tests.mount.watching import (
    ATTRIB,
    RECEIVED_NS,
    WANTED,
    Event,
    Watcher,
    World,
    loaded,
    place_of,
    watching,
)

VIEWS = ("inbox", "unread", "flagged", "work", "talk")


@pytest.fixture
def mounted(mailfs: Mailfs) -> Mailfs:
    """Messages 1 to 4, in `inbox`, not read; the fourth answers the third."""
    mailfs.create(messages=3)
    mailfs.say("save", "work", "tag:work")
    mailfs.say("save", "talk", "thread:{tag:work}")
    raw = make_message(4, subject="message 4", references=["3@example.org"])
    with (
        Store.open(mailfs.store) as store,
        store.writer.transaction("test", durable=True) as transaction,
    ):
        transaction.add(prepare_message(raw, 0, (Keyword("inbox"),), RECEIVED_NS))
    mailfs.mount()
    return mailfs


@pytest.fixture
def world(mounted: Mailfs) -> Iterator[World]:
    with watching(mounted, *VIEWS) as made:
        yield made


@pytest.fixture(params=["never listed", "listed before", "listed after", "looked up"])
def known(mounted: Mailfs, request: pytest.FixtureRequest) -> Iterator[World]:
    """The same, with more or fewer names in the kernel's cache."""
    if request.param == "listed before":
        for view in VIEWS:
            mounted.names(view)
    with watching(mounted, *VIEWS) as made:
        if request.param == "listed after":
            made.truth.check(*VIEWS)
        if request.param == "looked up":
            for view in VIEWS:
                for docid in range(1, 5):
                    mounted.path(view, made.place(docid)).exists()
        yield made


@pytest.mark.slow
def test_every_change_by_another_process_is_heard_once(known: World) -> None:
    place = known.place
    before = place(1)
    known.flag(1, add=FLAGGED)
    known.expect(
        f"MOVE inbox/{before} -> inbox/{place(1)}",
        f"MOVE unread/{before} -> unread/{place(1)}",
        f"CREATE flagged/{place(1)}",
    )
    before = place(1)
    known.flag(1, add=SEEN)
    known.expect(
        f"MOVE inbox/{before} -> inbox/{place(1)}",
        f"MOVE flagged/{before} -> flagged/{place(1)}",
        f"DELETE unread/{before}",
    )
    known.add(5, "inbox", "work", flags=RECENT)
    known.expect(*(f"CREATE {view}/{place(5)}" for view in ("inbox", "unread", "work", "talk")))
    before = place(5)
    known.flag(5, add=SEEN, remove=RECENT)
    known.expect(
        *(f"MOVE {view}/{before} -> {view}/{place(5)}" for view in ("inbox", "work", "talk")),
        f"DELETE unread/{before}",
    )
    known.label(3, "work")
    known.expect(
        *(f"CREATE {view}/{place(3)}" for view in ("work", "talk")), f"CREATE talk/{place(4)}"
    )
    known.unlabel(3, "work")
    known.expect(
        *(f"DELETE {view}/{place(3)}" for view in ("work", "talk")), f"DELETE talk/{place(4)}"
    )
    with known.writing() as transaction:
        transaction.expunge(Docid(2))
    known.expect(f"DELETE inbox/{place(2)}", f"DELETE unread/{place(2)}")
    with known.writing() as transaction:
        transaction.revive(Docid(2))
        transaction.edit_keywords(Docid(2), [Keyword("inbox")])
    known.expect(f"CREATE inbox/{place(2)}", f"CREATE unread/{place(2)}")


def test_what_commands_do_is_heard_once(world: World) -> None:
    mailfs, place = world.mailfs, world.place
    mailfs.account.execute(
        mailfs.account.mailfs_arguments(mailfs.store, "deliver", "-k", "work"),
        make_message(10).decode(),
    )
    world.expect(*(f"CREATE {view}/{place(5)}" for view in ("inbox", "unread", "work", "talk")))
    before = place(1)
    mailfs.say("tag", "+flagged", "id:1@example.org")
    world.expect(
        *(f"MOVE {view}/{before} -> {view}/{place(1)}" for view in ("inbox", "unread")),
        f"CREATE flagged/{place(1)}",
    )
    mailfs.say("expunge", "id:1@example.org")
    world.expect(*(f"DELETE {view}/{place(1)}" for view in ("inbox", "unread", "flagged")))
    source = mailfs.folder / "old.mbox"
    source.write_bytes(b"".join(make_mbox([make_message(20)])))
    mailfs.say("import", "-k", "inbox", "--no-folders", source)
    world.expect(*(f"CREATE {view}/{place(6)}" for view in ("inbox", "unread")))


def test_searches_saved_moved_and_forgotten_are_heard_as_directories(world: World) -> None:
    mailfs, watcher = world.mailfs, world.watcher
    mailfs.say("save", "later", "tag:later")
    watcher.expect("CREATE later ISDIR")
    mailfs.say("save", "lists/linux", "tag:linux")
    watcher.expect("CREATE lists ISDIR")
    watcher.watch("lists")
    mailfs.say("save", "lists/bsd", "tag:bsd")
    watcher.expect("CREATE lists/bsd ISDIR")
    mailfs.path("lists/bsd").rename(mailfs.path("lists/unix"))
    watcher.expect("MOVE lists/bsd -> lists/unix ISDIR")
    mailfs.say("forget", "lists/unix")
    watcher.expect("DELETE lists/unix ISDIR")
    mailfs.say("forget", "later")
    watcher.expect("DELETE later ISDIR")
    assert sorted(os.listdir(mailfs.path("lists"))) == ["linux"]


@pytest.mark.parametrize("way", ["save --replace", "write"])
def test_an_edited_query_is_heard_as_who_left_and_who_came(world: World, way: str) -> None:
    mailfs, place = world.mailfs, world.place
    world.label(1, "work")
    world.label(2, "later")
    world.expect(f"CREATE work/{place(1)}", f"CREATE talk/{place(1)}")
    if way == "write":
        mailfs.path(".mailfs/views/work/query").write_text("tag:later\n")
    else:
        mailfs.say("save", "--replace", "work", "tag:later")
    world.expect(f"DELETE work/{place(1)}", f"CREATE work/{place(2)}")
    world.label(3, "later")
    world.expect(f"CREATE work/{place(3)}")


def test_what_comes_into_new_is_touched_for_those_who_do_not_listen_for_names_made(
    world: World,
) -> None:
    everything = WANTED | ATTRIB
    with Watcher(world.mailfs.mountpoint, "inbox/new", "inbox/cur", wanted=everything) as watcher:
        world.add(5, "inbox", flags=RECENT)
        world.add(6, "inbox")
        watcher.expect(
            *(f"{kind} inbox/{world.place(5)}" for kind in ("CREATE", "ATTRIB")),
            f"CREATE inbox/{world.place(6)}",
        )


def test_behind_a_storm_those_hear_something_too(world: World) -> None:
    """mutt shows what it finds when it hears something: the last of it must come behind the last message."""
    with Watcher(world.mailfs.mountpoint, "inbox/new", wanted=ATTRIB) as watcher:
        _bring(world, range(1000, 1100))
        assert watcher.take(5)
        _bring(world, range(1100, 1200))
        heard = watcher.hear(until_quiet_s=1.5)
        assert len(heard) < 100
        assert heard[-1].name == STIRRED.decode()


def _bring(world: World, numbers: range) -> None:
    """New mail, all at once."""
    with world.writing() as transaction:
        for number in numbers:
            raw = make_message(number)
            transaction.add(prepare_message(raw, RECENT, (Keyword("inbox"),), RECEIVED_NS))


@pytest.mark.slow
def test_a_date_that_runs_out_is_heard(mounted: Mailfs) -> None:
    mounted.say("save", "fresh", "received:3s..")
    with watching(mounted, "fresh") as world:
        docid = world.add(5, received_ns=time.time_ns())
        world.watcher.expect(f"CREATE fresh/{world.place(docid)}")
        world.watcher.expect(f"DELETE fresh/{world.place(docid)}")
        world.truth.check("fresh")


# --- clients of this mount


def test_a_client_hears_its_own_renames_and_removals_once_and_others_hear_them_too(
    world: World,
) -> None:
    mailfs, place = world.mailfs, world.place
    before = place(1)
    mailfs.path("inbox", before).rename(mailfs.path("inbox", before + "F"))
    world.expect(
        *(f"MOVE {view}/{before} -> {view}/{before}F" for view in ("inbox", "unread")),
        f"CREATE flagged/{before}F",
    )
    mailfs.path("flagged", before + "F").rename(mailfs.path("flagged", before + "FS"))
    world.expect(
        *(f"MOVE {view}/{before}F -> {view}/{before}FS" for view in ("inbox", "flagged")),
        f"DELETE unread/{before}F",
    )
    mailfs.path("inbox", before + "FS").unlink()
    world.expect(*(f"DELETE {view}/{before}FS" for view in ("inbox", "flagged")))


def test_a_client_hears_its_own_delivery_and_link_once_under_the_name_it_chose(
    world: World,
) -> None:
    mailfs, watcher = world.mailfs, world.watcher
    deliver(mailfs.path("inbox"), "mine", make_message(10), "new")
    name = place_of(world.store, 5)
    watcher.expect("CREATE inbox/new/mine", f"CREATE unread/{name}")
    os.link(mailfs.path("inbox/new/mine"), mailfs.path("work/cur/linked:2,"))
    # In cur/ it is not recent any more, which is so in all views.
    watcher.expect(
        "CREATE work/cur/linked:2,",
        f"CREATE talk/{place_of(world.store, 5)}",
        "MOVE inbox/new/mine -> inbox/cur/mine:2,",
        f"MOVE unread/{name} -> unread/{place_of(world.store, 5)}",
    )
    mailfs.path("work/cur/linked:2,").unlink()
    watcher.expect("DELETE work/cur/linked:2,", f"DELETE talk/{place_of(world.store, 5)}")


def test_a_message_can_be_linked_as_soon_as_it_was_heard_to_leave_another_view(
    world: World,
) -> None:
    path = world.mailfs.path("all", world.place(1))
    spooled = world.mailfs.path("all/tmp/linked")
    for _ in range(20):
        world.label(1, "work")
        world.watcher.await_line(f"CREATE work/{world.place(1)}")
        path.stat()
        world.unlabel(1, "work")
        world.watcher.await_line(f"DELETE work/{world.place(1)}")
        os.link(path, spooled)
        spooled.unlink()


def test_an_open_file_goes_on_being_read_whatever_becomes_of_its_name(world: World) -> None:
    before = world.place(1)
    with world.mailfs.path("unread", before).open("rb") as file:
        world.flag(1, add=SEEN | FLAGGED)
        world.watcher.await_line(f"DELETE unread/{before}")
        raw = file.read()
        assert raw == world.store.load(Docid(1))
        with world.writing() as transaction:
            transaction.expunge(Docid(1))
        world.watcher.await_line(f"DELETE inbox/{world.place(1)}")
        assert os.pread(file.fileno(), 1 << 20, 0) == raw
        assert os.fstat(file.fileno()).st_size == len(raw)


def test_a_folders_time_rises_with_each_change_and_else_stays(world: World) -> None:
    def times() -> dict[str, int]:
        return {
            f"{view}/{part}": os.stat(world.mailfs.path(view, part)).st_mtime_ns
            for view in VIEWS
            for part in ("cur", "new")
        }

    steps: list[tuple[Callable[[], object], set[str]]] = [
        (lambda: world.flag(1, add=FLAGGED), {"inbox/cur", "unread/cur", "flagged/cur"}),
        (lambda: world.flag(1, add=ANSWERED), {"inbox/cur", "unread/cur", "flagged/cur"}),
        (lambda: world.label(3, "work"), {"work/cur", "talk/cur"}),
        (lambda: world.add(9, "work", flags=RECENT), {"work/new", "talk/new", "unread/new"}),
        (lambda: world.label(2, "nobody"), set()),
    ]
    before = times()
    for act, wanted in steps:
        act()
        now = times()
        assert {folder for folder in now if now[folder] > before[folder]} == wanted
        assert all(now[folder] == before[folder] for folder in now.keys() - wanted)
        world.watcher.hear()
        assert times() == now, "the echo itself is no change"
        before = now
    pause(1.0)
    assert times() == before


# --- where nobody looks, and without the echo


def echoes(mailfs: Mailfs) -> Counter[str]:
    """What was told, by kind."""
    found = mailfs.status()["echoes"]
    assert isinstance(found, dict)
    return Counter(found)


def test_nothing_is_told_and_no_view_evaluated_where_nobody_looks(mounted: Mailfs) -> None:
    with Store.open(mounted.store) as store:
        add_messages(store, 50, first=100)
        add_messages(store, 50, ("work",), first=200)
    mounted.say("tag", "+flagged", "*")
    mounted.say("expunge", "tag:work")
    assert mounted.status()["views"] == []
    assert +echoes(mounted) == {}
    assert mounted.requests()["mknod"] == 0


def test_a_view_that_nobody_entered_is_not_told_of_what_is_told_in_another(mounted: Mailfs) -> None:
    with watching(mounted, "flagged") as world:
        world.flag(1, add=FLAGGED)
        world.watcher.expect(f"CREATE flagged/{world.place(1)}")
        assert loaded(mounted) == {"flagged"}
        assert +echoes(mounted) == {"make": 1}


def test_without_the_echo_nothing_is_heard_and_the_names_are_right(mounted: Mailfs) -> None:
    mounted.umount()
    (mounted.store / "config").write_text("[mount]\necho = false\n")
    mounted.mount()
    with watching(mounted, *VIEWS) as world:
        world.truth.check(*VIEWS)
        gone = world.mailfs.path("inbox", world.place(1))
        world.flag(1, add=FLAGGED)
        world.label(2, "work")
        with world.writing() as transaction:
            transaction.expunge(Docid(3))
        wait_until(lambda: not gone.exists(), "the kernel has forgotten the name")
        world.truth.check(*VIEWS)
        assert world.watcher.hear() == []
        assert (+echoes(mounted)).keys() == {"forget"}
        # Told again, by a word of the user.
        (mounted.store / "config").write_text("[mount]\necho = true\n")
        os.kill(mounted.pid, signal.SIGHUP)
        wait_until(lambda: "echo on" in mounted.log_text(), "the configuration is read")
        world.flag(2, add=FLAGGED)
        world.watcher.await_line(f"CREATE flagged/{world.place(2)}")


def test_without_the_drain_too_everything_is_heard_once(mounted: Mailfs) -> None:
    mounted.umount()
    mounted.mount("--no-drain")
    with watching(mounted, *VIEWS) as world:
        before = world.place(1)
        world.flag(1, add=FLAGGED)
        world.expect(
            *(f"MOVE {view}/{before} -> {view}/{world.place(1)}" for view in ("inbox", "unread")),
            f"CREATE flagged/{world.place(1)}",
        )


# Watches a folder, says so, and then says the mask and name of the first two events.
_WATCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
assert libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0xFCE) >= 0
print("watching", flush=True)
heard = b""
while len(heard) < 64:
    heard += os.read(fd, 4096)
while heard:
    _, mask, _, length = struct.unpack_from("iIII", heard)
    print(hex(mask), os.fsdecode(heard[16 : 16 + length].rstrip(b"\\0")), flush=True)
    heard = heard[16 + length :]
"""


def test_an_ordinary_user_hears_what_commands_do(as_ordinary: Account) -> None:
    made = Mailfs(as_ordinary, as_ordinary.home)
    made.create(messages=1)
    try:
        made.mount()
        command = as_ordinary.arguments(as_ordinary.python, "-c", _WATCH, made.path("inbox/cur"))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "watching\n"
            wait_until(lambda: made.status()["views"], "the watched view is followed")
            made.say("tag", "+flagged", "*")
            lines = [client.stdout.readline() for _ in range(2)]
            client.kill()
        with Store.open(made.store) as store:
            name = place_of(store, 1).removeprefix("cur/")
        assert lines == [f"0x40 {name.removesuffix('F')}\n", f"0x80 {name}\n"]
        made.umount()
    finally:
        made.end()


# --- storms


@pytest.mark.slow
def test_an_import_of_thousands_is_told_of_in_a_few_events_while_clients_go_on(
    mounted: Mailfs,
) -> None:
    source = mounted.folder / "old.mbox"
    with source.open("wb") as file:
        file.writelines(make_mbox(make_message(number) for number in range(1000, 21_000)))
    with watching(mounted, "inbox", "unread", "flagged") as world:
        mounted.names("inbox")
        command = mounted.account.mailfs_arguments(
            mounted.store, "import", "-k", "inbox", "--no-folders", source
        )
        heard: list[Event] = []
        rounds = 0
        with subprocess.Popen(command, cwd=mounted.account.folder()) as importer:
            name = world.place(1)
            while importer.poll() is None:
                other = f"{name.partition(':')[0]}:2,{'F' if rounds % 2 == 0 else ''}"
                mounted.path("inbox", name).rename(mounted.path("inbox", other))
                name = other
                rounds += 1
                mounted.names("inbox")
                heard += world.watcher.take(0.05)
        assert importer.returncode == 0
        assert world.place(1) == name
        heard += world.watcher.hear(until_quiet_s=2.0)
        assert not any("Q_OVERFLOW" in event.kinds for event in heard)
        # A rename through the mount is heard by itself, and what is told besides is bounded by the second.
        assert len(heard) < 5000
        assert len(mounted.names("inbox")) + len(mounted.names("inbox", "new")) == 20_004
        world.truth.check("flagged")
        # Behind the storm everything is told by name again.
        before = world.place(2)
        world.flag(2, add=FLAGGED)
        world.watcher.expect(
            *(f"MOVE {view}/{before} -> {view}/{world.place(2)}" for view in ("inbox", "unread")),
            f"CREATE flagged/{world.place(2)}",
        )


@pytest.mark.slow
def test_who_lists_a_folder_at_each_event_has_it_right_after_a_storm(mounted: Mailfs) -> None:
    with watching(mounted, "work") as world:
        listed: list[str] = []

        def list_until_quiet() -> int:
            count = 0
            while events := world.watcher.take(1.5):
                listed[:] = mounted.names("work")
                count += len(events)
            return count

        with world.writing() as transaction:
            for number in range(1000, 2000):
                message = prepare_message(make_message(number), 0, (Keyword("work"),), RECEIVED_NS)
                transaction.add(message)
        assert 0 < list_until_quiet() < 200
        assert len(listed) == 1000
        with world.writing() as transaction:
            for docid in world.store.index.docids(plan(parse_query("tag:work"), 0)):
                transaction.edit_keywords(docid, (), [Keyword("work")])
        assert 0 < list_until_quiet() < 200
        assert listed == []
        world.truth.check("work")


# --- where the echo cannot work, or is ended


@contextmanager
def storm(mailfs: Mailfs) -> Iterator[None]:
    """All messages are flagged and unflagged, as fast as can be."""
    is_over = threading.Event()

    def work() -> None:
        with Store.open(mailfs.store) as store:
            docids = store.index.docids(plan(parse_query("*"), 0))
            for add, remove in cycle([(FLAGGED, 0), (0, FLAGGED)]):
                if is_over.is_set():
                    return
                with store.writer.transaction("storm", durable=False) as transaction:
                    for docid in docids:
                        transaction.edit_flags(docid, add, remove)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(DEADLINE_S)


@pytest.mark.skipif(os.getuid() != 0, reason="mount(8) is for root")
def test_what_lies_over_a_views_folder_is_left_alone_and_the_names_are_right_below_it(
    mounted: Mailfs,
) -> None:
    over = mounted.path("flagged/cur")
    with watching(mounted, "flagged", "inbox") as world:
        mounted.account.output("mount", "-t", "tmpfs", "none", over)
        try:
            before = world.place(1)
            world.flag(1, add=FLAGGED)
            world.watcher.await_line(f"MOVE inbox/{before} -> inbox/{world.place(1)}")
            world.watcher.hear()
            assert os.listdir(over) == []
        finally:
            mounted.account.output("umount", over)
        world.truth.check("flagged", "inbox")
        world.flag(2, add=FLAGGED)
        world.watcher.await_line(f"CREATE flagged/{world.place(2)}")
        world.truth.check("flagged", "inbox")


@pytest.mark.parametrize("flags", [(), ("-l",)], ids=["umount", "umount -l"])
def test_unmounting_in_a_storm_works_at_once(mounted: Mailfs, flags: tuple[str, ...]) -> None:
    with watching(mounted, *VIEWS) as world:
        pid = mounted.pid
        with storm(mounted):
            for _ in range(3):
                world.watcher.take(DEADLINE_S)
            mounted.umount(*flags)
            assert not mounted.is_mounted()
            wait_until(lambda: not is_alive(pid), "the daemon's end")


def test_a_daemon_killed_in_a_storm_leaves_a_mount_that_is_dead_and_can_be_made_anew(
    mounted: Mailfs,
) -> None:
    with watching(mounted, *VIEWS) as world, storm(mounted):
        for _ in range(3):
            world.watcher.take(DEADLINE_S)
        pid = mounted.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the daemon's end")
        with refused(errno.ENOTCONN, errno.ECONNABORTED):
            os.listdir(mounted.path("inbox/cur"))
        assert mounted.is_mounted()
        mounted.mount()
        assert len(mounted.names("inbox")) == 4
    with watching(mounted, "flagged") as world:
        world.flag(1, add=FLAGGED)
        world.truth.check("flagged")


# --- at rest


def used(pid: int) -> tuple[int, int]:
    """Ticks of processor time, and how often the daemon's threads went to sleep of their own will."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = sum(
        int(line.split()[1])
        for path in Path(f"/proc/{pid}/task").glob("*/status")
        for line in path.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )
    return int(fields[11]) + int(fields[12]), switches


@pytest.mark.slow
@pytest.mark.parametrize("query", ["tag:work", "date:today"])
def test_a_mount_that_is_watched_and_listed_does_nothing_while_nothing_happens(
    mounted: Mailfs, query: str
) -> None:
    mounted.say("save", "idle", query)
    with watching(mounted, *VIEWS, "idle") as world:
        for view in (*VIEWS, "idle"):
            mounted.names(view)
        world.flag(1, add=FLAGGED)
        world.watcher.hear(until_quiet_s=1.5)
        ticks, switches = used(mounted.pid)
        pause(5.0)
        more_ticks, more_switches = used(mounted.pid)
        assert more_ticks - ticks <= (1 if query == "tag:work" else 3)
        assert more_switches - switches <= (10 if query == "tag:work" else 40)
        assert world.watcher.hear() == []
