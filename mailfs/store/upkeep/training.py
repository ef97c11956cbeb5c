"""Making a dictionary from the store's own mail.

What messages have in common (fields, hosts, signatures) is most of a short one, and a dictionary holds it once. Trained
from 1,000 messages, cut at 8 kB each, in some 80 ms; 110 kB are what zstd's own tool makes, twice that gains 3 % more.
A dictionary holds pieces of the messages it was made of, and is kept for as long as a record needs it.
"""

import time
from collections.abc import Sequence

import zstandard

from mailfs.errors import Corrupt, MailfsError
from mailfs.ids import Docid
from mailfs.store.records import FRAME_BYTES, Dictionary, blob_hash, format_record
from mailfs.store.store import Store

# Fewer have too little in common with those to come.
LEAST_MESSAGES = 1000
# A store that has so many times the messages is another one.
GROWTH = 4
DICTIONARY_BYTES = 112_640
SAMPLES = 1250
_SAMPLE_BYTES = 8192
# Every fifth is not trained with, but shows what the dictionary is worth.
_HELD_OUT = 5
# A new dictionary is not worth its place when it makes records of these less than so much smaller.
_LEAST_GAIN = 0.03


def is_wanted(store: Store) -> bool:
    """Whether there are enough messages for a dictionary, or so many more than when it was made."""
    ((messages,),) = store.index.rows("SELECT count(*) FROM message")
    trained = store.index.rows("SELECT messages FROM dictionary ORDER BY made_ns DESC LIMIT 1")
    return bool(messages >= (GROWTH * trained[0][0] if trained else LEAST_MESSAGES))


def train(store: Store, deadline_s: float | None = None) -> Dictionary | None:
    """Make the dictionary for what comes from now on; None when none would be worth it.

    No lock is held while it is made. Raises Busy, StoreError.
    """
    samples = _read_samples(store)
    made = _make_or_none([raw for number, raw in enumerate(samples) if number % _HELD_OUT])
    before = store.newest_dictionary_or_none()
    if made is not None and _is_better(made, before, samples[::_HELD_OUT]):
        introduce(store, made, deadline_s)
        return made
    if before is not None:
        # That it is as good is worth knowing: asked again when there are many more messages.
        with store.writer.transaction("train", durable=False, deadline_s=deadline_s) as transaction:
            transaction.write(
                "UPDATE dictionary SET messages = (SELECT count(*) FROM message) "
                "WHERE dictionary_id = ?",
                (before.id,),
            )
    return None


def introduce(store: Store, dictionary: Dictionary, deadline_s: float | None = None) -> None:
    """Have a dictionary used from now on: a new pack is begun with it. Raises Busy, StoreError."""
    ((messages,),) = store.index.rows("SELECT count(*) FROM message")
    with store.writer.transaction("train", durable=True, deadline_s=deadline_s) as transaction:
        transaction.write(
            "INSERT INTO dictionary(dictionary_id, hash, made_ns, messages, bytes) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (dictionary_id) DO UPDATE "
            "SET made_ns = excluded.made_ns, messages = excluded.messages",
            (dictionary.id, dictionary.hash, time.time_ns(), messages, dictionary.raw),
        )
        store.packs.dictionaries.keep(dictionary)
        transaction.begin_pack()


def _read_samples(store: Store) -> list[bytes]:
    """The beginnings of messages from the whole store, live ones, evenly."""
    docids = [
        Docid(docid)
        for (docid,) in store.index.rows(
            "SELECT docid FROM message WHERE expunged = 0 AND size <= ? ORDER BY docid",
            (FRAME_BYTES,),
        )
    ]
    samples = []
    for docid in _evenly(docids, SAMPLES):
        try:
            samples.append(store.load(docid)[:_SAMPLE_BYTES])
        except MailfsError:
            continue  # damaged, or reclaimed meanwhile
    return samples


def _evenly(docids: Sequence[Docid], most: int) -> list[Docid]:
    count = min(most, len(docids))
    return [docids[number * len(docids) // count] for number in range(count)]


def _make_or_none(samples: list[bytes]) -> Dictionary | None:
    try:
        # These two let zstd take the first try; its search for the best costs five times the time and gains nothing.
        made = zstandard.train_dictionary(DICTIONARY_BYTES, [*samples], k=1024, d=8)
        return Dictionary(made.as_bytes())
    except (zstandard.ZstdError, ValueError, Corrupt):
        return None  # too few bytes, or too much alike


def _is_better(made: Dictionary, before: Dictionary | None, held_out: list[bytes]) -> bool:
    sizes = [
        sum(len(format_record(raw, blob_hash(raw), dictionary)) for raw in held_out)
        for dictionary in (made, before)
    ]
    return sizes[0] < (1 - _LEAST_GAIN) * sizes[1]
