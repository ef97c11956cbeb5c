"""A Dovecot of one's own: its configuration, its server, and its imap process on a pipe.

Dovecot gives mail to no process of user id 0. Where the tests run as root, it runs in a user namespace in which root
has the number of the user `dovecot` (whom the Debian package makes); the kernel still knows it as root, so it enters a
mount that only root may enter. Everybody else runs it as is described for a "rootless" Dovecot.
"""

import grp
import imaplib
import pwd
import re
import shlex
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.mount.accounts import Account
from tests.mount.mounting import is_alive
from tests.mount.waiting import wait_until

USER = "ann"
PASSWORD = "pass"  # of a server on 127.0.0.1 that ends with its test
SERVER = "/usr/sbin/dovecot"
IMAP = "/usr/lib/dovecot/imap"
LDA = "/usr/lib/dovecot/dovecot-lda"
_PACKAGE_USER = "dovecot"

_CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
first_valid_gid = 1
mail_home = {folder}/home
mail_location = {mail_location}
service auth {{
  unix_listener auth-userdb {{
    mode = 0600
  }}
}}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service stats {{
  chroot =
}}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = passwd-file
  args = {folder}/users/%u
}}
namespace inbox {{
  inbox = yes
  separator = /
}}
{extra}
"""


@dataclass
class Dovecot:
    """A private Dovecot for one account. Its configuration, log, sockets and state are in `folder`, which it makes.

    `mail_location` is Dovecot's setting, such as `maildir:/home/ann/vmail:LAYOUT=fs`. It is for the user USER; add_user()
    makes more, with mail elsewhere. `extra` are more lines of configuration.
    """

    folder: Path
    mail_location: str
    account: Account
    extra: str = ""
    port: int = field(default=0, init=False)
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        # mode 0700: the password is no secret, but the sockets are for this account alone.
        for path in (self.folder, self.folder / "home", self.folder / "users"):
            path.mkdir(mode=0o700, exist_ok=True)
        self.port = _free_port()
        self._configure()

    @property
    def configuration(self) -> Path:
        return self.folder / "dovecot.conf"

    @property
    def log(self) -> Path:
        return self.folder / "dovecot.log"

    def _owner(self) -> pwd.struct_passwd:
        """Who this account is to Dovecot."""
        is_root = self.account.uid == 0
        return pwd.getpwnam(_PACKAGE_USER) if is_root else pwd.getpwuid(self.account.uid)

    def _configure(self) -> None:
        owner = self._owner()
        text = _CONFIGURATION.format(
            folder=self.folder,
            user=owner.pw_name,
            group=grp.getgrgid(owner.pw_gid).gr_name,
            mail_location=self.mail_location,
            port=self.port,
            password=PASSWORD,
            extra=self.extra,
        )
        self.configuration.write_text(text)
        self.log.touch()
        self.add_user(USER)
        self.account.own(self.folder)

    def add_user(self, name: str, mail_location: str | None = None) -> None:
        """One more user, at any time; all have the same password.

        Each has a file: Dovecot looks only once a second whether one it has read is another.
        """
        owner = self._owner()
        mail = "" if mail_location is None else f"userdb_mail={mail_location}"
        line = f"{name}::{owner.pw_uid}:{owner.pw_gid}::{self.folder}/home::{mail}\n"
        path = self.folder / "users" / name
        path.write_text(line)
        self.account.own(path)

    def _prefix(self) -> list[str]:
        """What goes before a program of Dovecot, so that it is not run by a user 0."""
        if self.account.uid != 0:
            return list(self.account.prefix)
        owner = self._owner()
        names = (f"--map-user={owner.pw_uid}", f"--map-group={owner.pw_gid}")
        return ["unshare", "--user", *names]

    # --- the imap process without a server

    def tunnel_arguments(self) -> list[str]:
        """A command that speaks IMAP on its standard input and output, logged in: `* PREAUTH`. It needs no start()."""
        settings = ("env", f"USER={USER}", f"HOME={self.folder}/home")
        return [*self._prefix(), *settings, IMAP, "-c", str(self.configuration)]

    def tunnel(self) -> str:
        """tunnel_arguments() for a shell: mbsync's `Tunnel "..."`, OfflineIMAP's `preauthtunnel = ...`."""
        return shlex.join(self.tunnel_arguments())

    # --- the server

    def start(self) -> None:
        """Start the server, and return when it answers. end() must follow."""
        assert self.process is None, "already started"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix(), SERVER, "-F", "-c", str(self.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.account.environment(),
                cwd=self.folder,
            )
        wait_until(self._answers, "Dovecot's greeting; see its log")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"* OK"
        except ConnectionError:
            return False

    def end(self) -> None:
        """End the server and its connections, when it was started. It gives its processes a second for that."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def restart(self) -> None:
        self.end()
        self.start()

    def connect(self, user: str = USER) -> imaplib.IMAP4:
        """A new connection to the server, logged in."""
        connection = imaplib.IMAP4("127.0.0.1", self.port, timeout=30)
        connection.login(user, PASSWORD)
        return connection

    def deliver(self, raw: bytes, user: str = USER, folder: str = "INBOX") -> None:
        """Deliver a message with dovecot-lda(1), as a mail server does. The server must run."""
        words = (LDA, "-c", str(self.configuration), "-d", user, "-m", folder)
        subprocess.run(
            [*self._prefix(), *words],
            input=raw,
            env=self.account.environment(),
            cwd=self.folder,
            timeout=30,
            check=True,
        )

    def wait_for_processes(self, user: str = USER) -> None:
        """Return when no process serves this user any more. They end a little after their connection."""
        pids = map(int, re.findall(rf"Login: user=<{user}>.* mpid=(\d+)", self.log_text()))
        for pid in pids:
            wait_until(lambda pid=pid: not is_alive(pid), f"the end of {user}'s imap process")  # type: ignore[misc]  # the loop's pid of now

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def complaints(self, user: str = "") -> list[str]:
        """The lines of the log that say something went wrong: in a user's connections, or in none."""
        words = ("Warning:", "Error:", "Panic:", "Fatal:")
        return [
            line
            for line in self.log_text().splitlines()
            if any(word in line for word in words)
            and re.findall(r"(?:imap|lda)\(([^)]+)\)<", line) == ([user] if user else [])
            and "Killed with signal" not in line  # says end()
        ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port
