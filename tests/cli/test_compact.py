"""mailfs compact: what it says, and what it leaves alone."""

import json
import random
from pathlib import Path

import pytest

from mailfs.store.store import Store
from tests.fakes import RunMailfs, make_message
from tests.oracle import contents_of
from tests.store.packed import add, packs_of, reclaim


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store whose only pack is half dead."""
    root = tmp_path / "store"
    with Store.create(root) as store:
        chance = random.Random(1)
        docids = add(store, [make_message(n, body=chance.randbytes(1000).hex()) for n in range(40)])
        reclaim(store, docids[::2])
    return root


def test_it_says_what_it_gave_back(root: Path, run_mailfs: RunMailfs) -> None:
    with Store.open(root) as store:
        before = contents_of(store)
    done = run_mailfs("compact", store=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("20 messages moved out of 1 packs: ")
    assert done.stdout.endswith(" kB freed\n")
    with Store.open(root) as store:
        assert contents_of(store) == before
        assert packs_of(store) == [2]
    assert run_mailfs("compact", store=root).stdout == "nothing to compact\n"


def test_a_dry_run_shows_what_takes_the_disk_and_changes_nothing(
    root: Path, run_mailfs: RunMailfs
) -> None:
    before = {path.name: path.read_bytes() for path in (root / "packs").iterdir()}
    done = run_mailfs("compact", "--dry-run", store=root)
    assert done.returncode == 0
    head, pack, total, dictionaries, index = done.stdout.splitlines()
    assert head.split() == ["pack", "size", "live", "dead", "messages"]
    assert pack.startswith("00000001 ")
    assert pack.endswith("20  newest, to be rewritten")
    assert total.startswith("total ")
    assert dictionaries == "dictionaries: 0, 0 B"
    assert index.startswith("index: ")
    assert {path.name: path.read_bytes() for path in (root / "packs").iterdir()} == before
    done = run_mailfs("compact", "--dry-run", "--dead", "90", store=root)
    assert "to be rewritten" not in done.stdout


def test_a_program_reads_json(root: Path, run_mailfs: RunMailfs) -> None:
    use = json.loads(run_mailfs("compact", "--dry-run", "--json", store=root).stdout)
    (pack,) = use["packs"]
    assert pack["rewrite"]
    assert pack["size"] == pack["live"] + pack["dead"] + pack["own"]
    done = json.loads(run_mailfs("compact", "--json", store=root).stdout)
    assert (done["packs"], done["messages"], done["waiting"], done["kept"]) == (1, 20, 0, [])


def test_a_pack_that_must_stay_is_told(root: Path, run_mailfs: RunMailfs) -> None:
    with Store.open(root) as store:
        ((docid,),) = store.index.rows("SELECT min(docid) FROM message")
        where = store.index.location(docid)
    path = root / "packs" / "00000001.pack"
    raw = bytearray(path.read_bytes())
    raw[where.offset + where.stored - 1] ^= 1
    path.write_bytes(raw)
    done = run_mailfs("compact", store=root)
    assert done.returncode == 65
    assert done.stderr == "kept: pack 1 holds 1 messages that are damaged: see `mailfs verify`\n"


@pytest.mark.parametrize("percent", ["0", "101", "-1", "a", "", "12.5", "²"])
def test_a_share_that_is_none_is_refused(root: Path, run_mailfs: RunMailfs, percent: str) -> None:
    done = run_mailfs("compact", f"--dead={percent}", store=root)
    assert done.returncode == 64
    assert "a whole number from 1 to 100" in done.stderr


def test_all_compresses_what_was_there_before_the_dictionary(
    tmp_path: Path, run_mailfs: RunMailfs
) -> None:
    root = tmp_path / "store"
    with Store.create(root) as store:
        words = [random.Random(number).randbytes(6).hex() for number in range(400)]
        chance = random.Random(0)
        raws = [
            make_message(n, body="\n".join(" ".join(chance.choices(words, k=8)) for _ in range(30)))
            for n in range(1100)
        ]
        add(store, raws)
    done = run_mailfs("compact", "--all", store=root)
    assert done.stdout.splitlines()[0] == "made a dictionary for new messages"
    assert done.stdout.splitlines()[1].startswith("1100 messages moved out of 1 packs: ")
    with Store.open(root) as store:
        assert list(contents_of(store).values()) == raws
