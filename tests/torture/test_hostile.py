"""Hostile input in small numbers: each part of tests/torture/hostile.py once, and what it found before."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mailfs.errors import BadKeyword, QuerySyntaxError
from mailfs.ingest import mbox
from mailfs.ingest.folders import read_all
from mailfs.ingest.importer import search_name_for_folder
from mailfs.message.keywords import SEEN, parse_keyword
from mailfs.message.parse import parse_message
from mailfs.message.text import html_to_text
from mailfs.search.names import MAX_NAME_BYTES
from mailfs.search.query import parse_query
from mailfs.store.store import Store
from tests.mount.accounts import ourselves
from tests.mount.mounting import Mailfs
from tests.oracle import assert_sound
from tests.torture import hostile
from tests.torture.hostile_mail import all_files, all_shapes
from tests.torture.hostile_mount import many_open, mounted
from tests.torture.report import Report
from tests.torture.weighing import in_child, seconds_to_read

SEED = 5
needs_mount = pytest.mark.skipif(bool(hostile.why_not()), reason=hostile.why_not() or "-")


@pytest.fixture
def report() -> Report:
    return Report("hostile", SEED)


def test_there_are_300_files_and_the_same_each_time() -> None:
    files = all_files(SEED)
    assert len(files) >= 300
    assert [file.build(0.01) for file in files[:50]] == [
        file.build(0.01) for file in all_files(SEED)[:50]
    ]
    assert {shape.number for shape in all_shapes()} >= {*range(1, 19), 22, 23, 24, 25} - {
        19,
        20,
        21,
    }


def test_messages_come_back_are_listed_shown_and_found(report: Report, tmp_path: Path) -> None:
    hostile.weigh_messages(report, all_files(SEED)[:25], 1 / 20, tmp_path)
    assert report.is_sound, "\n".join(report.lines())


def test_every_shape_is_parsed_wherever_it_stands() -> None:
    for file in all_files(SEED):
        parsed = parse_message(file.build(0.002))
        if file.has_words:
            assert parsed.subject.startswith(file.mark), file.name
        if file.shows_behind:
            assert file.behind in parsed.body or parsed.is_partial, file.name


def test_they_are_imported_and_delivered(report: Report, tmp_path: Path) -> None:
    hostile.bring(report, tmp_path, 1 / 100, 5)
    assert report.is_sound, "\n".join(report.lines())


def test_large_queries_are_answered_or_refused(report: Report, tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()
    for size in (1_000_000, 20_000):
        hostile.ask(report, tmp_path / "store", size)
    assert report.is_sound, "\n".join(report.lines())


def test_a_tree_of_links_devices_and_evil_names_is_imported(report: Report, tmp_path: Path) -> None:
    hostile.import_tree(report, tmp_path / "tree")
    assert report.is_sound, "\n".join(report.lines())


def test_with_a_hash_of_8_bits_every_message_is_itself(report: Report, tmp_path: Path) -> None:
    hostile.collide(report, tmp_path / "collisions", 40)
    assert report.is_sound, "\n".join(report.lines())


@needs_mount
@pytest.mark.mount
def test_a_mount_goes_on_under_noise_and_many_open_files(report: Report, tmp_path: Path) -> None:
    hostile.harass(report, tmp_path / "mount", 300)
    assert report.is_sound, "\n".join(report.lines())


@needs_mount
@pytest.mark.mount
@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_who_opens_all_the_files_there_can_be_keeps_nobody_from_mail(tmp_path: Path) -> None:
    account = replace(ourselves(tmp_path), prefix=("prlimit", "--nofile=400:400"))
    mailfs = Mailfs(account, tmp_path)
    mailfs.create(3)
    with mounted(mailfs), many_open(mailfs, 1200) as opened:
        assert opened.refused
        assert opened.messages == 800
        path = mailfs.path("inbox", "cur", mailfs.names("inbox")[0])
        path.rename(path.with_name(f"{path.name}F"))
        assert "no more can be" in mailfs.path(".mailfs", "errors").read_text()
        path.with_name(f"{path.name}F").unlink()
    assert_sound(mailfs.store)


# --- found by these, and mended


def test_a_status_of_blanks_is_read_in_a_time_that_grows_with_it() -> None:
    # The square of a megabyte would be hours.
    assert mbox.status_of(b"Status:" + b" " * 1_000_000 + b".\n\nx")[1] == ()
    assert mbox.status_of(b"Status: " + b" " * 1000 + b"RO\n\nx")[0] == SEEN


def test_a_tree_deeper_than_a_name_can_be_long_gets_the_name_of_a_folder_above() -> None:
    name = search_name_for_folder("/".join([f"{level}{'é' * 90}" for level in range(20)]))
    assert name.startswith("0é")
    assert len(name.encode()) < MAX_NAME_BYTES
    assert search_name_for_folder("a/b") == "a/b"


def test_a_keyword_of_a_megabyte_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(BadKeyword, match="1 to 200 characters"):
        parse_keyword("a" + "\u0301\u0316" * 500_000)
    assert parse_keyword("a" + "\u0301" * 190) == "\u00e1" + "\u0301" * 189


def test_an_error_is_not_as_long_as_the_query() -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse_query("x" * 90_000 + ":y")
    assert len(str(caught.value)) < 400


def test_html_of_a_million_short_texts_is_cut_into_words_piece_by_piece() -> None:
    words = html_to_text("first" + "<b>one<i>two < three</i>" * 100_000).split()
    assert words == ["first"] + ["one", "two", "three"] * 100_000


def test_a_large_file_is_read_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    with path.open("rb") as file:
        assert read_all(file.fileno(), 1000) == b"x" * 1000
    with path.open("rb") as file:
        assert read_all(file.fileno(), 10) == b"x" * 1000


def test_a_child_that_dies_is_told(tmp_path: Path) -> None:
    assert in_child(seconds_to_read, Path(__file__), 1) < 10
    with pytest.raises(RuntimeError, match="the process died"):
        in_child(seconds_to_read, tmp_path / "absent", 1)
