"""Who changed what, and taking it back, on real mounts: clients are named, and what comes back is seen and heard."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mailfs.ids import Docid
from mailfs.store.store import Store
from tests.fakes import make_message
from tests.mount.calls import deliver, spool
from tests.mount.mounting import Mailfs, add_messages
from tests.mount.terminal import run_in_terminal
from tests.mount.waiting import wait_until
from tests.mount.watching import watching

RAW = make_message(77)


@pytest.fixture
def mounted(mailfs: Mailfs) -> Mailfs:
    """One message in `inbox`, and a folder `work`."""
    mailfs.create(messages=1)
    mailfs.say("save", "work", "tag:work")
    mailfs.mount()
    return mailfs


def run(*words: str | Path) -> "subprocess.Popen[bytes]":
    """A program that must succeed; it has ended."""
    process = subprocess.Popen(words)
    assert process.wait(30) == 0
    return process


def newest(mailfs: Mailfs) -> dict[str, object]:
    """The newest operation."""
    (found,) = json.loads(mailfs.say("log", "--json", "--limit=1"))
    assert isinstance(found, dict)
    return found


def told(mailfs: Mailfs) -> tuple[object, object, object]:
    found = newest(mailfs)
    return found["command"], found["pid"], found["reason"]


# --- who


def test_rm_is_named_and_undone_in_view_and_heard(mounted: Mailfs) -> None:
    with watching(mounted, "inbox") as world:
        place = f"inbox/{world.place(1)}"
        process = run("rm", mounted.path(place))
        assert told(mounted) == ("rm", process.pid, "rm in inbox")
        world.expect(f"DELETE {place}")
        mounted.say("undo")
        world.expect(f"CREATE {place}")
    with Store.open(mounted.store) as store:
        assert mounted.path(place).read_bytes() == store.load(Docid(1))


def test_mv_between_views_names_both(mounted: Mailfs) -> None:
    path = mounted.only("inbox")
    process = run("mv", path, mounted.path("work/cur"))
    assert told(mounted) == ("mv", process.pid, "mv from inbox to work")
    mounted.say("undo")
    assert mounted.names("inbox") == [path.name]
    assert mounted.names("work") == []


def test_flags_set_by_a_rename_are_taken_back(mounted: Mailfs) -> None:
    path = mounted.only("inbox")
    process = run("mv", path, f"{path}FS")
    assert told(mounted) == ("mv", process.pid, "rename in inbox")
    mounted.say("undo")
    assert mounted.names("inbox") == [path.name]


def test_a_delivery_by_link_and_one_by_rename_name_the_client(mounted: Mailfs) -> None:
    deliver(mounted.path("inbox"), "77.a", RAW, "new")
    assert told(mounted)[1:] == (os.getpid(), "delivery into inbox")
    path = spool(mounted.path("inbox"), "78.a", make_message(78))
    process = run("ln", path, mounted.path("inbox/new/78.a"))
    assert told(mounted) == ("ln", process.pid, "delivery into inbox")
    mounted.say("undo")
    assert mounted.names("inbox", "new") == ["77.a"]


def test_a_file_copied_into_a_view_is_the_copiers_though_it_has_ended(
    mounted: Mailfs, tmp_path: Path
) -> None:
    source = tmp_path / "77.a"
    source.write_bytes(RAW)
    before = mounted.count("*")
    process = run("cp", source, mounted.path("inbox/cur/77.a"))
    wait_until(lambda: mounted.count("*") > before, "the file is taken in")
    assert told(mounted) == ("cp", process.pid, "delivery into inbox")


def test_folders_made_renamed_and_removed_are_named_and_come_back(mounted: Mailfs) -> None:
    process = run("mkdir", mounted.path("job"))
    assert told(mounted) == ("mkdir", process.pid, "mkdir job")
    run("mv", mounted.path("job"), mounted.path("task"))
    assert told(mounted)[2] == "mv job task"
    process = run("rmdir", mounted.path("task"))
    assert told(mounted) == ("rmdir", process.pid, "rmdir task")
    for shown in ("task", "job"):
        mounted.say("undo")
        assert mounted.path(shown, "cur").is_dir()
    assert not mounted.path("task").exists()
    mounted.say("undo")
    assert not mounted.path("job").exists()


def test_a_query_that_was_written_names_the_writer(mounted: Mailfs) -> None:
    query = mounted.path(".mailfs/views/work/query")
    process = run("sh", "-c", 'echo tag:job > "$1"', "sh", query)
    assert told(mounted) == ("sh", process.pid, "query of work")
    mounted.say("undo")
    assert query.read_text() == "tag:work\n"


def test_a_thread_of_a_client_is_its_process(mounted: Mailfs) -> None:
    code = "import os, sys, threading as t; x = t.Thread(target=os.unlink, args=sys.argv[1:]); x.start(); x.join()"
    process = run(sys.executable, "-c", code, mounted.only("inbox"))
    assert told(mounted)[1:] == (process.pid, "rm in inbox")


# --- back


def test_what_is_undeleted_is_in_its_folders_again(mounted: Mailfs) -> None:
    mounted.say("tag", "+work", "*")
    path = mounted.only("inbox")
    mounted.say("expunge", "*")
    assert mounted.names("inbox") == mounted.names("work") == []
    with watching(mounted, "inbox", "work") as world:
        assert mounted.say("undelete", "*") == "1 brought back\n"
        world.expect(f"CREATE inbox/cur/{path.name}", f"CREATE work/cur/{path.name}")


def test_an_import_is_undone_in_view(mounted: Mailfs, tmp_path: Path) -> None:
    source = tmp_path / "work.mbox"
    source.write_bytes(b"From a@example.org Tue Jan  2 03:04:05 2024\n" + RAW + b"\n")
    mounted.say("import", source)
    assert len(mounted.names("work", "new")) == 1
    mounted.say("undo")
    assert mounted.names("work", "new") == []


def test_expire_of_what_was_just_removed_leaves_the_mount_as_it_is(mounted: Mailfs) -> None:
    with Store.open(mounted.store) as store:
        add_messages(store, 3, first=10)
    names = mounted.names("inbox")
    held = mounted.path("inbox/cur", names[0])
    with held.open("rb") as file:
        raw = file.read()
        for name in names[:2]:
            mounted.path("inbox/cur", name).unlink()
        mounted.say("expire", "--older", "0d")
        assert mounted.names("inbox") == names[2:]
        file.seek(0)
        assert file.read() == raw
    assert os.listdir(mounted.path(".expunged/cur")) == []


@pytest.mark.skipif(shutil.which("mutt") is None, reason="mutt is not installed")
def test_what_mutt_deleted_is_brought_back(mounted: Mailfs) -> None:
    path = mounted.only("inbox")
    rc = mounted.folder / "muttrc"
    settings = ("mbox_type=Maildir", "delete=yes", "move=no", f'folder="{mounted.mountpoint}"')
    rc.write_text("".join(f"set {each}\n" for each in settings) + "push dq\n")
    words = ["mutt", "-n", "-F", str(rc), "-f", str(mounted.path("inbox"))]
    run_in_terminal(mounted.account, words, mounted.folder)
    assert mounted.names("inbox") == []
    command, _, reason = told(mounted)
    assert (command, reason) == ("mutt", "rm in inbox")
    mounted.say("undo")
    assert [name.partition(":")[0] for name in mounted.names("inbox")] == [
        path.name.partition(":")[0]
    ]
