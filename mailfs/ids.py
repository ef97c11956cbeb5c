"""The kinds of number and word that must not be mixed up. Nothing else lives here."""

from typing import NewType

# A message in the index; positive, never reused.
Docid = NewType("Docid", int)
# Stored bytes in the index. Not the hash: two different blobs may share a hash.
BlobId = NewType("BlobId", int)
# Grows by one with every write transaction (RFC 7162 calls the same thing MODSEQ).
Modseq = NewType("Modseq", int)
# A conversation: the docid of the message it began with.
ThreadId = NewType("ThreadId", int)
# A saved search; never reused, so that the inodes of its folders are not either.
SearchId = NewType("SearchId", int)
# A number of a pack file: packs/00000001.pack is 1.
PackNumber = NewType("PackNumber", int)
# An inode number and a file handle, as in FUSE.
Ino = NewType("Ino", int)
Fh = NewType("Fh", int)
# A word on a message, normalised: `$seen` for a system keyword, lower case for the user's own.
Keyword = NewType("Keyword", str)
