"""Mail coming in: Maildir, Maildir++, mbox, MH, single files and trees of them, into the store.

May import store and below. The one rule: a source is only read, never changed.
"""
