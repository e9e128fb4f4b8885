"""Who may do what: the kernel says who is at the other end, the settings say what that allows.

    observer   hears of events, reads health and metrics
    operator   also asks, talks, presses the button, sets triggers: whoever may cause a tool call
    admin      also changes how the service works

The service's own user and root are admins. Whoever has no role is refused when it connects.
"""

from __future__ import annotations

import grp
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from os import geteuid
from typing import Literal, get_args

from edge.config import Access
from edge.errors import AccessError, ConfigurationError

Role = Literal["observer", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
SO_PEERGROUPS = 59
"""Linux's supplementary groups of a peer; Python's socket module has no name for it."""
_MAX_OPTION_BYTES = 1024
_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was then."""

    pid: int
    uid: int
    gids: frozenset[int]
    """Its own and its supplementary groups."""


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end of a Unix socket.

    Raises:
        AccessError: the kernel cannot say who that is.
    """
    if connection.family != socket.AF_UNIX:
        raise AccessError("connection", "is no Unix socket", "connect to the service's socket")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _MAX_OPTION_BYTES)
    except OSError as error:
        n_groups = _MAX_OPTION_BYTES // 4
        raise AccessError(
            f"user {uid}", f"is in more than {n_groups} groups ({error})", "leave some of them"
        ) from error
    gids = [gid for (gid,) in struct.iter_unpack("I", found)]
    return Peer(pid, uid, frozenset([gid, *gids]))


class Roles:
    """The settings, with names looked up."""

    def __init__(self, access: Access) -> None:
        """Look up all users and groups.

        Raises:
            ConfigurationError: some are unknown to this machine; all are listed.
        """
        problems: list[str] = []
        given: dict[Role, tuple[str, ...]] = {
            "observer": access.observers,
            "operator": access.operators,
            "admin": access.admins,
        }
        self._ids = {role: _ids(names, problems) for role, names in given.items()}
        if problems:
            raise ConfigurationError(
                "access", ", ".join(problems), "create them or take them out of [access]"
            )
        self._own = {0, geteuid()}

    def of(self, peer: Peer) -> Role | None:
        """The highest role that a process has."""
        if peer.uid in self._own:
            return "admin"
        for role in reversed(ROLES):
            uids, gids = self._ids[role]
            if peer.uid in uids or peer.gids & gids:
                return role
        return None

    def admit(self, peer: Peer) -> Role:
        """Its role.

        Raises:
            AccessError: it has none.
        """
        role = self.of(peer)
        if role is None:
            raise AccessError(
                f"user {peer.uid}",
                "is in no group that may use this service",
                "let an admin add it to [access] in edge.toml",
            )
        return role


def require(role: Role, needed: Role, doing: str) -> None:
    """Let a client do something.

    Args:
        role: the client's.
        doing: what it wants, for the error.
    Raises:
        AccessError: its role is not enough.
    """
    if ROLES.index(role) < ROLES.index(needed):
        raise AccessError(
            doing, f"is for the role {needed}, yours is {role}", "ask an admin for that role"
        )


def _ids(names: Iterable[str], problems: list[str]) -> tuple[frozenset[int], frozenset[int]]:
    """User ids and group ids of names and numbers; what is unknown goes to `problems`."""
    uids, gids = set[int](), set[int]()
    for name in names:
        plain = name.removeprefix("@")
        try:
            if name.startswith("@"):
                gids.add(int(plain) if plain.isdecimal() else grp.getgrnam(plain).gr_gid)
            else:
                uids.add(int(plain) if plain.isdecimal() else pwd.getpwnam(plain).pw_uid)
        except KeyError:
            problems.append(f"{'group' if name.startswith('@') else 'user'} {plain!r} is unknown")
    return frozenset(uids), frozenset(gids)
