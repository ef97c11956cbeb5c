"""What is a message, and in which folder, in Maildirs, MH folders, mbox files and trees of them."""

import io
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailfs.errors import BadSource, NotFound
from mailfs.ingest.mailboxes import (
    FileRef,
    Format,
    MboxRef,
    SourceMessage,
    SourceProblem,
    count_estimate,
    detect,
    iter_source,
    iter_stream,
    read_ref,
)
from mailfs.message.keywords import ANSWERED, DRAFT, FLAGGED, FORWARDED, RECENT, SEEN

FROM = b"From a@example.org Mon Jan  1 00:00:00 2001\n"
TWO_MESSAGES = FROM + b"A: a\n\none\n\n" + FROM + b"B: b\n\n"


def write(root: Path, *names: str, content: bytes = b"A: a\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def refs_of(path: Path, format: Format = Format.AUTO) -> list[FileRef | MboxRef]:
    """All references; no problem is expected."""
    refs = []
    for found in iter_source(path, format):
        assert not isinstance(found, SourceProblem), found
        refs.append(found)
    return refs


def names_of(path: Path, format: Format = Format.AUTO) -> list[str]:
    return [os.fsdecode(ref.path).removeprefix(f"{path}/") for ref in refs_of(path, format)]


def folders_of(path: Path, format: Format = Format.AUTO) -> dict[str, str]:
    refs = refs_of(path, format)
    return {os.fsdecode(ref.path).removeprefix(f"{path}/"): ref.folder for ref in refs}


def problems_of(path: Path, format: Format = Format.AUTO) -> dict[str, str]:
    """Reasons by origin, below `path`."""
    return {
        found.origin.removeprefix(f"{path}/"): found.reason
        for found in iter_source(path, format)
        if isinstance(found, SourceProblem)
    }


def test_messages_of_a_maildir_are_in_cur_and_new_only(tmp_path: Path) -> None:
    write(tmp_path, "cur/2:2,S", "cur/1:2,", "new/3", "tmp/4", "cur/.hidden", "cur/dir/5")
    write(tmp_path, "dovecot-uidlist", "dovecot.index.log", "maildirfolder", ".noupdate")
    assert names_of(tmp_path) == ["cur/1:2,", "cur/2:2,S", "new/3"]
    assert detect(tmp_path) is Format.MAILDIR


def test_maildir_names_say_the_flags(tmp_path: Path) -> None:
    write(tmp_path, "cur/1:2,DFPRS", "cur/2", "cur/3!2,S", "cur/4;2,F", "new/5", "new/6:2,S")
    assert [ref.flags for ref in refs_of(tmp_path) if isinstance(ref, FileRef)] == [
        DRAFT | FLAGGED | FORWARDED | ANSWERED | SEEN,
        0,
        SEEN,
        FLAGGED,
        RECENT,
        RECENT | SEEN,
    ]


def test_small_letters_are_keywords_by_the_file_beside_them(tmp_path: Path) -> None:
    write(tmp_path, "dovecot-keywords", content=b"0 Work\n1 $Forwarded\n2 home\n")
    write(tmp_path, "cur/1:2,Scab", "cur/2:2,z", ".Sub/cur/1:2,a")
    first, second, third = refs_of(tmp_path)
    assert isinstance(first, FileRef)
    assert (first.flags, first.keywords) == (SEEN | FORWARDED, ("home", "work"))
    for ref in (second, third):
        assert isinstance(ref, FileRef)
        assert (ref.flags, ref.keywords) == (0, ())


def test_a_maildir_message_is_its_file_to_the_byte(tmp_path: Path) -> None:
    raw = FROM + b"A: a\r\n\n>From b\n\n"
    write(tmp_path, "cur/1:2,S", content=raw)
    os.utime(tmp_path / "cur/1:2,S", ns=(0, 1_234_567_890_123_456_789))
    (ref,) = refs_of(tmp_path)
    assert read_ref(ref) == SourceMessage(
        raw, SEEN, (), "", 1_234_567_890_123_456_789, f"{tmp_path}/cur/1:2,S"
    )


def test_a_time_before_1970_is_no_time(tmp_path: Path) -> None:
    write(tmp_path, "cur/1")
    os.utime(tmp_path / "cur/1", ns=(0, -1_000_000_000))
    (ref,) = refs_of(tmp_path)
    assert read_ref(ref).received_ns is None


def test_folders_come_depth_first_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, "b/1.eml", "a/z/1.eml", "a/1.eml", "c.eml", "a/y/cur/1")
    assert names_of(tmp_path) == ["c.eml", "a/1.eml", "a/y/cur/1", "a/z/1.eml", "b/1.eml"]


