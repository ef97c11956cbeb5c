"""What mkdir, rmdir and mv of directories mean: searches are saved, forgotten and renamed, never a message lost."""

import errno
from dataclasses import dataclass
from typing import assert_never

from mailfs.errors import EditRefused, NoSuchSearch, NotFound, QuerySyntaxError, UsageError
from mailfs.ids import Docid, Keyword, SearchId
from mailfs.message.keywords import SYSTEM_KEYWORDS, UNREAD, keyword_for_folder
from mailfs.search.names import check_search_name
from mailfs.search.query import format_query, parse_query
from mailfs.search.tree import Query, label_rule, rename_keyword
from mailfs.store.index import SavedSearch
from mailfs.store.transaction import Transaction
from mailfs.views.tree import Directory, Kind, Tree


@dataclass(frozen=True, slots=True)
class NewSearch:
    """Save a search."""

    name: str
    query: str

    @property
    def reason(self) -> str:
        """What the journal says."""
        return f"mkdir {self.name}"


@dataclass(frozen=True, slots=True)
class ForgottenSearch:
    """Forget a search, no message."""

    name: str

    @property
    def reason(self) -> str:
        """What the journal says."""
        return f"rmdir {self.name}"


@dataclass(frozen=True, slots=True)
class RenamedSearches:
    """What mv of a directory renames: the search and those below it; with them the keywords called like them."""

    path: str
    new_path: str
    names: tuple[tuple[str, str], ...]
    is_folder: bool = False  # the directory itself is no search

    @property
    def reason(self) -> str:
        """What the journal says."""
        return f"mv {self.path} {self.new_path}"


@dataclass(frozen=True, slots=True)
class EditedQuery:
    """Give a search another query. Its name, number and what rm does in its view stay."""

    search_id: SearchId
    name: str
    query: str

    @property
    def reason(self) -> str:
        """What the journal says."""
        return f"query of {self.name}"


SearchEdit = NewSearch | ForgottenSearch | RenamedSearches | EditedQuery


def plan_mkdir(tree: Tree, parent: Directory, name: bytes) -> NewSearch:
    """mkdir saves a search: `work` is `tag:work`, `flagged` is `is:flagged`, and what reads like a query is it."""
    if tree.child_or_none(parent, name) is not None:
        raise EditRefused(f"{name!r} is there already", errno.EEXIST)
    if parent.kind not in (Kind.VIEW, Kind.FOLDER):
        raise EditRefused("a search is saved beside or below others, not in cur, new or tmp")
    path, text = _search_name(parent, name)
    query = _query_of_folder(path, text)
    try:
        parse_query(query)
    except QuerySyntaxError as error:
        raise EditRefused(f"mkdir {text}: {error}", errno.EINVAL) from None
    return NewSearch(path, query)


