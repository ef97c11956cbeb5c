"""The tables of the index, and the authority on what every column means.

Times are integers: `_ns` nanoseconds, others seconds, since 1970 UTC. Every write transaction takes the next
modseq and stamps the message rows it touches with it, so the change feed is `message` read by modseq.

SQLite's user_version is the format of the tables, from format 3 on. The file `format` says the same of the whole store.
"""

# 2: table entry. 3: sealed packs, dictionaries, the journal, checksums on the pages.
FORMAT_VERSION = 3
FIRST_FORMAT_WITH_CHECKSUMS = 3

# One row.
#   modseq            the last one given out
#   searches_modseq   that of the last change to `search`
#   reclaimed_modseq  the largest a row of `message` had that was reclaimed: who follows the change feed and has not
#                     come so far missed that these messages were expunged
_STATE = """
CREATE TABLE state(
  only INTEGER PRIMARY KEY CHECK (only = 1),
  modseq INTEGER NOT NULL,
  searches_modseq INTEGER NOT NULL,
  reclaimed_modseq INTEGER NOT NULL DEFAULT 0
)"""

# One row a message; narrow, because whole-table scans fill the views.
#   docid       AUTOINCREMENT, so that it is never reused: entry names and inodes are made of it
#   modseq      of the last change to flags, keywords, thread, expunged or chosen names
#   flags       bits of message/keywords.py
#   expunged    0 while the message lives, else the second it was expunged
#   size        bytes, exactly what a client reads
#   received_ns the entry's mtime and the number its name begins with; never changes
#   changed_ns  the entry's ctime: when modseq was given
#   date        the Date field, or received where there is none or it is unreadable
#   thread      the docid of the first message known of the conversation; smaller wins when two are joined
_MESSAGE = """
CREATE TABLE message(
  docid INTEGER PRIMARY KEY AUTOINCREMENT,
  modseq INTEGER NOT NULL,
  flags INTEGER NOT NULL,
  expunged INTEGER NOT NULL,
  size INTEGER NOT NULL,
  received_ns INTEGER NOT NULL,
  changed_ns INTEGER NOT NULL,
  date INTEGER NOT NULL,
  thread INTEGER NOT NULL
);
CREATE INDEX message_modseq ON message(modseq);
CREATE INDEX message_thread ON message(thread);
CREATE INDEX message_date ON message(date);
"""

# What a list of messages shows (IMAP's word): decoded header fields, '' where absent.
# message_id is without its angle brackets.
ENVELOPE = """
CREATE TABLE envelope(
  docid INTEGER PRIMARY KEY,
  message_id TEXT NOT NULL,
  sender TEXT NOT NULL,
  recipient TEXT NOT NULL,
  subject TEXT NOT NULL
);
CREATE INDEX envelope_message_id ON envelope(message_id) WHERE message_id <> '';
"""

# Stored bytes. `hash` is xxh3-128 of the raw bytes; not unique, because a sender can make collisions:
# a hit is compared byte for byte. The record lies at `offset` in `pack` and is `stored` bytes long with
# its header; `raw` is the length of the message.
_BLOB = """
CREATE TABLE blob(
  blob_id INTEGER PRIMARY KEY,
  hash BLOB NOT NULL,
  pack INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  stored INTEGER NOT NULL,
  raw INTEGER NOT NULL
);
CREATE INDEX blob_hash ON blob(hash);
CREATE TABLE message_blob(
  docid INTEGER NOT NULL,
  blob_id INTEGER NOT NULL,
  PRIMARY KEY (docid, blob_id)
) WITHOUT ROWID;
CREATE INDEX message_blob_blob ON message_blob(blob_id);
"""

# What lies where in a pack, in order. New blobs go to its right edge, which costs 1 us each.
_BLOB_PLACE = "CREATE INDEX IF NOT EXISTS blob_place ON blob(pack, offset)"

# Pack files. `size` is the end of the last acknowledged record: bytes behind it were never promised. `sealed`: 1 when
# the pack ends with a footer and never changes again.
_PACK = """
CREATE TABLE pack(
  pack INTEGER PRIMARY KEY,
  size INTEGER NOT NULL,
  sealed INTEGER NOT NULL DEFAULT 0
)"""

# Pack files nothing refers to any more, which are to be removed; the row goes after the file.
_DEAD_PACK = """
CREATE TABLE IF NOT EXISTS dead_pack(
  pack INTEGER PRIMARY KEY
)"""

# zstd dictionaries records were compressed with: kept for ever, each also in every pack that uses it.
#   dictionary_id  the first 4 bytes of `hash`, little endian, never 0; stands in the records' headers
#   hash           xxh3-128 of `bytes`
#   made_ns        the newest is used for new records
#   messages       how many the store had then: it is made anew when there are many more
#   bytes          last, because a row is read up to the column asked for
_DICTIONARY = """
CREATE TABLE IF NOT EXISTS dictionary(
  dictionary_id INTEGER PRIMARY KEY,
  hash BLOB NOT NULL,
  made_ns INTEGER NOT NULL,
  messages INTEGER NOT NULL,
  bytes BLOB NOT NULL
)"""

# The users' own keywords; system keywords are bits in message.flags.
_KEYWORD = """
CREATE TABLE keyword(
  keyword_id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
);
CREATE TABLE message_keyword(
  keyword_id INTEGER NOT NULL,
  docid INTEGER NOT NULL,
  PRIMARY KEY (keyword_id, docid)
) WITHOUT ROWID;
CREATE INDEX message_keyword_docid ON message_keyword(docid);
"""

