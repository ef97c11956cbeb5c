"""What one write transaction gives to the rows it touches: its modseq and its time."""

import apsw

from mailfs.ids import Docid, Modseq


class Stamp:
    """The stamp of one write transaction, shared by all that write rows in it.

    `is_used`: something a reader must notice has changed, so the modseq is taken when the transaction ends.
    `must_commit`: something was written that no reader need notice.
    """

    __slots__ = ("_sql", "is_used", "modseq", "must_commit", "now_ns")

    def __init__(self, connection: apsw.Connection, modseq: Modseq, now_ns: int) -> None:
        self._sql = connection
        self.modseq = modseq
        self.now_ns = now_ns
        self.is_used = False
        self.must_commit = False

    def put_on(self, docid: Docid) -> None:
        """Stamp a message: the change feed tells of it."""
        self._sql.execute(
            "UPDATE message SET modseq = ?, changed_ns = ? WHERE docid = ?",
            (self.modseq, self.now_ns, docid),
        )
        self.is_used = True
