"""Names and side files in folders of mail."""

import binascii
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailfs.ingest import folders
from mailfs.message.keywords import ANSWERED, FLAGGED, SEEN


def encode_utf7(text: str) -> bytes:
    """IMAP's modified UTF-7 as a client writes it: one shift for each run of other signs."""
    pieces = []
    run = ""
    for sign in [*text, ""]:
        if sign and not " " <= sign <= "~":
            run += sign
            continue
        if run:
            code = binascii.b2a_base64(run.encode("utf-16-be"), newline=False).rstrip(b"=")
            pieces.append(b"&" + code.replace(b"/", b",") + b"-")
            run = ""
        pieces.append(b"&-" if sign == "&" else sign.encode())
    return b"".join(pieces)


@given(st.text().filter(str.isprintable))
def test_a_folder_name_written_in_modified_utf7_is_read_back(text: str) -> None:
    assert folders.folder_name(encode_utf7(text)) == text


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (b"~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
        (b"R&D", "R&D"),
        (b"R&-D", "R&D"),
        (b"&AC8-etc", "&AC8-etc"),  # an encoded `/`
        (b"&AAo-", "&AAo-"),  # an encoded newline
        (b"&2AA-", "&2AA-"),  # half a surrogate pair
        (b"&A-", "&A-"),
        (b"&Jjo", "&Jjo"),
        ("Entwürfe".encode(), "Entwürfe"),
        (b"caf\xe9", "caf\\xe9"),
        (b"a\nb", "a\\nb"),
    ],
)
def test_a_folder_name_is_decoded_or_stays_as_it_is(name: bytes, folder: str) -> None:
    assert folders.folder_name(name) == folder


def test_maildirpp_names_have_levels() -> None:
    assert folders.maildirpp_folder("", b".Lists.linux") == "Lists/linux"
    assert folders.maildirpp_folder("me", b".Entw&APw-rfe") == "me/Entwürfe"
    assert folders.maildirpp_folder("", b".A..B.") == "A/B"


@pytest.mark.parametrize(
    ("name", "many", "one"),
    [
        (b"linux.mbox", "p/linux", "p/linux"),
        (b"linux.MBX", "p/linux", "p/linux"),
        (b"Drafts", "p/Drafts", "p/Drafts"),
        (b"2004-August.txt", "p/2004-August", "p"),
        (b"00049.838d44b3", "p/00049.838d44b3", "p"),
        (b"two.eml", "p", "p"),
        (b".mbox", "p/.mbox", "p"),
    ],
)
def test_an_mbox_is_a_folder_unless_it_is_a_saved_message(name: bytes, many: str, one: str) -> None:
    assert folders.mbox_folder("p", name, single=False) == many
    assert folders.mbox_folder("p", name, single=True) == one


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        (b"1.2.host:2,FS", b"FS"),
        (b"1.2.host!2,S", b"S"),
        (b"1.2.host;2,Sab", b"Sab"),
        (b"1.2.host,S=12:2,", b""),
        (b"1.2.host:2,F,S=12", b"F"),
        (b"1.2.host", b""),
        (b"1.2.host:1,S", b""),
    ],
)
def test_info_letters_stand_behind_the_separator(name: bytes, letters: bytes) -> None:
    assert folders.info_letters(name) == letters


@pytest.mark.parametrize(
    "name",
    [
        b"dovecot-uidlist",
        b"dovecot.index.log",
        b"dovecot-keywords",
        b"courierimapuiddb",
        b"maildirfolder",
        b"subscriptions",
        b"Inbox.msf",
        b"x.db",
    ],
)
def test_side_files_are_known(name: bytes) -> None:
    assert folders.is_side_name(name)


@pytest.mark.parametrize("name", [b"dovecot", b"dovecot.mbox", b"courier-users", b"db", b"1.eml"])
def test_mail_that_is_only_called_like_a_program_is_no_side_file(name: bytes) -> None:
    assert not folders.is_side_name(name)


def test_dovecot_keywords_name_the_small_letters() -> None:
    text = b"0 Work\n25 $Label1\r\n26 late\nx y\n1 (bad\n2 \xff\n"
    assert folders.parse_dovecot_keywords(text) == {
        ord("a"): "work",
        ord("z"): "$label1",
        ord("c"): "\ufffd",
    }


def test_mh_sequences_become_flags() -> None:
    text = b"cur: 3\nunseen: 2-3\n 7\nreplied: 1 x 9-\nflagged: 1-2 5-4\n"
    sequences = folders.parse_mh_sequences(text)
    assert [sequences.flags_of(number) for number in (1, 2, 3, 4, 5, 7)] == [
        SEEN | ANSWERED | FLAGGED,
        FLAGGED,
        0,
        SEEN,
        SEEN,
        0,
    ]


def test_a_huge_mh_range_costs_nothing() -> None:
    sequences = folders.parse_mh_sequences(b"unseen: 1-999999999999999999\n")
    assert sequences.flags_of(5 * 10**17) == 0


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_mh_ranges_hold_exactly_their_numbers(ranges: list[tuple[int, int]]) -> None:
    text = " ".join(f"{first}-{last}" for first, last in ranges)
    sequences = folders.parse_mh_sequences(f"unseen: {text}\n".encode())
    unseen = {number for first, last in ranges for number in range(first, last + 1)}
    for number in range(42):
        assert sequences.flags_of(number) == (0 if number in unseen else SEEN)


@settings(max_examples=60)
@given(st.binary(max_size=20))
def test_a_path_for_people_can_always_be_printed(path: bytes) -> None:
    text = folders.printable(path)
    assert text.isprintable()
    assert text.encode().decode() == text


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    with folders.open_regular(os.fsencode(tmp_path / "file")) as fd:
        assert os.read(fd, 2) == b"x"
    for name in ("link", "fifo", "."):
        with (
            pytest.raises(OSError, match=r"regular|symbolic"),
            folders.open_regular(os.fsencode(tmp_path / name)),
        ):
            pass