def test_an_empty_file_in_a_maildir_is_an_empty_message(tmp_path: Path) -> None:
    write(tmp_path, "cur/1:2,", content=b"")
    assert [read_ref(ref).raw for ref in refs_of(tmp_path)] == [b""]


def test_subfolders_of_both_layouts_have_names_with_slashes(tmp_path: Path) -> None:
    write(tmp_path, "cur/1", ".Lists.linux/cur/1", ".Entw&APw-rfe/new/1", "A/B/cur/1")
    (tmp_path / ".Entw&APw-rfe/tmp").mkdir()
    assert folders_of(tmp_path) == {
        "cur/1": "",
        ".Entw&APw-rfe/new/1": "Entwürfe",
        ".Lists.linux/cur/1": "Lists/linux",
        "A/B/cur/1": "A/B",
    }


def test_hidden_directories_that_are_no_maildirs_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, ".git/config", ".notmuch/xapian/flintlock", "index/flintlock", "index/x.glass")
    write(tmp_path, "mail/1.eml")
    assert names_of(tmp_path) == ["mail/1.eml"]


def test_a_link_in_cur_is_followed_to_a_regular_file_only(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "message", content=b"B: b\n")
    mail = tmp_path / "mail"
    (mail / "cur").mkdir(parents=True)
    (mail / "cur/1:2,S").symlink_to(tmp_path / "elsewhere/message")
    (mail / "cur/2").symlink_to(tmp_path / "elsewhere")
    (mail / "cur/3").symlink_to("3")
    (mail / "cur/4").symlink_to("nothing")
    messages = [read_ref(ref) for ref in iter_source(mail) if not isinstance(ref, SourceProblem)]
    assert [(message.raw, message.flags) for message in messages] == [(b"B: b\n", SEEN)]
    assert list(problems_of(mail)) == ["cur/2", "cur/3", "cur/4"]


def test_links_in_a_tree_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "cur/1", "2.eml")
    mail = tmp_path / "mail"
    mail.mkdir()
    (mail / "folder").symlink_to(tmp_path / "elsewhere")
    (mail / "file").symlink_to(tmp_path / "elsewhere/2.eml")
    (mail / "self").symlink_to(".")
    reason = "a symbolic link, not followed"
    assert problems_of(mail) == {"file": reason, "folder": reason, "self": reason}
    assert len(list(iter_source(mail))) == 3


def test_a_link_that_is_named_itself_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "box/cur/1", "1.eml")
    (tmp_path / "link").symlink_to("box")
    (tmp_path / "file").symlink_to("1.eml")
    assert len(refs_of(tmp_path / "link")) == 1
    assert read_ref(refs_of(tmp_path / "file")[0]).raw == b"A: a\n"
    assert detect(tmp_path / "file") is Format.FILE


def test_fifos_and_sockets_are_told_and_never_opened(tmp_path: Path) -> None:
    write(tmp_path, "cur/1", "loose/2.eml")
    os.mkfifo(tmp_path / "cur/fifo")
    os.mkfifo(tmp_path / "loose/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "loose/socket"))
    assert problems_of(tmp_path) == {
        "cur/fifo": "not a regular file",
        "loose/fifo": "neither a file nor a directory",
        "loose/socket": "neither a file nor a directory",
    }
    assert problems_of(tmp_path / "cur/fifo") == {f"{tmp_path}/cur/fifo": "not a regular file"}
    with pytest.raises(BadSource, match="not a regular file"):
        detect(tmp_path / "cur/fifo")


def test_a_file_that_became_a_fifo_or_a_link_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "cur/1", "cur/2", "cur/3")
    first, second, third = refs_of(tmp_path)
    for name in ("1", "2", "3"):
        (tmp_path / "cur" / name).unlink()
    os.mkfifo(tmp_path / "cur/1")
    (tmp_path / "cur/2").symlink_to("/etc/passwd")
    for ref in (first, second):
        with pytest.raises(OSError, match=r"regular|symbolic"):
            read_ref(ref)
    with pytest.raises(FileNotFoundError):
        read_ref(third)


