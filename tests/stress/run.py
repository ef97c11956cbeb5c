"""One run: a store with mail in it, two mounts, everybody at work and some killed, then the judgement and the report."""

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import rmtree

from mailfs.ids import Keyword
from mailfs.message.keywords import FLAGGED, RECENT, SEEN
from mailfs.store.prepare import prepare_message
from mailfs.store.store import Store
from tests.stress.commands import run_mailfs
from tests.stress.judge import (
    Findings,
    expected_of,
    judge_log,
    judge_mount,
    judge_pictures,
    judge_store,
    wait_until_settled,
)
from tests.stress.ledger import Ledger, Mark, read_fates
from tests.stress.mail import make_letter
from tests.stress.settings import CONFIG, LABELS, SEARCHES, Settings
from tests.stress.stage import Broken, Stage
from tests.stress.tally import Total, read_total

_SLICE = 500
_JUDGE_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Report:
    """What a run did and found. `folder` has been removed where nothing was wrong."""

    settings: Settings
    total: Total
    findings: Findings
    kills: Counter[str]
    statuses: list[dict[str, object]]
    brought: int
    removed: int
    pictures: Counter[str]

    @property
    def is_sound(self) -> bool:
        return not self.total.faults and not self.findings.counts

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"seed {self.settings.seed}; {self.brought} messages acknowledged, "
            f"{self.removed} taken away or about to be",
            "kills: " + (_counts(self.kills) or "none"),
            *self.total.table(),
            "errors: " + (_counts(self.total.errors) or "none"),
            "folders as watchers know them from events alone: " + _counts(self.pictures),
            *self._said_by_the_mounts(),
        ]
        if not self.is_sound:
            lines += ["", f"WRONG; store, ledger and logs are kept in {self.settings.folder}"]
            lines += self.findings.lines()
            lines += [fault.rstrip() for fault in self.total.faults]
        return lines

    def _said_by_the_mounts(self) -> list[str]:
        lines = [
            f"{key}: {_counts(_sums(status.get(key) for status in self.statuses)) or 'not said'}"
            for key in ("requests", "echoes")
        ]
        locks = _sums(status.get("lock") for status in self.statuses)
        return [*lines, f"lock: {_counts(locks) or 'not said'}"]


def _sums(tables: Iterable[object]) -> dict[str, float]:
    """What numbers of the same name are together; the largest of those that are the longest of something."""
    sums: dict[str, float] = defaultdict(float)
    for table in tables:
        for key, number in table.items() if isinstance(table, dict) else ():
            if isinstance(number, int | float):
                is_largest = key.startswith("longest")
                sums[key] = max(sums[key], number) if is_largest else sums[key] + number
    return sums


def _counts(counts: Mapping[str, float]) -> str:
    sizes = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count:g} {name}" for name, count in sizes)


def run_stress(seconds: float, seed: int, messages: int, parent: Path | None = None) -> Report:
    """Run for so many seconds, then judge. What it made below `parent` is removed unless something was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="mailfs-stress-", dir=parent))
    settings = Settings(folder, seed, messages, 0.0)
    for each in settings.folders():
        each.mkdir()
    _make_store(settings)
    findings = Findings()
    settings = Settings(folder, seed, messages, time.monotonic() + seconds)
    stage = Stage(settings)
    pictures: Counter[str] = Counter()
    try:
        with stage.mounted():
            _act(settings, stage, findings)
            with stage.limited(_JUDGE_DEADLINE_S), Store.open(settings.store) as store:
                expected = expected_of(store)
                for mount in settings.mounts:
                    judge_mount(settings, mount, expected, findings)
                pictures = judge_pictures(settings, findings)
            stage.note_statuses()
            _unmount(settings, findings)
        judge_store(settings, expected, findings)
    except Broken as error:
        findings.add("the run was ended", str(error))
    except (KeyboardInterrupt, SystemExit):
        rmtree(folder)
        raise
    judge_log(settings, findings)
    report = _report(settings, stage, findings, pictures)
    if report.is_sound:
        rmtree(folder)
    return report


def _act(settings: Settings, stage: Stage, findings: Findings) -> None:
    """Everybody at work, to the end, when nothing changes any more and the watchers have said what they believe."""
    with stage.acting():
        stage.direct()
        stage.end_writers()
        wait_until_settled(settings, findings)
        stage.end_watchers()


def _unmount(settings: Settings, findings: Findings) -> None:
    for mount in settings.mounts:
        done = run_mailfs(settings.store, "umount", mount)
        if done.returncode:
            findings.add("umount", done.stderr.decode())


def _make_store(settings: Settings) -> None:
    """Some messages in all states, and the searches."""
    random = Random(f"{settings.seed} store")
    ledger = Ledger(settings.ledger / "start")
    letters = [make_letter("start", number, random) for number in range(settings.messages)]
    with Store.create(settings.store) as store:
        (settings.store / "config").write_text(CONFIG)
        for start in range(0, len(letters), _SLICE):
            digests = [letter.digest for letter in letters[start : start + _SLICE]]
            ledger.write(Mark.BRINGING, digests)
            with store.writer.transaction("stress", durable=True) as transaction:
                for letter in letters[start : start + _SLICE]:
                    flags = random.choice((0, SEEN, SEEN, SEEN | FLAGGED, RECENT))
                    keyword = Keyword(random.choice(LABELS))
                    transaction.add(prepare_message(letter.raw, flags, (keyword,), None))
            ledger.write(Mark.BROUGHT, digests)
        with store.writer.transaction("stress", durable=True) as transaction:
            for name, query in SEARCHES.items():
                transaction.searches.save(name, query)


def _report(settings: Settings, stage: Stage, findings: Findings, pictures: Counter[str]) -> Report:
    fates = read_fates(settings.ledger).values()
    return Report(
        settings,
        read_total(settings.tally),
        findings,
        stage.kills,
        list(stage.statuses.values()),
        sum(bool(fate.brought) for fate in fates),
        sum(bool(fate.removing) for fate in fates),
        pictures,
    )
