"""Importing, opening in mutt, listing and reading all mail, beside notmuch, ext4 and a bare FUSE file system.

Contestants of one part take turns, and the one that begins changes from round to round.
"""

import contextlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.programs import (
    drop_caches,
    floor,
    in_turn,
    mailfs,
    mounted,
    run,
    run_in_terminal,
    timed,
)
from tests.bench.report import Aim, Skip
from tests.bench.setting import Setting

MUTT_OVER_EXT4 = 3.0
OPEN_OVER_FLOOR = 1.5
IMPORT_OVER_NOTMUCH = 8.0
LISTING_US = 5.0
# No header cache; nothing that asks, writes or looks at other mailboxes; open the index, draw it, leave.
MUTT_RC = """unset header_cache
unset mark_old
unset move
unset mail_check_stats
set quit=yes
set folder={home}
set status_format="Msgs:%m."
push <exit>
"""


def measure_import(setting: Setting) -> None:
    """A new store against a new notmuch database, from a warm Maildir to the prompt."""
    one_worker = setting.work / "store-1"

    def import_with_one() -> None:
        mailfs(one_worker, "init")
        run([sys.executable, "-m", "tests.bench.one_worker", one_worker, setting.maildir])

    contestants: dict[str, Callable[[], None]] = {
        "mailfs": lambda: setting.import_all(setting.store),
        "mailfs, 1 worker": import_with_one,
    }
    if shutil.which("notmuch"):
        contestants["notmuch new"] = lambda: _notmuch_new(setting)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(setting.rounds):
        for name in in_turn(list(contestants), number):
            for folder in (setting.store, one_worker, setting.work / "notmuch"):
                shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            rates[name].append(setting.messages / timed(contestants[name]))
    shutil.rmtree(one_worker, ignore_errors=True)
    aim = None
    if "notmuch new" in rates:
        rate = setting.report.add("import", "notmuch new", "messages/s", rates["notmuch new"])
        text = f">= {IMPORT_OVER_NOTMUCH:g} x notmuch"
        aim = Aim(text, IMPORT_OVER_NOTMUCH * rate, at_least=True)
    setting.report.add("import", "mailfs init + import", "messages/s", rates["mailfs"], aim)
    setting.report.add("import", "with 1 worker", "messages/s", rates["mailfs, 1 worker"])


def _notmuch_new(setting: Setting) -> None:
    database = setting.work / "notmuch"
    database.mkdir()
    config = setting.work / "notmuch-config"
    config.write_text(
        f"[database]\npath={database}\nmail_root={setting.maildir}\n[new]\ntags=unread;inbox\n"
    )
    run(["notmuch", "new", "--quiet"], NOTMUCH_CONFIG=str(config))


