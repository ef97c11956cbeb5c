"""The kernel's protocol: the only package with pyfuse3, trio and `async def`. An adapter, no meaning of its own.

May import views and below. The one rule: only FUSEError leaves a handler, and no handler waits without a deadline.
"""
