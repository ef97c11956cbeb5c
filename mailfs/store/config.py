"""STORE/config: what a user may set, in TOML (toml.io), read at `mount` and again at SIGHUP.

    [store]
    reserve = 16          # MiB; what each key means stands at its field in Config
    pack-size = 256       # MiB

    [mount]
    linger = 300          # seconds
    sync-interval = 3
    lock-timeout = 10
    echo = true
    log-level = "info"

    [maintenance]
    interval = "1d"       # units as in queries, mailfs-search(7), or "never"
    delay = 60            # seconds
    expire = "30d"
    compact = true
    dump = true

Without the file, a table or a key the defaults hold. Nothing is guessed: a key that is not known, of another type or out of
range refuses the whole file, so that a slip of the pen is no setting silently ignored. mailfs never writes the file.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mailfs.errors import ConfigError
from mailfs.store.layout import Layout

# Of error, warning, info and debug a log has those up to its level, as in syslog(3).
LOG_LEVELS = ("error", "warning", "info", "debug")
MAX_LINGER_S = 86400.0
MAX_SYNC_S = 3600.0
# A client that waits longer for a rename looks dead.
MAX_LOCK_DEADLINE_S = 600.0
MAX_DELAY_S = 86400.0
MAX_RESERVE_MIB = 65536
MAX_PACK_MIB = 4096
NEVER = "never"
# As in queries, but for months and years, which are no fixed time: m is a month there.
_UNITS_S = {"M": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,6})([Mhdw])", re.ASCII)
# Some hundred times what it may need: whatever is larger is no configuration.
_MAX_BYTES = 1 << 16

Value = float | bool | str | None


@dataclass(frozen=True, slots=True)
class Config:
    """What a mount can be told, and of that the table `store` any writer; the values here are the defaults."""

    # Less than this free, and nothing is added any more; at most a sixteenth of the disk (health.py).
    reserve_bytes: int = 16 << 20
    # A pack of this size is sealed and followed by a new one (packs.py).
    pack_bytes: int = 256 << 20
    # How long a message that was read in `unread` stays there after its reader was last seen.
    linger_s: float = 300.0
    # A change of flags that nobody fsyncs survives power loss after at most this; a second is the least.
    sync_s: float = 3.0
    # How long a client's change waits for another writer before EAGAIN.
    lock_deadline_s: float = 10.0
    # Whether changes from elsewhere are made through the mount, so that inotify tells of them.
    echo: bool = True
    log_level: str = "info"
    # How long after it begins a mount first takes care of its store (maintenance.py).
    maintenance_delay_s: float = 60.0
    # How often it does; None: never.
    maintenance_s: float | None = 86400.0
    # How long an expunged message can be had back, as a date in a query; None: for ever.
    expire: str | None = "30d"
    compacts: bool = True
    dumps: bool = True

    def __str__(self) -> str:
        return (
            f"linger {self.linger_s:g} s, sync-interval {self.sync_s:g} s, "
            f"lock-timeout {self.lock_deadline_s:g} s, echo {'on' if self.echo else 'off'}, "
            f"log-level {self.log_level}, reserve {self.reserve_bytes >> 20} MiB, "
            f"pack-size {self.pack_bytes >> 20} MiB, "
            f"maintenance {_duration_text(self.maintenance_s)} (first after "
            f"{self.maintenance_delay_s:g} s), expire {self.expire or NEVER}, "
            f"compact {'on' if self.compacts else 'off'}, dump {'on' if self.dumps else 'off'}"
        )


def _duration_text(duration_s: float | None) -> str:
    """The longest unit that fits; `never` of None."""
    if duration_s is None:
        return NEVER
    unit = next((each for each in "wdh" if duration_s % _UNITS_S[each] == 0), "M")
    return f"{duration_s / _UNITS_S[unit]:g}{unit}"


class Key(NamedTuple):
    """A key of a table: the field of Config it sets, what it may be, and a check that raises ValueError."""

    name: str
    field: str
    allowed: str
    check: Callable[[object], Value]


def _seconds(most: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        # To Python true is a number, and to TOML nan is one; nan fails every comparison.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise ValueError
        return float(value)

    return check


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _mebibytes(least: int, most: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value << 20

    return check


def _duration(value: object) -> float | None:
    if value == NEVER:
        return None
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None or not int(found[1]):
        raise ValueError
    return float(int(found[1]) * _UNITS_S[found[2]])


def _age(value: object) -> str | None:
    from mailfs.search.dates import moment_ago

    if value == NEVER:
        return None
    if not isinstance(value, str):
        raise ValueError
    moment_ago(value, time.time())
    return value


def _log_level(value: object) -> str:
    if not isinstance(value, str) or value not in LOG_LEVELS:
        raise ValueError
    return value


def _seconds_key(name: str, field: str, most: float) -> Key:
    return Key(name, field, f"a number of seconds from 0 to {most:g}", _seconds(most))


def _mebibytes_key(name: str, field: str, least: int, most: int) -> Key:
    allowed = f"a whole number of MiB from {least} to {most}"
    return Key(name, field, allowed, _mebibytes(least, most))


_DURATION_TEXT = 'a time such as "1d" (M for minutes, h, d or w), or "never"'
_AGE_TEXT = 'a time such as "30d" (M for minutes, h, d, w, m for months, y), or "never"'
KEYS = {
    "store": (
        _mebibytes_key("reserve", "reserve_bytes", 0, MAX_RESERVE_MIB),
        _mebibytes_key("pack-size", "pack_bytes", 1, MAX_PACK_MIB),
    ),
    "mount": (
        _seconds_key("linger", "linger_s", MAX_LINGER_S),
        _seconds_key("sync-interval", "sync_s", MAX_SYNC_S),
        _seconds_key("lock-timeout", "lock_deadline_s", MAX_LOCK_DEADLINE_S),
        Key("echo", "echo", "true or false", _truth),
        Key("log-level", "log_level", f"one of {', '.join(LOG_LEVELS)}", _log_level),
    ),
    "maintenance": (
        Key("interval", "maintenance_s", _DURATION_TEXT, _duration),
        _seconds_key("delay", "maintenance_delay_s", MAX_DELAY_S),
        Key("expire", "expire", _AGE_TEXT, _age),
        Key("compact", "compacts", "true or false", _truth),
        Key("dump", "dumps", "true or false", _truth),
    ),
}


def config_path(layout: Layout) -> Path:
    """Where the configuration of a store is, if it has one."""
    return layout.root / "config"


def read_config(layout: Layout) -> Config:
    """The configuration of a store, or the defaults. Raises ConfigError, which says where and what is allowed."""
    import tomllib  # a start of some milliseconds, which only a mount needs

    path = config_path(layout)
    text = _read(path)
    try:
        tables = tomllib.loads(text)
    except (
        ValueError
    ) as error:  # TOMLDecodeError says line and column, int() only that a number is too long
        raise ConfigError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not TOML: nested too deep") from None
    chosen: dict[str, Value] = {}
    for table, settings in tables.items():
        if table not in KEYS:
            raise ConfigError(f"{path}: unknown table or key {table!r}; known: {_known(KEYS)}")
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: {table} is a table, written [{table}]")
        chosen |= _read_table(path, table, settings)
    return Config(**chosen)  # type: ignore[arg-type]  # each check gives what its field takes


def _read(path: Path) -> str:
    try:
        # A FIFO must not keep who opens it waiting.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{path} is not a regular file")
        raw = os.read(fd, _MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(fd)
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path} has more than {_MAX_BYTES} bytes: it is no configuration")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path} is not UTF-8 (at line {line})") from None


def _read_table(path: Path, table: str, settings: dict[str, object]) -> dict[str, Value]:
    """The fields of Config that a table sets."""
    keys = {key.name: key for key in KEYS[table]}
    chosen: dict[str, Value] = {}
    for name, value in settings.items():
        key = keys.get(name)
        if key is None:
            raise ConfigError(f"{path}: unknown key {table}.{name}; known: {_known(keys)}")
        try:
            chosen[key.field] = key.check(value)
        except ValueError:
            raise ConfigError(f"{path}: {table}.{name} must be {key.allowed}") from None
    return chosen


def _known(names: Iterable[str]) -> str:
    return ", ".join(names)
