"""What a store needs now and then: seal, compact, expire, dump, backup; and its journal read, and taken back.

May import the modules of store/ beside it, never rescue/. The one rule: it works on a live store, in slices, and whatever it
is cut off in, nothing is lost and it can be begun again.
"""