def _search_name(parent: Directory, name: bytes) -> tuple[str, str]:
    """The path of a search, and its last component."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise EditRefused(f"the name {name!r} is not valid UTF-8", errno.EILSEQ) from None
    return check_search_name(f"{parent.path}/{text}" if parent.path else text), text


def _query_of_folder(path: str, text: str) -> str:
    if any(sign in ':*"()' for sign in text):
        return text
    if path == text and (text.lower() == UNREAD or f"${text.lower()}" in SYSTEM_KEYWORDS):
        return f"is:{text.lower()}"
    return _label_query(path)


def _label_query(path: str) -> str:
    return f"tag:{keyword_for_folder(path)}"


def plan_rmdir(tree: Tree, parent: Directory, name: bytes) -> ForgottenSearch:
    """rmdir forgets a search, however many messages it shows. Raises NotFound, EditRefused.

    Other files in it are somebody's: they keep the directory, as anywhere.
    """
    directory = tree.child_or_none(parent, name)
    if directory is None:
        raise NotFound(f"no directory {name!r}")
    if directory.kind == Kind.FOLDER:
        raise EditRefused(f"{directory.path} holds searches", errno.ENOTEMPTY)
    if directory.kind != Kind.VIEW:
        raise EditRefused("only a view's directory can be forgotten")
    for entry in tree.entries(directory):
        child = entry.directory
        if child.kind in (Kind.VIEW, Kind.FOLDER):
            raise EditRefused(f"{directory.path} holds other searches", errno.ENOTEMPTY)
        if tree.files.entries(tree.area(child)):
            raise EditRefused(
                f"{directory.path}/{entry.name.decode()} holds files", errno.ENOTEMPTY
            )
    if tree.files.entries(tree.area(directory)):
        raise EditRefused(f"{directory.path} holds files of other programs", errno.ENOTEMPTY)
    return ForgottenSearch(directory.path)


def plan_remove_part(tree: Tree, directory: Directory) -> None:
    """rmdir of cur, new or tmp, which `rm -r` does. Raises EditRefused (ENOTEMPTY) while something is in it.

    The view must be loaded. It stays a Maildir: the directory is there again when something is in it.
    """
    view = directory.view
    assert view is not None
    is_empty = not tree.files.entries(tree.area(directory))
    if directory.kind == Kind.TMP:
        is_empty = is_empty and all(
            alias.search_id != directory.search_id for alias in tree.aliases
        )
    else:
        is_empty = is_empty and next(tree.iter_messages(directory, Docid(0)), None) is None
    if not is_empty:
        raise EditRefused(
            f"{directory.path}/{directory.kind.name.lower()} is not empty", errno.ENOTEMPTY
        )


def plan_rename_directory(
    tree: Tree, directory: Directory, new_parent: Directory, new_name: bytes
) -> RenamedSearches:
    """mv of a view or of a plain folder of views. Raises EditRefused."""
    if directory.kind not in (Kind.VIEW, Kind.FOLDER):
        raise EditRefused("a view always has its own cur, new and tmp")
    if new_parent.kind not in (Kind.VIEW, Kind.FOLDER):
        raise EditRefused("a search is saved beside or below others, not in cur, new or tmp")
    path, new_path = directory.path, _search_name(new_parent, new_name)[0]
    if new_name.startswith(b"."):
        raise EditRefused("a directory whose name begins with a dot is no search")
    if tree.child_or_none(new_parent, new_name) is not None:
        raise EditRefused(f"{new_path} is there already", errno.ENOTEMPTY)
    if f"{new_path}/".startswith(f"{path}/"):
        raise EditRefused(f"{path} cannot be put into itself", errno.EINVAL)
    _check_folders_empty(tree, directory)
    return RenamedSearches(
        path,
        new_path,
        tuple(
            (search.name, new_path + search.name[len(path) :])
            for search in tree.store.index.searches()
            if search.name == path or search.name.startswith(f"{path}/")
        ),
        is_folder=directory.kind == Kind.FOLDER,
    )


def plan_query(search: SavedSearch, text: str) -> EditedQuery | None:
    """Another query for a search, as it was typed; None when it is the one it has.

    Raises EditRefused (EINVAL) that says why, and where.
    """
    try:
        check_on_rm(search.on_rm, parse_query(text))
    except (QuerySyntaxError, UsageError) as error:
        raise EditRefused(f"the query of {search.name}: {error}", errno.EINVAL) from None
    return None if text == search.query else EditedQuery(search.search_id, search.name, text)


def check_on_rm(on_rm: str, query: Query) -> None:
    """Raises UsageError where rm is to take keywords off in a view whose query requires none."""
    if on_rm in ("unlink", "untag") and label_rule(query) is None:
        raise UsageError(
            f"on-rm={on_rm} takes keywords off, but the query requires none: {format_query(query)}"
        )


def _check_folders_empty(tree: Tree, directory: Directory) -> None:
    """Files in plain folders go by the folder's path: they would stay behind."""
    children = tree.entries(directory)
    for _, child in children:
        _check_folders_empty(tree, child)
    if directory.kind == Kind.FOLDER:
        below = {name for name, _ in children}
        if any(entry.name not in below for entry in tree.files.entries(tree.area(directory))):
            raise EditRefused(f"{directory.path} holds files: move these first", errno.ENOTEMPTY)


def commit_search(tx: Transaction, edit: SearchEdit) -> None:
    """Write an edit of searches, within a transaction. Raises SearchExists, NoSuchSearch, KeywordInUse."""
    match edit:
        case NewSearch(name, query):
            tx.searches.save(name, query)
        case ForgottenSearch(name):
            tx.searches.forget(name)
        case RenamedSearches():
            _rename_searches(tx, edit)
        case EditedQuery(search_id, name, query):
            if tx.searches.queries().get(name) != tx.searches.query(search_id):
                raise NoSuchSearch(f"the search {name} was renamed meanwhile: try again")
            tx.searches.rename(name, name, query)
        case _:
            assert_never(edit)


def _rename_searches(tx: Transaction, edit: RenamedSearches) -> None:
    """Also other searches that speak of such a keyword speak of the new one from now on.

    Raises NoSuchSearch when the search was forgotten meanwhile.
    """
    queries = tx.searches.queries()
    if not edit.is_folder and edit.path not in queries:
        raise NoSuchSearch(f"no saved search named {edit.path}: see `mailfs searches`")
    names = {name: to for name, to in edit.names if name in queries}
    keywords = []
    for name, to in names.items():
        old, new = keyword_for_folder(name), keyword_for_folder(to)
        if queries[name] == _label_query(name) and old != new:
            tx.rename_keyword(old, new)
            keywords.append((old, new))
    for name, query in queries.items():
        new_name, new_query = names.get(name, name), _with_keywords(query, keywords)
        if (new_name, new_query) != (name, query):
            tx.searches.rename(name, new_name, new_query)


def _with_keywords(query: str, keywords: list[tuple[Keyword, Keyword]]) -> str:
    """As it was typed, unless it names one of the keywords; what does not parse stays."""
    try:
        before = after = parse_query(query)
    except QuerySyntaxError:
        return query
    for old, new in keywords:
        after = rename_keyword(after, old, new)
    return query if after == before else format_query(after)
