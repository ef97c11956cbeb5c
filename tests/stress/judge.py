"""The end of a run: is the store what the ledger says, and do both kernels' caches show what the store holds?

What is expected is computed anew: a tree of its own on the store, each query asked whole. Nobody writes any more, so
all of it must be equal; what mounts, kernels and watchers hear later than others is waited for, up to a deadline.
"""

import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from mailfs.ids import Docid
from mailfs.message.maildir import split_name
from mailfs.search.plan import plan
from mailfs.store.store import Store
from mailfs.views.evaluation import evaluate, install
from mailfs.views.tree import Attributes, Kind, Tree, message_ino
from tests.mount.waiting import pause
from tests.stress.commands import run_mailfs, status_or_none
from tests.stress.ledger import read_fates
from tests.stress.mail import digest_of
from tests.stress.settings import BY_THE_CLOCK, Settings

# A folder of messages by its path from the mount point, as `work/cur`.
Folder = str
_SETTLED_S = 2.0
_SETTLE_DEADLINE_S = 60.0
_CAUGHT_UP_S = 10.0
# So much later than the clock may a listing of a relative date be, and the two evaluations we compare with.
_CLOCK_SLACK_S = 120.0
_SHOWN_OF_A_KIND = 5


@dataclass
class Findings:
    """What is wrong, by kind; of each kind the first few in full."""

    counts: Counter[str] = field(default_factory=Counter)
    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.texts[kind]) < _SHOWN_OF_A_KIND:
            self.texts[kind].append(text)

    def lines(self) -> list[str]:
        return [
            line
            for kind, count in self.counts.items()
            for line in (f"{count} x {kind}", *(f"    {text}" for text in self.texts[kind]))
        ]


@dataclass(frozen=True)
class Expected:
    """What a mount must show: names and attributes by folder; `either` may be there or not, as the clock goes."""

    names: dict[Folder, dict[str, Attributes]]
    either: dict[Folder, frozenset[str]]
    digests: dict[int, str]


def wait_until_settled(settings: Settings, findings: Findings) -> None:
    """Until nothing is written any more, and both mounts say that they show the store's last change."""
    give_up = time.monotonic() + _SETTLE_DEADLINE_S
    with Store.open(settings.store) as store:
        last, since_s = store.index.state(), time.monotonic()
        while time.monotonic() < give_up:
            pause(0.1)
            state = store.index.state()
            if state != last:
                last, since_s = state, time.monotonic()
            elif time.monotonic() - since_s > _SETTLED_S and _have_caught_up(
                settings, state.modseq
            ):
                return
    findings.add("settling", f"the store or a mount still changes after {_SETTLE_DEADLINE_S:g} s")


def _have_caught_up(settings: Settings, modseq: int) -> bool:
    """Both mounts show this state, and no message stays in a view any longer for who read it there."""
    for status in map(status_or_none, settings.mounts):
        if status is None or status["modseq"] != modseq:
            return False
        views = status["views"]
        if not isinstance(views, list) or any(view["lingering"] for view in views):
            return False
    return True


def expected_of(store: Store) -> Expected:
    """Every view asked anew."""
    tree = Tree(store, {})
    names: dict[Folder, dict[str, Attributes]] = {}
    either: dict[Folder, frozenset[str]] = {}
    for name, view in tree.views.items():
        install(tree, view, evaluate(store.layout, view, tree.facts))
        moving: set[Docid] = set()
        if name in BY_THE_CLOCK:
            before = plan(view.query, time.time() - _CLOCK_SLACK_S)
            now = store.index.docids(plan(view.query, time.time()))
            moving = set(now) ^ set(store.index.docids(before))
        for kind in (Kind.CUR, Kind.NEW):
            directory = tree.directory(tree.subfolder_ino(view, kind))
            found = {
                os.fsdecode(entry): Docid(docid)
                for docid, _, entry in tree.iter_messages(directory, Docid(0))
            }
            folder = f"{name}/{kind.name.lower()}"
            names[folder] = {e: tree.message_attributes(docid) for e, docid in found.items()}
            either[folder] = frozenset(map(str, (message_ino(docid) for docid in moving)))
    docids = store.index.docids(plan(tree.views["all"].query, time.time()))
    digests = {int(message_ino(docid)): digest_of(store.load(docid)) for docid in docids}
    return Expected(names, either, digests)


def judge_mount(settings: Settings, mount: Path, expected: Expected, findings: Findings) -> None:
    """Listings, attributes, contents, and names that are gone."""
    listed: dict[Folder, set[str]] = {}
    for folder, names in expected.names.items():
        listed[folder] = set(os.listdir(mount / folder))
        for name in sorted(listed[folder] ^ names.keys()):
            _judge_difference(mount, folder, name, names, expected, findings)
        for name in listed[folder] & names.keys():
            _judge_attributes(mount / folder / name, names[name], findings)
    _judge_contents(mount, listed, expected, findings)
    _judge_gone(settings, mount, listed, findings)


