"""Which thread a message belongs to: messages are joined by the Message-IDs they name.

Every id seen is remembered, also of messages that are not here, so that two replies to a mail nobody has
are one thread. A message that names ids of several threads joins them; the smallest number wins, so
the result does not depend on the order of arrival.
"""

import apsw

from mailfs.ids import Docid, Modseq, ThreadId


def assign_thread(
    connection: apsw.Connection,
    docid: Docid,
    message_ids: tuple[str, ...],
    modseq: Modseq,
    now_ns: int,
) -> ThreadId:
    """The thread of a new message that names these ids (its own and its references).

    Inside a write transaction. Messages of threads that are joined are stamped with `modseq`.
    """
    if not message_ids:
        return ThreadId(docid)
    known: dict[str, int] = {}
    for message_id in message_ids:
        for (thread,) in connection.execute(
            "SELECT thread FROM reference WHERE message_id = ?", (message_id,)
        ):
            known[message_id] = int(thread)
    found = set(known.values())
    kept = min(found, default=docid)
    for joined in found - {kept}:
        connection.execute("UPDATE reference SET thread = ? WHERE thread = ?", (kept, joined))
        connection.execute(
            "UPDATE message SET thread = ?, modseq = ?, changed_ns = ? WHERE thread = ?",
            (kept, modseq, now_ns, joined),
        )
    missing = [(message_id, kept) for message_id in message_ids if message_id not in known]
    if missing:
        connection.executemany("INSERT INTO reference VALUES (?, ?)", missing)
    return ThreadId(kept)
