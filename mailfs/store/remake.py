"""All that the index says of a message by its bytes, made anew: envelope, date, attachments, words and thread."""

import apsw

from mailfs.ids import Docid
from mailfs.message.keywords import ATTACHMENT
from mailfs.message.parse import ParsedMessage
from mailfs.store.stamp import Stamp
from mailfs.store.texts import put_texts
from mailfs.store.threads import assign_thread

_NS = 1_000_000_000


def remake(connection: apsw.Connection, stamp: Stamp, docid: Docid, parsed: ParsedMessage) -> None:
    """Inside a write transaction. The message's row is there; what else is there of it does not matter."""
    connection.execute("DELETE FROM envelope WHERE docid = ?", (docid,))
    connection.execute("DELETE FROM message_text WHERE rowid = ?", (docid,))
    put_texts(connection, docid, parsed)
    ids = (parsed.message_id, *parsed.references) if parsed.message_id else parsed.references
    # A thread is the docid of its first message: no message of it has a smaller one.
    connection.executemany(
        "DELETE FROM reference WHERE message_id = ? AND (thread > ? OR thread <= 0)",
        [(message_id, docid) for message_id in ids],
    )
    thread = assign_thread(connection, docid, ids, stamp.modseq, stamp.now_ns)
    connection.execute(
        "UPDATE message SET thread = ?1, date = coalesce(?2, received_ns / ?3), "
        "flags = (flags & ~?4) | ?5 WHERE docid = ?6",
        (
            thread,
            parsed.date_s,
            _NS,
            ATTACHMENT,
            ATTACHMENT if parsed.has_attachment else 0,
            docid,
        ),
    )
    stamp.put_on(docid)
