"""What is done for a store now and then: once at a time, and however seldom the store is mounted."""

import json
import os
import time
from pathlib import Path

import pytest

from mailfs.errors import Busy, StoreFull
from mailfs.ids import Docid
from mailfs.store.config import Config
from mailfs.store.store import Store
from mailfs.store.upkeep import maintenance
from mailfs.store.upkeep.dump import dump_path
from mailfs.store.upkeep.maintenance import (
    due_in_s,
    last_maintenance_or_none,
    maintain,
    maintained_path,
)
from mailfs.store.upkeep.spool import Spool
from tests.fakes import Deliver, make_message
from tests.oracle import contents_of

DAY_S = 86400.0


def expunge_long_ago(store: Store, docid: Docid, days: int) -> None:
    Spool(store).remove(docid)
    with store.writer.transaction("test", durable=False) as transaction:
        transaction.rows(
            "UPDATE message SET expunged = ? WHERE docid = ?",
            (int(time.time() - days * DAY_S), docid),
        )
        transaction.edit_flags(docid, 1, 0)
        transaction.edit_flags(docid, 0, 1)


def test_what_was_expunged_long_ago_is_reclaimed_and_a_dump_is_there(
    store: Store, deliver: Deliver
) -> None:
    kept, old, young = deliver(), deliver(), deliver()
    expunge_long_ago(store, old, 31)
    expunge_long_ago(store, young, 29)
    found = maintain(store, Config())
    assert found is not None
    assert (found.expired, found.problems) == (1, ())
    rows = store.index.rows("SELECT docid FROM message ORDER BY docid")
    assert [row[0] for row in rows] == [kept, young]
    assert dump_path(store.layout).stat().st_size > 0
    assert last_maintenance_or_none(store.layout) == found


def test_nothing_is_done_that_the_configuration_forbids(store: Store, deliver: Deliver) -> None:
    expunge_long_ago(store, deliver(), 1000)
    found = maintain(store, Config(expire=None, compacts=False, dumps=False))
    assert found is not None
    assert (found.expired, found.rewritten_packs) == (0, 0)
    assert not dump_path(store.layout).exists()


def test_it_is_due_a_day_after_the_last_time_whoever_did_it(store: Store) -> None:
    layout, config = store.layout, Config(dumps=False)
    assert due_in_s(layout, DAY_S, time.time()) == 0
    found = maintain(store, config, only_if_due=True)
    assert found is not None
    assert maintain(store, config, only_if_due=True) is None
    assert due_in_s(layout, DAY_S, found.began_s + 60) == DAY_S - 60
    assert due_in_s(layout, DAY_S, found.began_s + 2 * DAY_S) == 0
    assert maintain(store, Config(maintenance_s=None), only_if_due=True) is None
    assert maintain(store, config) is not None


def test_a_clock_that_was_set_back_makes_it_due(store: Store) -> None:
    maintain(store, Config(dumps=False))
    assert due_in_s(store.layout, DAY_S, time.time() - 365 * DAY_S) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"began_s": "x"}', b"\0" * 100])
def test_a_record_that_was_cut_off_counts_as_none(store: Store, content: bytes) -> None:
    maintain(store, Config(dumps=False))
    maintained_path(store.layout).write_bytes(content)
    assert last_maintenance_or_none(store.layout) is None
    assert due_in_s(store.layout, DAY_S, time.time()) == 0
    assert maintain(store, Config(dumps=False), only_if_due=True) is not None


def test_two_do_not_do_it_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def meanwhile(layout: object) -> None:
        with pytest.raises(Busy, match="another process takes care"):
            maintain(store, Config())
        asked.append(layout)

    monkeypatch.setattr(maintenance, "save_own_dump", meanwhile)
    maintain(store, Config())
    assert asked


def test_what_goes_wrong_with_one_thing_is_told_and_the_others_are_done(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    expunge_long_ago(store, deliver(), 31)
    left = store.layout.root / "dump.new"
    left.touch(0o600)

    def full(store: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(maintenance, "compact", full)
    found = maintain(store, Config())
    assert found is not None
    assert found.problems == ("compact: no room",)
    assert found.expired == 1
    assert dump_path(store.layout).exists()


def test_the_record_is_json_that_others_can_read(store: Store) -> None:
    maintain(store, Config())
    path = maintained_path(store.layout)
    assert json.loads(path.read_bytes())["expired"] == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_messages_are_where_they_were_after_their_packs_were_rewritten(
    store: Store, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    docids = [deliver(raw=make_message(number, body=os.urandom(500).hex())) for number in range(40)]
    for docid in docids[::2]:
        expunge_long_ago(store, docid, 31)
    before = contents_of(store)
    found = maintain(store, Config())
    assert found is not None
    assert (found.expired, found.problems) == (20, ())
    assert contents_of(store) == before
    assert Spool(store).compact().messages == 0


def test_cleaning_knows_no_folder_that_is_not_there(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        assert Spool(store).cleanup().files == 0
