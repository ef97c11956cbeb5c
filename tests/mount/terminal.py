"""Programs that want a terminal, and get one nobody looks at."""

import os
import pty
import select
import subprocess
import time
from pathlib import Path

from tests.mount.accounts import Account

DEADLINE_S = 30.0


def run_in_terminal(account: Account, words: list[str], folder: Path) -> str:
    """Run a program to its end on a terminal of 80 columns; what it wrote there. Fails when it does not end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        account.arguments(*words),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**account.environment(), "LINES": "24", "COLUMNS": "80"},
        cwd=folder,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    give_up = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < give_up:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # EIO: the last of them has closed the terminal
                    break
                written += piece
                if not piece:
                    break
            elif process.poll() is not None:
                break
        else:
            raise AssertionError(f"{words} did not end; it showed: {written[-2000:]!r}")
        process.wait(max(0.1, give_up - time.monotonic()))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        os.close(ours)
    return written.decode(errors="replace")