def _judge_difference(
    mount: Path,
    folder: Folder,
    name: str,
    names: dict[str, Attributes],
    expected: Expected,
    findings: Findings,
) -> None:
    if name in names:
        if str(names[name].ino) not in expected.either[folder]:
            findings.add("not listed", f"{mount.name}/{folder}/{name}")
        return
    try:
        ino = str(os.stat(mount / folder / name).st_ino)
    except OSError as error:
        findings.add("listed, but no such file", f"{mount.name}/{folder}/{name}: {error.strerror}")
        return
    if ino not in expected.either[folder]:
        findings.add("listed, but the query does not find it", f"{mount.name}/{folder}/{name}")


def _judge_attributes(path: Path, attributes: Attributes, findings: Findings) -> None:
    try:
        found = os.stat(path)
    except OSError as error:
        findings.add("listed, but no such file", f"{path}: {error.strerror}")
        return
    # Not the link count: the kernel keeps what it was told first, and a name made in another view moves none here.
    pairs = {
        "inode": (found.st_ino, attributes.ino),
        "size": (found.st_size, attributes.size),
        "mtime": (found.st_mtime_ns, attributes.mtime_ns),
    }
    for what, (shown, right) in pairs.items():
        if shown != right:
            findings.add(f"wrong {what}", f"{path}: {shown}, and should be {right}")


def _judge_contents(
    mount: Path, listed: dict[Folder, set[str]], expected: Expected, findings: Findings
) -> None:
    for folder in ("all/cur", "all/new"):
        for name in listed[folder] & expected.names[folder].keys():
            right = expected.digests.get(expected.names[folder][name].ino)
            try:
                shown = digest_of((mount / folder / name).read_bytes())
            except OSError as error:
                findings.add("cannot be read", f"{mount.name}/{folder}/{name}: {error.strerror}")
                continue
            if shown != right:
                findings.add("another content than in the store", f"{mount.name}/{folder}/{name}")


def _judge_gone(
    settings: Settings, mount: Path, listed: dict[Folder, set[str]], findings: Findings
) -> None:
    """Names that were listed once and are not any more: the kernel must have been told."""
    shown = settings.shown / f"{mount.name}.names"
    true_names = {_meaning(folder, name) for folder, names in listed.items() for name in names}
    gone = []
    for path in sorted(set(shown.read_text().splitlines())) if shown.exists() else ():
        folder, _, name = path.rpartition("/")
        if folder in listed and _meaning(folder, name) not in true_names:
            gone.append(mount / path)
    give_up = time.monotonic() + _CAUGHT_UP_S
    while (found := [path for path in gone if path.exists()]) and time.monotonic() < give_up:
        pause(0.1)
    for still in found:
        findings.add("gone, but still found by its name", str(still))


def _meaning(folder: Folder, name: str) -> tuple[str, bytes, bytes]:
    """Names with the same letters in another order, or none with and without `:2,`, are one to a client."""
    base, letters = split_name(os.fsencode(name))
    return folder, base, bytes(sorted(letters or b""))


def judge_pictures(settings: Settings, findings: Findings) -> Counter[str]:
    """What watchers saw when they were told last is what a listing shows. How many told pictures are right, too."""
    told: Counter[str] = Counter()
    for path in sorted(settings.pictures.glob("*.json")):
        found = json.loads(path.read_text())
        for folder, pictures in found["folders"].items():
            true_names = set(os.listdir(settings.folder / found["mount"] / folder))
            for name in sorted(true_names.symmetric_difference(pictures["listed"])):
                text = f"{path.stem}: {found['mount']}/{folder}/{name}"
                findings.add("a watcher was not told of a change", text)
            told["right" if true_names == set(pictures["told"]) else "wrong"] += 1
    if not told:
        findings.add("watching", "no watcher wrote its pictures")
    return told


def judge_store(settings: Settings, expected: Expected, findings: Findings) -> None:
    """The ledger against the store, and the store against itself."""
    live = Counter(expected.digests.values())
    fates = read_fates(settings.ledger)
    for digest, fate in fates.items():
        if live[digest] > 1:
            findings.add("stored twice", digest)
        if fate.must_be_there and not live[digest]:
            findings.add("lost", f"{digest}: {fate}")
        if fate.must_be_gone and live[digest]:
            findings.add("expunged, and still there", f"{digest}: {fate}")
    for digest in live.keys() - fates.keys():
        findings.add("nobody brought this", digest)
    done = run_mailfs(settings.store, "verify", "--quiet")
    if done.returncode:
        findings.add("mailfs verify", f"ended with {done.returncode}: {done.stderr.decode()}")


def judge_log(settings: Settings, findings: Findings) -> None:
    """The daemons had no trouble they did not expect."""
    log = (settings.store / "mount.log").read_text(errors="replace")
    for line in log.splitlines():
        if " ERROR " in line or line.startswith("Traceback"):
            findings.add("in mount.log", line)
