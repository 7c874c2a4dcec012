"""Where the page listens and who may use it: addresses that only this machine reaches, or a name and a
password."""

import ipaddress
import socket
from collections.abc import MutableMapping
from pathlib import Path

from steer_heal.config import SettingsError

LOGIN = "STEER_HEAL_LOGIN"
LOGIN_FILE = "STEER_HEAL_LOGIN_FILE"
LEAST_PASSWORD = 8
HOW = (
    f"set {LOGIN}=name:password in the environment, or put name:password into a file and name it with "
    f"--login-file or {LOGIN_FILE}"
)

Login = tuple[str, str]


def login(environment: MutableMapping[str, str], file: str | Path | None = None) -> Login | None:
    """The name and password that visitors must give; None when none was set.

    From `file`, else from the file that the environment names, else from the environment itself, where both
    are removed, so that processes started later do not inherit them. Raises: `SettingsError`.
    """
    said, named = environment.pop(LOGIN, None), environment.pop(LOGIN_FILE, None)
    path = file or named
    if path:
        try:
            said = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            raise SettingsError(
                f"Cannot read the login from {path}: give a text file you may read."
            ) from error
    if said is None:
        return None
    name, colon, password = said.strip().partition(":")
    if not colon or not name or len(password) < LEAST_PASSWORD:
        raise SettingsError(
            f"The login must read name:password, the password of at least {LEAST_PASSWORD} characters: {HOW}."
        )
    return name, password


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check(host: str, login: Login | None, *, share: bool = False) -> None:
    """Raises: `SettingsError` where others could reach the page without a login."""
    if login is not None:
        return
    if share:
        raise SettingsError(f"A share link needs a login: {HOW}.")
    if not is_loopback(host):
        where = host or "all addresses"
        raise SettingsError(f"Others can reach {where}, so the page needs a login: {HOW}.")


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, so that a port in use is known before a model loads. Errors: `SettingsError`."""
    if not 0 <= port <= 65535:
        raise SettingsError(f"{port} is not a port: choose one from 1 to 65535 with --port.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as problem:
        listening.close()
        reason = problem.strerror or str(problem)
        raise SettingsError(
            f"Cannot listen on {host}:{port} ({reason}): choose another with --port."
        ) from problem
    return listening
