"""The query language: text -> tree (query.py), tree -> SQL and FTS5 (plan.py), tree on known messages (match.py).

Pure: no database, no clock. May import message, ids and errors. man/mailfs-search.7 is its specification.
"""
