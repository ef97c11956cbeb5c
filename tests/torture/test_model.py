"""Some histories of the model, and that it notices what is wrong."""

from pathlib import Path

import pytest

from mailfs.ids import Docid
from mailfs.store.transaction import Transaction
from tests.torture.model import run


def test_two_writers_see_what_the_model_says(tmp_path: Path) -> None:
    report = run(1, 60, tmp_path)
    assert report.is_sound, "\n".join(report.lines())


def test_a_message_that_does_not_come_back_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(self: Transaction, docid: Docid) -> bool:
        return not self.is_live(docid)

    monkeypatch.setattr(Transaction, "undelete", forgets)
    assert not run(1, 60, tmp_path).is_sound
