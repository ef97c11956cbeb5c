"""When something is broken: verify finds it, repair mends it, reindex makes the index anew from the packs.

May import all of store/. The one rule: nothing is taken for granted, neither that a file is whole nor that SQLite can open it;
and what is replaced stays until its successor is whole and synced.
"""
