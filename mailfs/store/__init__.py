"""What is durable: packs of messages, the SQLite index, the writer lock.

The only package that knows apsw, xxhash (beside message/), flock and fsync. May import search, message,
ids and errors. The one rule: every change goes through writer.py, under the lock.

What stands here works without upkeep/ (now and then) and rescue/ (when something is broken), which import it.
"""
