"""STORE/config: what it may say, what is refused and how, and that the manual says the same."""

import os
import re
from pathlib import Path

import pytest

from mailfs.errors import EX_CONFIG, ConfigError
from mailfs.store.config import KEYS, Config, config_path, read_config
from mailfs.store.layout import Layout, new_layout
from tests.fakes import PROJECT

ALL = """
[mount]
linger = 1.5
sync-interval = 0
lock-timeout = 600
echo = false
log-level = "debug"
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return new_layout(tmp_path / "store")


def written(layout: Layout, content: str | bytes) -> Layout:
    config_path(layout).write_bytes(content if isinstance(content, bytes) else content.encode())
    return layout


def test_a_store_without_a_configuration_has_the_defaults(layout: Layout) -> None:
    assert read_config(layout) == Config(
        linger_s=300, sync_s=3, lock_deadline_s=10, echo=True, log_level="info"
    )
    assert not config_path(layout).exists()


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "[mount]\n"])
def test_what_says_nothing_leaves_the_defaults(layout: Layout, content: str) -> None:
    assert read_config(written(layout, content)) == Config()


def test_every_key_can_be_set(layout: Layout) -> None:
    assert {key.name for key in KEYS["mount"]} == set(re.findall("^[a-z-]+", ALL, re.MULTILINE))
    assert read_config(written(layout, ALL)) == Config(
        linger_s=1.5, sync_s=0, lock_deadline_s=600, echo=False, log_level="debug"
    )


def test_what_a_mount_does_for_its_store_can_be_set(layout: Layout) -> None:
    content = """
        [store]
        reserve = 100
        [maintenance]
        delay = 0
        interval = "12h"
        expire = "6m"
        compact = false
        dump = false
    """
    assert read_config(written(layout, content)) == Config(
        reserve_bytes=100 << 20,
        maintenance_delay_s=0,
        maintenance_s=12 * 3600,
        expire="6m",
        compacts=False,
        dumps=False,
    )
    content = '[maintenance]\ninterval = "never"\nexpire = "never"\n'
    assert read_config(written(layout, content)) == Config(maintenance_s=None, expire=None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5M", 300), ("1h", 3600), ("1d", 86400), ("2w", 14 * 86400)]
)
def test_an_interval_has_the_units_of_queries(layout: Layout, text: str, seconds: float) -> None:
    config = read_config(written(layout, f'[maintenance]\ninterval = "{text}"\n'))
    assert config.maintenance_s == seconds
    assert f"maintenance {text} " in str(config)


def test_a_key_that_is_not_set_keeps_its_default(layout: Layout) -> None:
    assert read_config(written(layout, "mount.linger = 60\n")) == Config(linger_s=60)


def test_the_file_may_be_a_link_to_one_elsewhere(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("[mount]\nlinger = 60\n")
    config_path(layout).symlink_to(tmp_path / "mine")
    assert read_config(layout).linger_s == 60


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[mount]\nlinger = -1\n", "mount.linger must be a number of seconds from 0 to 86400"),
        ("[mount]\nlinger = 86401\n", "from 0 to 86400"),
        ("[mount]\nlinger = inf\n", "mount.linger must be"),
        ("[mount]\nlinger = nan\n", "mount.linger must be"),
        ("[mount]\nlinger = true\n", "mount.linger must be"),
        ('[mount]\nlinger = "5min"\n', "mount.linger must be a number of seconds"),
        (f"[mount]\nlinger = 0x{'f' * 6000}\n", "mount.linger must be"),
        ("[mount]\nsync-interval = 3601\n", "mount.sync-interval must be .* from 0 to 3600"),
        ("[mount]\nlock-timeout = [1]\n", "mount.lock-timeout must be .* from 0 to 600"),
        ("[mount]\necho = 1\n", "mount.echo must be true or false"),
        (
            '[mount]\nlog-level = "INFO"\n',
            "mount.log-level must be one of error, warning, info, debug",
        ),
        ("[mount]\nlog-level = 7\n", "mount.log-level must be"),
        (
            "[mount]\nlingers = 1\n",
            "unknown key mount.lingers; known: linger, sync-interval, lock-timeout, echo, log-level",
        ),
        # Of a date m are months: who means minutes must not lose mail by it.
        ('[maintenance]\ninterval = "5m"\n', "maintenance.interval must be a time such as"),
        ('[maintenance]\ninterval = "0d"\n', "maintenance.interval must be a time such as"),
        ("[maintenance]\ninterval = 5\n", "maintenance.interval must be a time such as"),
        ('[maintenance]\nexpire = "soon"\n', 'maintenance.expire must be a time such as "30d"'),
        ("[maintenance]\nexpire = 30\n", "maintenance.expire must be"),
        ("[maintenance]\ndump = 1\n", "maintenance.dump must be true or false"),
        ("[store]\nreserve = -1\n", "store.reserve must be a whole number of MiB"),
        ("[store]\nreserve = 1.5\n", "store.reserve must be"),
        ("[store]\nreserve = true\n", "store.reserve must be"),
        ("[mount.linger]\nlong = 1\n", "mount.linger must be"),
        ("linger = 1\n", "unknown table or key 'linger'; known: store, mount, maintenance"),
        ("[mounts]\n", "unknown table or key 'mounts'; known: store, mount, maintenance"),
        ("mount = 1\n", r"mount is a table, written \[mount\]"),
        ("[[mount]]\nlinger = 1\n", r"mount is a table, written \[mount\]"),
        ("[mount]\nlinger 1\n", "is not TOML: .*line 2, column 8"),
        ("[mount]\nlinger = 1\nlinger = 2\n", "is not TOML: .*line 3"),
        (f"[mount]\nlinger = {'9' * 5000}\n", "is not TOML"),
        (f"mount = {'[' * 30000}", "is not TOML"),
        (b"[mount]\n# caf\xe9\n", r"is not UTF-8 \(at line 2\)"),
        (b"\0", "is not TOML"),
        ("#" * (1 << 16) + "\n", "more than 65536 bytes"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_file_the_place_and_what_is_allowed(
    layout: Layout, content: str | bytes, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        read_config(written(layout, content))
    assert str(config_path(layout)) in str(caught.value)
    assert caught.value.exit_code == EX_CONFIG
    # It becomes a line of a log, and of what a service manager shows.
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_one_bad_key_refuses_the_whole_file(layout: Layout) -> None:
    with pytest.raises(ConfigError, match=r"mount\.echo"):
        read_config(written(layout, "[mount]\nlinger = 60\necho = 0\n"))


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(layout: Layout, kind: str) -> None:
    if kind == "folder":
        config_path(layout).mkdir()
    else:
        os.mkfifo(config_path(layout))
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config(layout)


def test_a_link_to_nowhere_is_no_configuration(layout: Layout) -> None:
    config_path(layout).symlink_to("nowhere")
    assert read_config(layout) == Config()


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(layout: Layout) -> None:
    config_path(layout).symlink_to(config_path(layout))
    with pytest.raises(ConfigError, match=r"cannot read .*config: Too many levels"):
        read_config(layout)


def test_the_manual_says_of_every_key_its_default_and_what_is_allowed() -> None:
    page = (PROJECT / "man" / "mailfs.1").read_text("utf-8").replace("\\-", "-")
    section = page.partition("\n.SH CONFIGURATION\n")[2].partition("\n.SH ")[0]
    said = {
        key[1]: key[2]
        for key in re.finditer(r'^\.BI "([a-z-]+) = " .*\n((?:(?!\.TP\n).*\n?)*)', section, re.M)
    }
    keys = [key for table in KEYS.values() for key in table]
    assert list(said) == [key.name for key in keys]
    for key in keys:
        default = getattr(Config(), key.field)
        shown = f"by default {default:g}" if type(default) is float else f"{default}".lower()
        if key.allowed.startswith("a whole number of MiB"):
            shown = f"by default {default >> 20}"
        if key.name == "interval":
            shown = "1d"
        words = " ".join(re.sub(r"^\.[A-Z]+ ", "", said[key.name], flags=re.M).split())
        assert shown in words
        limits = re.findall(r"\b\d+\b|\b(?:error|warning|info|debug)\b", key.allowed)
        assert [limit for limit in limits if not re.search(rf"\b{limit}\b", words)] == []
