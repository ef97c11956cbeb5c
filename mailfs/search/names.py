"""Names of saved searches, which are paths of folders in the mount: `inbox`, `lists/linux-api`."""

import errno

from mailfs.errors import EditRefused

# A Maildir's own three folders cannot be views.
RESERVED = frozenset({"cur", "new", "tmp"})
MAX_COMPONENT_BYTES = 255
MAX_NAME_BYTES = 1024


def check_search_name(name: str) -> str:
    """The name itself, when a search may have it. Raises EditRefused, saying which part is wrong."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise EditRefused(f"the name {name!r} is not valid UTF-8", errno.EILSEQ) from None
    if len(encoded) > MAX_NAME_BYTES:
        raise EditRefused(f"a search's name has at most {MAX_NAME_BYTES} bytes", errno.ENAMETOOLONG)
    for component in name.split("/"):
        if component in ("", ".", ".."):
            raise EditRefused(f"a search's name is a relative path: {name!r}", errno.EINVAL)
        if component in RESERVED:
            raise EditRefused(f"{component!r} cannot be part of a search's name: {name!r}")
        if component.startswith("."):
            raise EditRefused(f"a name that begins with a dot is no search's: {name!r}")
        if not component.isprintable():
            raise EditRefused(f"a search's name has no control signs: {name!r}", errno.EINVAL)
        if len(component.encode()) > MAX_COMPONENT_BYTES:
            raise EditRefused(
                f"a file name has at most {MAX_COMPONENT_BYTES} bytes", errno.ENAMETOOLONG
            )
    return name