# Every Message-ID seen in a Message-ID, References or In-Reply-To field, also of messages not (yet) here,
# and the thread it belongs to.
_REFERENCE = """
CREATE TABLE reference(
  message_id TEXT PRIMARY KEY,
  thread INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX reference_thread ON reference(thread);
"""

# Saved searches. on_rm: '' (by the query's kind), unlink, untag, expunge or refuse.
_SEARCH = """
CREATE TABLE search(
  search_id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  query TEXT NOT NULL,
  on_rm TEXT NOT NULL,
  changed_ns INTEGER NOT NULL
)"""

# Names that clients chose: if a message has rows in a view, its names there are exactly those. All of live
# messages and of searches that are there; a message that has left the view may keep its rows for a while.
#   base     the name before `:2,`
#   docid    whose name it is
#   extra    letters that have no meaning here, sorted
#   form     message.maildir.Form: how the name ends when it has no letters
#   is_copy  1: the client made this entry of a message that was here already
_ENTRY = """
CREATE TABLE IF NOT EXISTS entry(
  search_id INTEGER NOT NULL,
  base BLOB NOT NULL,
  docid INTEGER NOT NULL,
  extra BLOB NOT NULL,
  form INTEGER NOT NULL,
  is_copy INTEGER NOT NULL,
  PRIMARY KEY (search_id, base)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_docid ON entry(docid, search_id);
"""

# mtimes of a view's folders, written at a clean unmount and taken away at the next mount. Good only
# while state.modseq is still `modseq`; otherwise something changed unseen and the mtimes must move.
_VIEW_STATE = """
CREATE TABLE view_state(
  search_id INTEGER PRIMARY KEY,
  modseq INTEGER NOT NULL,
  new_mtime_ns INTEGER NOT NULL,
  cur_mtime_ns INTEGER NOT NULL
)"""

# Who changed what, so that people can see it and take it back. One row a write transaction in which something changed.
#   modseq       the transaction's
#   operation    the modseq of the first transaction of the same command, whose slices are one operation
#   pid, command the process that wanted it: behind a mount, its client
#   reason       what was done, in words; never mail text
#   first_added, last_added  the docids of the messages it added; 0 where it added none
#   undoes       the operation it took back, else 0
# journal_change: a message that was there before and was changed. added, removed: the user's own keywords, with a
# blank between each. journal_event: what concerns no single message; before and after are JSON objects, or ''.
_JOURNAL = """
CREATE TABLE IF NOT EXISTS journal(
  modseq INTEGER PRIMARY KEY,
  operation INTEGER NOT NULL,
  time_ns INTEGER NOT NULL,
  pid INTEGER NOT NULL,
  command TEXT NOT NULL,
  reason TEXT NOT NULL,
  first_added INTEGER NOT NULL,
  last_added INTEGER NOT NULL,
  undoes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS journal_operation ON journal(operation) WHERE operation <> modseq;
CREATE TABLE IF NOT EXISTS journal_change(
  modseq INTEGER NOT NULL,
  docid INTEGER NOT NULL,
  flags_before INTEGER NOT NULL,
  flags_after INTEGER NOT NULL,
  expunged_before INTEGER NOT NULL,
  expunged_after INTEGER NOT NULL,
  added TEXT NOT NULL,
  removed TEXT NOT NULL,
  PRIMARY KEY (modseq, docid)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal_event(
  modseq INTEGER NOT NULL,
  number INTEGER NOT NULL,
  what TEXT NOT NULL,
  before TEXT NOT NULL,
  after TEXT NOT NULL,
  PRIMARY KEY (modseq, number)
) WITHOUT ROWID;
"""

# What is expunged, found without reading all messages.
_EXPUNGED = "CREATE INDEX IF NOT EXISTS message_expunged ON message(expunged) WHERE expunged <> 0"

# Words. Contentless: the text itself is in the packs. rowid is the docid. `recipient` is To; `cc` is Cc and
# Bcc; `list` is the List-Id; `attachment` the file names. unicode61: 44 MB/s against 4 MB/s of TR29.
MESSAGE_TEXT = """
CREATE VIRTUAL TABLE message_text USING fts5(
  sender, recipient, cc, subject, body, attachment, list,
  content='', contentless_delete=1, tokenize="unicode61 remove_diacritics 2"
);
-- Merge segments later and more at a time: importing 20,000 messages cost 92 us each with the defaults (4 and
-- 16), 69 with these, and the longest slice did not grow.
INSERT INTO message_text(message_text, rank) VALUES ('automerge', 16);
INSERT INTO message_text(message_text, rank) VALUES ('crisismerge', 32);
"""

TABLES = (
    _STATE,
    _MESSAGE,
    _EXPUNGED,
    ENVELOPE,
    _BLOB,
    _BLOB_PLACE,
    _PACK,
    _DEAD_PACK,
    _DICTIONARY,
    _KEYWORD,
    _REFERENCE,
    _SEARCH,
    _ENTRY,
    _VIEW_STATE,
    _JOURNAL,
    MESSAGE_TEXT,
    f"PRAGMA user_version = {FORMAT_VERSION}",
)

# What a format brought, by its number: how an index of the one before becomes it.
CHANGES = {
    2: (_ENTRY,),
    3: (
        "ALTER TABLE state ADD COLUMN reclaimed_modseq INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE pack ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0",
        _BLOB_PLACE,
        _DEAD_PACK,
        _DICTIONARY,
        _EXPUNGED,
        _JOURNAL,
    ),
}

# What a new store shows (name, query).
FIRST_SEARCHES = (
    ("inbox", "tag:inbox"),
    ("unread", "is:unread"),
    ("flagged", "is:flagged"),
    ("all", "*"),
)