def _mutt(setting: Setting, folder: Path) -> float:
    home = setting.work / "home"
    home.mkdir(exist_ok=True)
    rc = home / "muttrc"
    rc.write_text(MUTT_RC.format(home=home))
    environment = {**os.environ, "HOME": str(home), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    environment |= {"LINES": "24", "COLUMNS": "80"}
    command = ["mutt", "-n", "-F", str(rc), "-f", str(folder)]
    start = time.perf_counter()
    drawn = run_in_terminal(command, environment)
    took = time.perf_counter() - start
    # The status line of the index, which mutt draws before it leaves.
    if f"Msgs:{setting.messages}." not in drawn:
        raise RuntimeError(f"mutt did not show {setting.messages} messages: {drawn[-400:]!r}")
    return took


def _mutt_times(setting: Setting, before_each: Callable[[], None]) -> dict[str, list[float]]:
    if shutil.which("mutt") is None:
        raise Skip("mutt is not installed")
    setting.need_store()
    folders = {"mailfs": setting.view, "ext4": setting.maildir}
    times: dict[str, list[float]] = {name: [] for name in folders}
    with mounted(setting.store, setting.mountpoint):
        for folder in folders.values():
            _mutt(setting, folder)
        for number in range(setting.rounds):
            for name in in_turn(list(folders), number):
                before_each()
                times[name].append(_mutt(setting, folders[name]))
    return times


def measure_mutt(setting: Setting) -> None:
    """mutt opens the view of all messages, caches warm."""
    times = _mutt_times(setting, lambda: None)
    median = setting.report.add("mutt", "ext4, warm", "s", times["ext4"])
    aim = Aim(f"<= {MUTT_OVER_EXT4:g} x ext4", MUTT_OVER_EXT4 * median)
    setting.report.add("mutt", "mailfs, warm", "s", times["mailfs"], aim)


def measure_mutt_cold(setting: Setting) -> None:
    """The same after the kernel's caches were dropped; the daemon's memory stays."""
    drop_caches()
    times = _mutt_times(setting, drop_caches)
    median = setting.report.add("mutt_cold", "ext4, cold", "s", times["ext4"])
    setting.report.add("mutt_cold", "mailfs, cold", "s", times["mailfs"], Aim("< ext4", median))


def measure_listing(setting: Setting) -> None:
    """os.listdir, and os.scandir with a stat of each, of the view's cur; microseconds an entry."""
    setting.need_store()
    folders = {"mailfs": setting.view / "cur", "ext4": setting.maildir / "cur"}
    ways: dict[str, Callable[[Path], int]] = {
        "listdir": lambda folder: len(os.listdir(folder)),
        "scandir+stat": lambda folder: sum(1 for entry in os.scandir(folder) if entry.stat()),
    }
    with mounted(setting.store, setting.mountpoint):
        count = len(os.listdir(folders["mailfs"]))
        for way, work in ways.items():
            samples: dict[str, list[float]] = {name: [] for name in folders}
            for number in range(setting.rounds):
                for name in in_turn(list(folders), number):
                    took = timed(lambda name=name, work=work: work(folders[name]))  # type: ignore[misc]  # defaults bind the loop's values
                    samples[name].append(1e6 * took / count)
            setting.report.add("listing", f"ext4 {way}", "us/entry", samples["ext4"])
            aim = Aim(f"<= {LISTING_US:g} us", LISTING_US)
            setting.report.add("listing", f"mailfs {way}", "us/entry", samples["mailfs"], aim)


def measure_open(setting: Setting) -> None:
    """open, read all, close, message after message: first on a fresh mount, then once more."""
    setting.need_store()
    sizes = setting.work / "sizes"
    with mounted(setting.store, setting.mountpoint):
        lengths = [entry.stat().st_size for entry in os.scandir(setting.view / "cur")]
    sizes.write_text(" ".join(map(str, lengths)))
    floor_mount = setting.work / "floor"
    contestants: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        "mailfs": lambda: mounted(setting.store, setting.mountpoint),
        "floor": lambda: floor(floor_mount, sizes, "drained"),
        "floor, not drained": lambda: floor(floor_mount, sizes, "plain"),
        "ext4": contextlib.nullcontext,
    }
    folders = {"mailfs": setting.view / "cur", "ext4": setting.maildir / "cur"}
    passes = ("first", "again")
    samples: dict[tuple[str, str], list[float]] = {
        (name, which): [] for name in contestants for which in passes
    }
    for number in range(setting.rounds):
        for name in in_turn(list(contestants), number):
            with contestants[name]():
                folder = folders.get(name, floor_mount)
                paths = [entry.path for entry in os.scandir(folder)]
                for which in passes:
                    took = timed(lambda paths=paths: read_all(paths))  # type: ignore[misc]  # a default binds the loop's value
                    samples[name, which].append(1e6 * took / len(paths))
    for which in passes:
        for name in contestants:
            if name != "mailfs":
                setting.report.add("open", f"{name}, {which}", "us/message", samples[name, which])
        base = statistics.median(samples["floor", which])
        aim = Aim(f"<= {OPEN_OVER_FLOOR:g} x floor", OPEN_OVER_FLOOR * base)
        name = f"mailfs, {which}"
        setting.report.add("open", name, "us/message", samples["mailfs", which], aim)


def read_all(paths: Sequence[str]) -> None:
    """open, read to the end, close, one after the other."""
    buffer = bytearray(1 << 17)
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            while os.readv(fd, [buffer]) == len(buffer):
                pass
        finally:
            os.close(fd)