def test_what_is_not_there_is_a_problem_and_detect_says_so(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert problems_of(gone) == {str(gone): "No such file or directory"}
    assert count_estimate(gone) == 0
    with pytest.raises(NotFound, match="gone"):
        detect(gone)


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A folder outside pytest's, which only its owner may enter; and nothing is forbidden to root, so not as root."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_read_is_a_problem_and_the_rest_goes_on(readable_by_all: Path) -> None:
    write(readable_by_all, "a/cur/1", "b/cur/1", "c.mbox")
    for path in readable_by_all.rglob("*"):
        path.chmod(0o755)  # whatever the umask is
    (readable_by_all / "a/cur").chmod(0)
    (readable_by_all / "c.mbox").chmod(0)
    with as_ordinary_user():
        assert problems_of(readable_by_all) == {
            "a/cur": "Permission denied",
            "c.mbox": "Permission denied",
        }
        found = list(iter_source(readable_by_all))
    (readable_by_all / "a/cur").chmod(0o700)
    assert sum(isinstance(one, FileRef) for one in found) == 1


def test_mh_messages_have_numbers_and_their_sequences(tmp_path: Path) -> None:
    write(tmp_path, "1", "2", "10", ",3", "#4", "list/7")
    write(tmp_path, ".mh_sequences", content=b"unseen: 10\nreplied: 2\nflagged: 1-2\n")
    refs = [ref for ref in refs_of(tmp_path) if isinstance(ref, FileRef)]
    assert [(os.path.basename(ref.path), ref.flags, ref.folder) for ref in refs] == [
        (b"1", SEEN | FLAGGED, ""),
        (b"2", SEEN | FLAGGED | ANSWERED, ""),
        (b"10", 0, ""),
        (b"7", 0, "list"),
    ]
    assert detect(tmp_path) is Format.MH


def test_a_few_numbers_make_no_mh_folder_unless_somebody_says_so(tmp_path: Path) -> None:
    write(tmp_path, "1", "a.eml", "b.eml")
    assert detect(tmp_path) is Format.AUTO
    assert names_of(tmp_path) == ["1", "a.eml", "b.eml"]
    assert problems_of(tmp_path, Format.MH) == {
        "a.eml": "no message of a mh folder",
        "b.eml": "no message of a mh folder",
    }


def test_an_mbox_is_read_by_ranges(tmp_path: Path) -> None:
    path = tmp_path / "box"
    write(tmp_path, "box", content=TWO_MESSAGES)
    refs = refs_of(path)
    assert [ref.origin for ref in refs] == [read_ref(ref).origin for ref in refs]
    assert [read_ref(ref) for ref in refs] == [
        SourceMessage(b"A: a\n\none\n", RECENT, (), "", 978_307_200_000_000_000, f"{path}:0"),
        SourceMessage(b"B: b\n", RECENT, (), "", 978_307_200_000_000_000, f"{path}:55"),
    ]
    assert detect(path) is Format.MBOX
    assert pickle.loads(pickle.dumps(refs)) == refs


def test_mbox_files_in_a_tree_are_folders(tmp_path: Path) -> None:
    write(tmp_path, "lists/linux.mbox", "lists/2004.txt", "subscriptions", content=TWO_MESSAGES)
    write(tmp_path, "saved/1.txt", "saved/Drafts", content=FROM + b"A: a\n")
    write(tmp_path, "saved/2.txt", "README.md", "saved/x.db")
    assert folders_of(tmp_path) == {
        "README.md": "",
        "lists/2004.txt": "lists/2004",
        "lists/linux.mbox": "lists/linux",
        "saved/1.txt": "saved",
        "saved/2.txt": "saved",
        "saved/Drafts": "saved/Drafts",
        "subscriptions": "subscriptions",
    }


def test_a_saved_message_with_a_from_line_loses_it_unless_it_is_called_a_file(
    tmp_path: Path,
) -> None:
    raw = FROM + b"A: a\n\n>From b\n"
    write(tmp_path, "1.eml", content=raw)
    for path in (tmp_path, tmp_path / "1.eml"):
        assert [read_ref(ref).raw for ref in refs_of(path)] == [b"A: a\n\nFrom b\n"]
        assert [read_ref(ref).raw for ref in refs_of(path, Format.FILE)] == [raw]


def test_the_format_said_decides_how_quotes_are_read(tmp_path: Path) -> None:
    write(tmp_path, "box", content=FROM + b"A: a\n\n>From b\n>>From c\n")
    raws = {
        format: [read_ref(ref).raw[6:] for ref in refs_of(tmp_path / "box", format)]
        for format in (Format.MBOX, Format.MBOXO, Format.MBOXRD, Format.MBOXCL2)
    }
    assert raws == {
        Format.MBOX: [b"From b\n>From c\n"],
        Format.MBOXO: [b"From b\n>>From c\n"],
        Format.MBOXRD: [b"From b\n>From c\n"],
        Format.MBOXCL2: [b">From b\n>>From c\n"],
    }


def test_junk_before_an_mbox_is_a_problem_and_the_messages_are_read(tmp_path: Path) -> None:
    write(tmp_path, "box", content=b"junk\n\n" + TWO_MESSAGES)
    path = tmp_path / "box"
    assert problems_of(path, Format.MBOX) == {f"{path}:0": "6 bytes before the first From_ line"}
    assert len(list(iter_source(path, Format.MBOX))) == 3


def test_a_maildir_source_says_what_else_lies_there(tmp_path: Path) -> None:
    write(tmp_path, "cur/1", "stray", "dovecot-uidlist")
    assert problems_of(tmp_path, Format.MAILDIR) == {"stray": "no message of a maildir folder"}
    assert names_of(tmp_path) == ["cur/1", "stray"]
    path = tmp_path / "stray"
    assert problems_of(path, Format.MAILDIR) == {str(path): "not a directory, as maildir must be"}


def test_names_that_are_no_text_can_be_told_and_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9\n"
    os.mkdir(folder)
    with open(folder + b"/\xff.eml", "wb") as file:
        file.write(b"A: a\n")
    (ref,) = refs_of(tmp_path)
    message = read_ref(ref)
    assert message.folder == "caf\\xe9\\n"
    assert message.origin == f"{tmp_path}/caf\\xe9\\n/\\xff.eml"


def test_a_tree_deeper_than_the_stack_is_walked(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    folder = os.fsencode(tmp_path)
    for _ in range(depth):
        folder += b"/d"
        os.mkdir(folder)
    message = folder + b"/1.eml"
    with open(message, "wb") as file:
        file.write(b"A: a\n")
    try:
        assert len(refs_of(tmp_path)) == 1
    finally:
        # Taken away here: shutil.rmtree() goes no deeper than the stack either.
        os.unlink(message)
        for _ in range(depth):
            os.rmdir(folder)
            folder = folder.removesuffix(b"/d")


def test_the_estimate_counts_entries_and_leaves_mbox_files_unread(tmp_path: Path) -> None:
    write(tmp_path, "mail/cur/1", "mail/new/2", "mail/.Sub/cur/3", "mh/1", "loose/1.eml")
    assert count_estimate(tmp_path) == 5
    assert count_estimate(tmp_path / "loose/1.eml") == 1
    write(tmp_path, "loose/0.mbox", content=TWO_MESSAGES)
    assert count_estimate(tmp_path) is None
    assert count_estimate(tmp_path / "loose/0.mbox") is None
    assert count_estimate(tmp_path, Format.FILE) == 6


def test_a_stream_that_starts_like_an_mbox_is_one(tmp_path: Path) -> None:
    found = list(iter_stream(io.BytesIO(TWO_MESSAGES), spool_folder=tmp_path))
    assert [(one.raw, one.origin) for one in found if isinstance(one, SourceMessage)] == [
        (b"A: a\n\none\n", "standard input:0"),
        (b"B: b\n", "standard input:55"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_any_other_stream_is_one_message() -> None:
    raw = b"A: a\n\n" + FROM + b"x" * 5000
    assert list(iter_stream(io.BytesIO(raw))) == [
        SourceMessage(raw, 0, (), "", None, "standard input")
    ]
    (message,) = iter_stream(io.BytesIO(TWO_MESSAGES), Format.FILE)
    assert isinstance(message, SourceMessage)
    assert message.raw == TWO_MESSAGES


def test_an_empty_stream_and_junk_in_one_are_problems() -> None:
    assert list(iter_stream(io.BytesIO())) == [SourceProblem("standard input", "empty")]
    found = list(iter_stream(io.BytesIO(b"junk\n\n" + FROM), Format.MBOXRD))
    assert found[0] == SourceProblem("standard input:0", "6 bytes before the first From_ line")
    assert len(found) == 2


def test_a_directory_format_cannot_come_through_a_pipe() -> None:
    with pytest.raises(BadSource, match="maildir"):
        list(iter_stream(io.BytesIO(b"x"), Format.MAILDIR))
