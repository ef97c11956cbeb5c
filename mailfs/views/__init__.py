"""What the tree looks like, and what rename, unlink, mkdir and rmdir mean in it: defined here and only here.

Knows no FUSE and no event loop. May import ingest and below. The one rule: a name shown is true now.
"""
