"""`.mailfs` on real mounts: read with the ordinary programs, queries written with them, and everything else refused."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailfs.message.keywords import SEEN
from mailfs.store.store import Store
from tests.mount.accounts import Account
from tests.mount.calls import refused
from tests.mount.mounting import Mailfs, add_messages
from tests.mount.waiting import wait_until

VIEWS = ("all", "flagged", "inbox", "unread")


@pytest.fixture
def mounted(mailfs: Mailfs) -> Mailfs:
    """Three messages in `inbox`, one of them read, and a search `work`."""
    mailfs.create(messages=2)
    with Store.open(mailfs.store) as store:
        add_messages(store, 1, flags=SEEN, first=3)
    mailfs.say("save", "work", "tag:work")
    mailfs.mount()
    return mailfs


def control(mailfs: Mailfs, *parts: str) -> Path:
    return mailfs.path(".mailfs", *parts)


def query(mailfs: Mailfs, name: str = "work") -> str:
    return control(mailfs, "views", name, "query").read_text()


def write(mailfs: Mailfs, text: str, name: str = "work") -> None:
    """As `echo` does: one write(2), and nothing is tried again."""
    fd = os.open(control(mailfs, "views", name, "query"), os.O_WRONLY | os.O_TRUNC)
    try:
        assert os.write(fd, text.encode()) == len(text.encode())
    finally:
        os.close(fd)


def errors(mailfs: Mailfs) -> list[str]:
    return control(mailfs, "errors").read_text().splitlines()


# --- looking


def test_it_is_entered_by_name_and_nobody_who_lists_the_mount_meets_it(mounted: Mailfs) -> None:
    run = mounted.account.output
    assert sorted(run("ls", "-A", mounted.mountpoint).split()) == sorted([*VIEWS, "work"])
    assert os.stat(mounted.mountpoint).st_nlink == 2 + 5
    assert ".mailfs" not in run("find", mounted.mountpoint)
    assert sorted(run("ls", "-A", control(mounted)).split()) == [
        "errors",
        "status",
        "status.json",
        "views",
    ]
    assert sorted(os.listdir(control(mounted, "views"))) == sorted([*VIEWS, "work"])


def test_find_ls_and_grep_go_through_all_of_it(mounted: Mailfs) -> None:
    for name in ("work/unread", "lists/linux api/ä", "50%/%2F"):
        mounted.say("save", name, "tag:work")
    run = mounted.account.output
    paths = run("find", control(mounted)).splitlines()
    named = {path.partition("/.mailfs/views/")[2] for path in paths}
    whole = {"work%2Funread", "lists/linux api/ä", "50%25%2F%252F"}
    assert {f"{name}/{file}" for name in whole for file in ("query", "count")} <= named
    listing = run("ls", "-lR", control(mounted))
    assert listing.count("-rw-------") == len(VIEWS) + 4
    found = run("grep", "-r", "^tag:work$", control(mounted)).splitlines()
    assert len(found) == 4
    assert all(line.endswith("/query:tag:work") for line in found)


def test_links_of_its_directories_are_counted_exactly(mounted: Mailfs) -> None:
    mounted.say("save", "lists/linux", "tag:l")
    for folder, folders, _ in os.walk(control(mounted)):
        assert os.stat(folder).st_nlink == 2 + len(folders), folder


def test_counts_are_right_whether_or_not_the_view_was_listed(mounted: Mailfs) -> None:
    def counts(name: str) -> tuple[str, str]:
        count, unread = (
            control(mounted, "views", name, each).read_text() for each in ("count", "unread")
        )
        return count, unread

    assert counts("inbox") == ("3\n", "2\n")
    names = mounted.names("inbox")
    assert counts("inbox") == ("3\n", "2\n")
    for name in names:
        if not name.endswith("S"):
            mounted.path("inbox/cur", name).rename(mounted.path("inbox/cur", name + "S"))
            break
    mounted.say("tag", "-inbox", "id:3@example.org")
    assert counts("inbox") == ("2\n", "1\n")
    assert counts("unread") == ("1\n", "1\n")
    assert counts("work") == ("0\n", "0\n")


def test_explain_says_what_the_query_means(mounted: Mailfs) -> None:
    mounted.say("save", "--on-rm=untag", "mine", "tag:inbox -is:flagged")
    text = control(mounted, "views/mine/explain").read_text()
    assert re.search(r"^query +tag:inbox -is:flagged$", text, re.MULTILINE)
    assert re.search(r"^kind +label view", text, re.MULTILINE)
    assert re.search(r"^rm +takes off inbox, .*on-rm=untag", text, re.MULTILINE)
    assert re.search(r"^sql +.*message\.", text, re.MULTILINE)


def test_status_is_the_daemons_for_people_and_for_programs(mounted: Mailfs) -> None:
    with mounted.path("inbox/cur", mounted.names("inbox")[0]).open("rb"):
        told = json.loads(control(mounted, "status.json").read_text())
        text = control(mounted, "status").read_text()
    assert told["pid"] == mounted.pid
    assert told["mountpoint"] == str(mounted.mountpoint)
    assert str(mounted.pid) in text
    assert "inbox" in text


def test_an_open_file_reads_on_when_its_search_is_renamed_or_forgotten(mounted: Mailfs) -> None:
    with (
        control(mounted, "views/work/explain").open("rb", buffering=0) as explain,
        control(mounted, "views/work/query").open("r+b", buffering=0) as written,
    ):
        assert explain.read(4) == b"name"
        mounted.path("work").rename(mounted.path("job"))
        assert b"tag:work" in explain.read()
        # What is opened is the search, not its name.
        written.write(b"tag:job is:unread")
        assert query(mounted, "job") == "tag:job is:unread\n"
        mounted.path("job").rmdir()
        written.seek(0)
        assert written.read() == b"tag:job is:unread"
        with refused(errno.ENOENT):
            written.write(b"tag:other")
    assert not control(mounted, "views/job").exists()


def test_an_open_directory_is_listed_to_its_end_whatever_is_forgotten(mounted: Mailfs) -> None:
    for number in range(300):
        mounted.path(f"s{number}").mkdir()
    with os.scandir(control(mounted, "views")) as scan:
        first = next(scan).name
        for number in range(300):
            mounted.path(f"s{number}").rmdir()
        rest = [entry.name for entry in scan]
    assert sorted([first, *rest]) == sorted([*VIEWS, "work", *(f"s{n}" for n in range(300))])
    assert sorted(os.listdir(control(mounted, "views"))) == sorted([*VIEWS, "work"])


def test_a_listing_of_many_searches_takes_few_requests(mounted: Mailfs) -> None:
    many = 3000
    with Store.open(mounted.store) as store, store.writer.transaction("test", durable=False) as tx:
        for number in range(many):
            tx.searches.save(f"many/s{number}", f"tag:k{number}")
    with mounted.counted() as made:
        assert len(os.listdir(control(mounted, "views/many"))) == many
    assert made["readdir"] < many / 10
    assert made["lookup"] < 10


# --- writing queries


def test_a_query_that_is_written_is_that_of_the_view_at_once(mounted: Mailfs) -> None:
    assert mounted.names("work") == []
    before = os.stat(control(mounted, "views/work/query")).st_ino
    write(mounted, "tag:inbox is:unread\n")
    assert query(mounted) == "tag:inbox is:unread\n"
    assert len(mounted.names("work")) == 2
    assert "tag:inbox is:unread" in mounted.say("searches")
    after = os.stat(control(mounted, "views/work/query"))
    assert (after.st_ino, after.st_size) == (before, len("tag:inbox is:unread\n"))


def test_a_query_written_in_one_mount_is_seen_in_another(mounted: Mailfs) -> None:
    other = mounted.folder / "other"
    other.mkdir()
    before = set(mounted.pids())
    mounted.say("mount", other)
    (mounted.served_by,) = before
    try:
        assert os.listdir(other / "work/cur") == []
        write(mounted, "tag:inbox")
        assert (other / ".mailfs/views/work/query").read_text() == "tag:inbox\n"
        assert len(os.listdir(other / "work/cur")) == 3
    finally:
        mounted.say("umount", other)
        wait_until(lambda: set(mounted.pids()) == before, "the end of the other mount")
        mounted.served_by = None


def test_a_bad_query_is_refused_with_the_place_and_the_old_one_stays(mounted: Mailfs) -> None:
    write(mounted, "tag:inbox")
    with refused(errno.EINVAL):
        write(mounted, "tag:inbox (or is:unread\n")
    assert query(mounted) == "tag:inbox\n"
    assert len(mounted.names("work")) == 3
    (line,) = errors(mounted)
    assert "write: the query of work: " in line
    assert "at character 12 of: tag:inbox (or is:unread" in line
    assert "the query of work: " in mounted.log_text()


def test_what_rm_is_to_do_must_still_be_possible(mounted: Mailfs) -> None:
    mounted.say("save", "--on-rm=untag", "mine", "tag:mine")
    with refused(errno.EINVAL):
        write(mounted, "from:ann", "mine")
    assert "on-rm=untag takes keywords off" in errors(mounted)[-1]
    write(mounted, "tag:inbox", "mine")
    assert "mine     tag:inbox  (on-rm = untag)" in mounted.say("searches")


def test_cutting_or_opening_a_query_changes_nothing(mounted: Mailfs) -> None:
    path = control(mounted, "views/work/query")
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    os.truncate(path, 0)
    shutil.copyfile("/dev/null", path)
    os.utime(path)
    path.chmod(0o600)
    assert query(mounted) == "tag:work\n"
    with refused(errno.EINVAL):
        write(mounted, "\n")
    assert errors(mounted)[-1].count("an empty query") == 1


def test_writes_that_go_on_make_the_query_longer(mounted: Mailfs) -> None:
    fd = os.open(control(mounted, "views/work/query"), os.O_RDWR | os.O_TRUNC)
    try:
        os.write(fd, b"tag:inbox\n")
        assert query(mounted) == "tag:inbox\n"
        os.write(fd, b"is:unread\n")
        assert query(mounted) == "tag:inbox is:unread\n"
        with refused(errno.EINVAL):
            os.write(fd, b"or (\n")
        with refused(errno.EINVAL):
            os.pwrite(fd, b"x", 1000)
        os.write(fd, b"is:flagged\n")
        assert query(mounted) == "tag:inbox is:unread is:flagged\n"
        assert os.pread(fd, 100, 0) == b"tag:inbox\nis:unread\nis:flagged\n"
        # As in proc(5) and sysfs: who writes at the beginning writes it anew.
        os.pwrite(fd, b"tag:a", 0)
        assert query(mounted) == "tag:a\n"
        os.ftruncate(fd, 0)
        assert query(mounted) == "tag:a\n"
        os.fsync(fd)
    finally:
        os.close(fd)


def test_what_is_cut_at_the_opening_begins_anew_also_where_writes_append(mounted: Mailfs) -> None:
    fd = os.open(control(mounted, "views/work/query"), os.O_RDWR | os.O_TRUNC | os.O_APPEND)
    try:
        assert os.read(fd, 100) == b""
        # The kernel would append behind the query that still holds.
        assert os.fstat(fd).st_size == len("tag:work\n")
        os.write(fd, b"tag:inbox\n")
        os.write(fd, b"is:unread\n")
    finally:
        os.close(fd)
    assert query(mounted) == "tag:inbox is:unread\n"


WRITERS = {
    "echo": ("sh", "-c", "echo 'tag:inbox is:unread' > query"),
    "append": ("sh", "-c", "echo tag:inbox > query && echo is:unread >> query"),
    "tee": ("sh", "-c", "echo 'tag:inbox is:unread' | tee query"),
    "cp": ("sh", "-c", "cp ../../../../file query"),
    "cat": ("sh", "-c", "cat ../../../../file > query"),
    "dd": ("sh", "-c", "dd if=../../../../file of=query conv=notrunc status=none"),
    "vim": (
        *(
            "vim",
            "-u",
            "NONE",
            "-i",
            "NONE",
            "-es",
            "-c",
            "set swapfile writebackup backupcopy=auto",
        ),
        *("-c", "%s/tag:work/tag:inbox is:unread/", "-c", "wq", "query"),
    ),
}


@pytest.mark.parametrize("program", WRITERS)
def test_ordinary_programs_write_a_query(mounted: Mailfs, program: str) -> None:
    words = WRITERS[program]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    (mounted.folder / "file").write_text("tag:inbox is:unread\n")
    folder = control(mounted, "views/work")
    done = mounted.account.run("env", "-C", folder, *words)
    assert done.returncode == 0, done.stderr
    assert query(mounted) == "tag:inbox is:unread\n"
    assert len(mounted.names("work")) == 2


def test_sed_in_place_is_refused_with_a_reason(mounted: Mailfs) -> None:
    done = mounted.account.run("sed", "-i", "s/work/inbox/", control(mounted, "views/work/query"))
    assert done.returncode != 0
    assert "not permitted" in done.stderr
    assert query(mounted) == "tag:work\n"
    assert "create: nothing in .mailfs can be made" in errors(mounted)[-1]


def test_a_search_that_does_not_parse_is_mended_by_writing_its_query(mailfs: Mailfs) -> None:
    mailfs.create(messages=2)
    with Store.open(mailfs.store) as store, store.writer.transaction("test", durable=False) as tx:
        tx.searches.save("broken", "tag:inbox (or")
    mailfs.mount()
    assert "broken" not in os.listdir(mailfs.mountpoint)
    assert sorted(os.listdir(control(mailfs, "views/broken"))) == ["explain", "query"]
    assert "at character 12" in control(mailfs, "views/broken/explain").read_text()
    assert errors(mailfs)[0].startswith("the search broken is not shown: ")
    write(mailfs, "tag:inbox", "broken")
    assert errors(mailfs) == []
    assert len(mailfs.names("broken")) == 2
    assert control(mailfs, "views/broken/count").read_text() == "2\n"


# --- everything else

REFUSED: dict[str, Callable[[Path, Path], object]] = {
    "create": lambda root, _: (root / ".mailfs/x").touch(),
    "create in a view": lambda root, _: (root / ".mailfs/views/work/x").touch(),
    "mkdir": lambda root, _: (root / ".mailfs/views/x").mkdir(),
    "mkfifo": lambda root, _: os.mkfifo(root / ".mailfs/x"),
    "symlink": lambda root, _: (root / ".mailfs/x").symlink_to("y"),
    "link into it": lambda root, file: os.link(file, root / ".mailfs/x"),
    "link out of it": lambda root, _: os.link(root / ".mailfs/status", root / "inbox/tmp/x"),
    "unlink": lambda root, _: (root / ".mailfs/views/work/query").unlink(),
    "rmdir": lambda root, _: (root / ".mailfs").rmdir(),
    "rmdir of a view": lambda root, _: (root / ".mailfs/views/work").rmdir(),
    "rename within": lambda root, _: (root / ".mailfs/views/work").rename(root / ".mailfs/views/x"),
    "rename out of it": lambda root, _: (root / ".mailfs/errors").rename(root / "inbox/tmp/x"),
    "rename of a view into it": lambda root, _: (root / "work").rename(root / ".mailfs/views/x"),
    "rename of a file into it": lambda root, file: file.rename(root / ".mailfs/status"),
    "rename of itself": lambda root, _: (root / ".mailfs").rename(root / "x"),
    "rename over itself": lambda root, _: (root / "work").rename(root / ".mailfs"),
    "chmod": lambda root, _: (root / ".mailfs/errors").chmod(0o644),
    "write": lambda root, _: (root / ".mailfs/views/work/count").write_text("1"),
    "cut": lambda root, _: os.truncate(root / ".mailfs/status", 0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_everything_else_is_refused_with_a_reason(mounted: Mailfs, what: str) -> None:
    file = mounted.path("inbox/tmp/file")
    file.write_text("ordinary")
    listing = sorted(os.listdir(control(mounted, "views/work")))
    with refused(errno.EPERM):
        REFUSED[what](mounted.mountpoint, file)
    assert "only the query of a search can be written" in errors(mounted)[-1]
    assert sorted(os.listdir(control(mounted, "views/work"))) == listing
    assert sorted(os.listdir(mounted.mountpoint)) == sorted([*VIEWS, "work"])
    assert file.read_text() == "ordinary"


def test_a_refusal_says_what_was_to_be_changed(mounted: Mailfs) -> None:
    with refused(errno.EPERM):
        control(mounted, "views/work/count").write_text("1")
    assert "open: count of work cannot be written" in errors(mounted)[-1]
    with refused(errno.EPERM):
        control(mounted, "status.json").chmod(0o600)
    assert (
        "setattr: the mode and the owner of .mailfs (status.json) are fixed" in errors(mounted)[-1]
    )


def test_mkdir_of_itself_says_that_it_is_there(mounted: Mailfs) -> None:
    with refused(errno.EEXIST):
        control(mounted).mkdir()


def test_errors_are_kept_once_in_a_row_and_the_last_200(mounted: Mailfs) -> None:
    for _ in range(3):
        with refused(errno.EPERM):
            control(mounted, "x").touch()
    (line,) = errors(mounted)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d create: ", line)
    assert line.endswith("(3 times)")
    for number in range(220):
        with refused(errno.EINVAL):
            write(mounted, f"number{number} (")
    lines = errors(mounted)
    assert len(lines) == 200
    assert lines[0].endswith("number20 (")
    assert lines[-1].endswith("number219 (")


def test_nothing_of_any_mail_is_in_it(mounted: Mailfs) -> None:
    assert mounted.count("subject:message") == 3
    with refused(errno.EPERM):
        os.truncate(mounted.path("inbox/cur", mounted.names("inbox")[0]), 0)
    text = mounted.account.output("grep", "-rh", ".", control(mounted))
    assert "@example.org" not in text
    assert not re.search(r"message [123]\b", text)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_modes_hold_where_the_kernel_checks_them(as_ordinary: Account) -> None:
    folder = as_ordinary.home / "files"
    folder.mkdir()
    as_ordinary.own(folder)
    mailfs = Mailfs(as_ordinary, folder)
    try:
        mailfs.create(messages=1)
        mailfs.mount()
        run = mailfs.account.run
        path = control(mailfs, "views/inbox")
        assert run("sh", "-c", f"echo tag:inbox is:unread > {path}/query").returncode == 0
        assert run("cat", path / "query").stdout == "tag:inbox is:unread\n"
        assert run("cat", path / "count").stdout == "1\n"
        assert run("test", "-w", path / "query").returncode == 0
        assert run("test", "-w", path / "count").returncode == 1
        assert run("touch", path / "x").returncode == 1
    finally:
        mailfs.end()
