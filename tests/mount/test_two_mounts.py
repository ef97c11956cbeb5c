"""Two mounts of one store: what is done in one is heard and seen in the other, and many clients of both end in the same picture."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from mailfs.errors import NoSuchMessage
from mailfs.ids import Docid
from mailfs.message.keywords import ANSWERED, FLAGGED, RECENT, SEEN
from mailfs.search.plan import plan
from mailfs.search.query import parse_query
from mailfs.store.store import Store
from mailfs.views.tree import message_ino
from tests.fakes import make_message
from tests.mount.calls import deliver, make_view
from tests.mount.mounting import Mailfs, is_alive
from tests.mount.waiting import DEADLINE_S, wait_until
from tests.mount.watching import Watcher, World, place_of, watching

VIEWS = ("inbox", "unread", "flagged", "work")
RUN_S = 6.0


@pytest.fixture
def here(mailfs: Mailfs) -> Mailfs:
    """Where somebody watches: three messages in `inbox`, not read."""
    mailfs.create(messages=3)
    mailfs.say("save", "work", "tag:work")
    mailfs.mount()
    return mailfs


@pytest.fixture
def there(here: Mailfs) -> Iterator[Mailfs]:
    """The other mount of the same store."""
    made = Mailfs(here.account, here.folder)
    made.mountpoint = here.folder / "there"
    here.served_by = here.pid
    made.mount()
    (made.served_by,) = set(made.pids()) - {here.pid}
    yield made
    if made.is_mounted():
        made.umount()


@pytest.fixture
def world(here: Mailfs, there: Mailfs) -> Iterator[World]:
    with watching(here, *VIEWS) as made:
        yield made


def test_renames_and_removals_in_the_other_mount_are_heard_once(
    world: World, there: Mailfs
) -> None:
    before = world.place(1)
    there.path("inbox", before).rename(there.path("inbox", before + "F"))
    world.expect(
        *(f"MOVE {view}/{before} -> {view}/{before}F" for view in ("inbox", "unread")),
        f"CREATE flagged/{before}F",
    )
    there.path("inbox", before + "F").rename(there.path("work", before + "F"))
    world.expect(f"DELETE inbox/{before}F", f"CREATE work/{before}F")
    there.path("all", before + "F").unlink()
    world.expect(*(f"DELETE {view}/{before}F" for view in ("unread", "flagged", "work")))


def test_what_is_delivered_and_linked_in_the_other_mount_is_heard_under_the_name_it_got(
    world: World, there: Mailfs
) -> None:
    deliver(there.path("inbox"), "theirs", make_message(10), "new")
    new = place_of(world.store, 4)
    world.watcher.expect("CREATE inbox/new/theirs", f"CREATE unread/{new}")
    there.path("inbox/new/theirs").rename(there.path("inbox/cur/theirs:2,S"))
    world.watcher.expect("MOVE inbox/new/theirs -> inbox/cur/theirs:2,S", f"DELETE unread/{new}")
    os.link(there.path("inbox/cur/theirs:2,S"), there.path("work/cur/linked:2,S"))
    world.watcher.expect("CREATE work/cur/linked:2,S")
    os.link(world.mailfs.path("work/cur/linked:2,S"), world.mailfs.path("work/tmp/again"))
    assert world.mailfs.path("work/tmp/again").read_bytes() == make_message(10)


def test_searches_made_moved_and_edited_in_the_other_mount_are_heard(
    world: World, there: Mailfs
) -> None:
    make_view(there.path("later"))
    world.watcher.expect("CREATE later ISDIR")
    there.path("later").rename(there.path("sooner"))
    world.watcher.expect("MOVE later -> sooner ISDIR")
    there.path("sooner").rmdir()
    world.watcher.expect("DELETE sooner ISDIR")
    there.path(".mailfs/views/work/query").write_text("tag:inbox is:unread\n")
    world.expect(*(f"CREATE work/{world.place(docid)}" for docid in (1, 2, 3)))


def test_a_view_moved_in_the_other_mount_is_still_watched(world: World, there: Mailfs) -> None:
    there.path("work").rename(there.path("office"))
    world.watcher.await_line("MOVE work -> office ISDIR")
    world.watcher.hear()
    world.label(1, "office")
    # The watcher calls the folder as it was called when it began.
    world.watcher.expect(f"CREATE work/{world.place(1)}")
    world.truth.check("office")


def test_a_message_read_here_stays_under_its_readers_eyes_and_leaves_there_at_once(
    world: World, there: Mailfs
) -> None:
    before = world.place(1)
    there.names("unread")
    read = there.path("unread", before)
    read.rename(read.with_name(read.name + "S"))
    world.expect(
        f"MOVE inbox/{before} -> inbox/{before}S",
        f"DELETE unread/{before}",
    )
    assert f"{read.name}S" in there.names("unread")


def test_both_hear_a_command_and_each_hears_its_own_changes_once(
    world: World, there: Mailfs
) -> None:
    with Watcher(there.mountpoint, "inbox/cur", "flagged/cur") as theirs:
        wait_until(lambda: len(there.status()["views"]) == 2, "both are followed")  # type: ignore[arg-type]
        before = world.place(1)
        world.mailfs.say("tag", "+flagged", "id:1@example.org")
        told = (f"MOVE inbox/{before} -> inbox/{before}F", f"CREATE flagged/{before}F")
        theirs.expect(*told)
        world.expect(*told, f"MOVE unread/{before} -> unread/{before}F")
        there.path("flagged", before + "F").unlink()
        told = (f"DELETE inbox/{before}F", f"DELETE flagged/{before}F")
        theirs.expect(*told)
        world.expect(*told, f"DELETE unread/{before}F")


@pytest.mark.parametrize("end", ["umount", "SIGKILL"])
def test_one_mounts_end_is_nothing_to_the_other(world: World, there: Mailfs, end: str) -> None:
    there.names("inbox")
    if end == "umount":
        there.umount()
    else:
        os.kill(there.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(there.pid), "its end")
        there.account.output("fusermount3", "-u", "-z", there.mountpoint)
        assert str(there.mountpoint) not in there.say("status")
    assert world.watcher.hear() == []
    before = world.place(1)
    world.flag(1, add=SEEN)
    world.expect(f"MOVE inbox/{before} -> inbox/{before}S", f"DELETE unread/{before}")


# --- many clients at once


@dataclass
class Crowd:
    """Clients of both mounts that do everything to a few messages, each in a thread of its own, until the time is over."""

    mounts: tuple[Mailfs, ...]
    end: float
    failures: list[OSError] = field(default_factory=list)

    def chosen(self, random: Random) -> tuple[Mailfs, Path]:
        mailfs, view = random.choice(self.mounts), random.choice(VIEWS)
        return mailfs, mailfs.path(view, "cur", random.choice(mailfs.names(view) or ["none"]))

    def rename(self, random: Random) -> None:
        _, path = self.chosen(random)
        letters = "".join(sorted(random.sample("FRS", random.randint(0, 3))))
        path.rename(path.with_name(f"{path.name.partition(':')[0]}:2,{letters}"))

    def move(self, random: Random) -> None:
        mailfs, path = self.chosen(random)
        path.rename(mailfs.path(random.choice(("inbox", "work")), "cur", path.name))

    def link(self, random: Random) -> None:
        mailfs, path = self.chosen(random)
        os.link(path, mailfs.path("work/cur", f"{random.random()}:2,"))

    def replace(self, random: Random) -> None:
        mailfs, path = self.chosen(random)
        path.unlink()
        raw = make_message(random.randrange(10**9))
        deliver(mailfs.path("inbox"), str(random.random()), raw, random.choice(("cur", "new")))

    def look(self, random: Random) -> None:
        mailfs, path = self.chosen(random)
        path.read_bytes()
        view = random.choice(VIEWS)
        with Watcher(mailfs.mountpoint, f"{view}/cur", f"{view}/new") as watcher:
            mailfs.names(view, "new")
            watcher.take(0.01)

    def repeat(self, work: Callable[[Random], None], seed: int) -> None:
        random = Random(seed)
        try:
            while time.monotonic() < self.end:
                with suppress(FileNotFoundError, FileExistsError):
                    work(random)
        except OSError as error:
            self.failures.append(error)

    def tag(self, world: World) -> None:
        """What a command does meanwhile."""
        random = Random(0)
        while time.monotonic() < self.end:
            for docid in random.sample(live(world.store, "*"), 3):
                with suppress(NoSuchMessage):
                    world.flag(
                        docid, random.choice((FLAGGED, SEEN)), random.choice((ANSWERED, RECENT))
                    )
                    (world.label if random.random() < 0.5 else world.unlabel)(docid, "work")
            world.watcher.take()


def live(store: Store, query: str) -> list[Docid]:
    return store.index.docids(plan(parse_query(query), 0.0))


@pytest.mark.slow
def test_clients_of_both_mounts_never_hang_and_both_show_the_same_in_the_end(
    world: World, there: Mailfs
) -> None:
    for number in range(50):
        world.add(100 + number, "inbox")
    crowd = Crowd((world.mailfs, there), time.monotonic() + RUN_S)
    works = (crowd.rename, crowd.rename, crowd.move, crowd.link, crowd.replace, crowd.look)
    clients = [
        threading.Thread(target=crowd.repeat, args=(work, seed), daemon=True)
        for seed, work in enumerate(works)
    ]
    for client in clients:
        client.start()
    crowd.tag(world)
    for client in clients:
        client.join(DEADLINE_S)
    assert not any(client.is_alive() for client in clients), "a client hangs"
    assert crowd.failures == []
    world.watcher.hear(until_quiet_s=1.5)
    for view, query in (("inbox", "tag:inbox"), ("work", "tag:work"), ("all", "*")):
        inos = set(map(message_ino, live(world.store, query)))
        for mailfs in crowd.mounts:
            folders = [mailfs.path(view, part) for part in ("cur", "new")]
            stats = [path.lstat() for folder in folders for path in folder.iterdir()]
            shown = {found.st_ino for found in stats}
            assert inos <= shown, (view, mailfs.mountpoint)
            assert len(shown - inos) == lingering(mailfs, view)
            assert all(found.st_nlink >= 1 for found in stats)
    for mailfs in crowd.mounts:
        assert mailfs.status()["in_flight"] == []


def lingering(mailfs: Mailfs, name: str) -> int:
    """How many messages a view still shows to those who changed them in it."""
    views = mailfs.status()["views"]
    assert isinstance(views, list)
    (found,) = [view["lingering"] for view in views if view["name"] == name]
    assert isinstance(found, int)
    return found
