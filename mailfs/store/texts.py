"""What a message says, as rows: its envelope, and its words in the search index."""

import apsw

from mailfs.ids import Docid
from mailfs.message.parse import ParsedMessage


def put_texts(connection: apsw.Connection, docid: Docid, parsed: ParsedMessage) -> None:
    """Insert both rows of a message that has none yet."""
    connection.execute(
        "INSERT INTO envelope VALUES (?, ?, ?, ?, ?)",
        (docid, parsed.message_id, parsed.sender, parsed.recipient, parsed.subject),
    )
    connection.execute(
        "INSERT INTO message_text"
        "(rowid, sender, recipient, cc, subject, body, attachment, list) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            docid,
            parsed.sender,
            parsed.recipient,
            parsed.cc,
            parsed.subject,
            parsed.body,
            parsed.attachment,
            parsed.list_id,
        ),
    )
