"""Who vouches for a bundle: a signature of its manifest, which has the hash of every other file.

The format is minisign's, so that its command makes the keys, and signs and verifies as well:

    untrusted comment: ...
    base64(ED, key id [8], signature [64] of blake2b-512 of the file)
    trusted comment: ...
    base64(signature [64] of the signature above and the trusted comment)

Source: https://jedisct1.github.io/minisign/, "Signature format" and "Public key format".
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edge.errors import BundleError
from edge.files import read_bounded

SUFFIX = ".minisig"
PLAIN, PREHASHED = b"Ed", b"ED"
"""How a file was signed: itself, by versions of minisign before 0.10, or its hash."""
UNTRUSTED, TRUSTED = b"untrusted comment: ", b"trusted comment: "
MAX_BYTES = 1 << 14
SIGN = "sign it with `build-engine sign`"


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature says."""

    key_id: str
    """As minisign writes it."""
    comment: str
    """The signer's; nobody else has changed it if the signature is right."""


@dataclass(frozen=True, slots=True)
class _Signature:
    algorithm: bytes
    key_id: bytes
    signature: bytes
    comment: bytes
    of_comment: bytes

    @property
    def signed(self) -> Signed:
        text = "".join(c if c.isprintable() else " " for c in str(self.comment, "utf-8", "replace"))
        return Signed(shown_id(self.key_id), text)


def shown_id(key_id: bytes) -> str:
    """A key's id as minisign writes it."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


def public_key(text: str) -> tuple[bytes, bytes]:
    """Id and key of what minisign's second line of a .pub file says.

    Raises:
        ValueError: it is none.
    """
    decoded = base64.b64decode(text, validate=True)
    if len(decoded) != 42 or decoded[:2] != PLAIN:
        raise ValueError("it is no public key of minisign")
    return decoded[2:10], decoded[10:]


def told(path: Path) -> Signed | None:
    """Who a signature says that it is by, which nobody has checked.

    Args:
        path: of what is signed.
    Raises:
        BundleError: there is one in another form.
    """
    try:
        return _read(path).signed
    except FileNotFoundError:
        return None


def require(path: Path, content: bytes, trusted_keys: Collection[str]) -> Signed:
    """See that one who is trusted has signed a file.

    Args:
        path: of the file; its signature lies beside it.
        content: what was read of it.
        trusted_keys: as `public_key` takes them.
    Raises:
        BundleError: none has.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        found = _read(path)
    except FileNotFoundError:
        raise BundleError(path, "is not signed, and only trusted bundles run here", SIGN) from None
    who = found.signed
    keys = [key for key_id, key in map(public_key, trusted_keys) if key_id == found.key_id]
    if not keys:
        problem = f"is signed by the key {who.key_id}, which is not trusted here"
        raise BundleError(path, problem, f"{SIGN}, or add its public key to bundle.trusted_keys")
    message = content
    if found.algorithm == PREHASHED:
        message = hashlib.blake2b(content).digest()
    for key in keys:
        try:
            checked = Ed25519PublicKey.from_public_bytes(key)
            checked.verify(found.signature, message)
            checked.verify(found.of_comment, found.signature + found.comment)
        except InvalidSignature:
            continue
        return who
    problem = f"was changed, or the key {who.key_id} has not signed it"
    raise BundleError(path, problem, f"copy the bundle again, or {SIGN}")


def _read(path: Path) -> _Signature:
    """The signature beside a file.

    Raises:
        FileNotFoundError: there is none.
        BundleError: it cannot be read.
    """
    beside = path.with_name(path.name + SUFFIX)
    try:
        lines = read_bounded(beside, MAX_BYTES, follow=False).splitlines()
        if (
            len(lines) != 4
            or not lines[0].startswith(UNTRUSTED)
            or not lines[2].startswith(TRUSTED)
        ):
            raise ValueError("it has not four lines, two of them comments")
        signature, of_comment = (base64.b64decode(lines[i], validate=True) for i in (1, 3))
        algorithm, key_id = signature[:2], signature[2:10]
        if algorithm not in (PLAIN, PREHASHED) or (len(signature), len(of_comment)) != (74, 64):
            raise ValueError("it is of another length or algorithm")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(beside, f"cannot be read ({error.strerror})", SIGN) from None
    except ValueError as error:  # base64's error is one
        raise BundleError(beside, f"is no signature of minisign ({error})", SIGN) from None
    comment = lines[2].removeprefix(TRUSTED)
    return _Signature(algorithm, key_id, signature[10:], comment, of_comment)
