"""Signs a bundle's manifest, or a release's checksums, with a key of minisign's (`minisign -G`).

Source: https://jedisct1.github.io/minisign/, "Secret key format"; `src/minisign.c` of 0.11.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.engines.bundle import MANIFEST
from edge.engines.signature import PLAIN, PREHASHED, SUFFIX, TRUSTED, UNTRUSTED, Signed, shown_id
from edge.errors import ConfigurationError
from edge.files import read_bounded

SCRYPT, UNENCRYPTED, BLAKE2B = b"Sc", b"\0\0", b"B2"
N_BYTES, SECRET_BYTES = 158, 104
SCRYPT_R = 8
MAX_MEMORY_BYTES = (1 << 31) - 1
MAKE_ONE = "make one with `minisign -G`"


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key that signs."""

    key_id: bytes
    seed: bytes

    def sign(self, path: Path) -> Signed:
        """Sign a file; its signature lies beside it then."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.from_private_bytes(self.seed)
        signature = key.sign(hashlib.blake2b(path.read_bytes()).digest())
        comment = f"timestamp:{int(time.time())}\tfile:{path.name}\thashed".encode()
        lines = (
            UNTRUSTED + b"signature by build-engine",
            base64.b64encode(PREHASHED + self.key_id + signature),
            TRUSTED + comment,
            base64.b64encode(key.sign(signature + comment)),
        )
        partial = path.with_name(f".{path.name}{SUFFIX}.partial")
        partial.write_bytes(b"".join(line + b"\n" for line in lines))
        partial.rename(path.with_name(path.name + SUFFIX))
        return Signed(shown_id(self.key_id), comment.decode())


def signature_of(folder: Path) -> Path:
    """Where the signature of a bundle's manifest is."""
    return folder / f"{MANIFEST}{SUFFIX}"


def read_secret_key(path: Path, ask: Callable[[str], str]) -> SecretKey:
    """Read a secret key's file.

    Args:
        ask: for its password, where it has one.
    Raises:
        ConfigurationError: it is none, or the password is another.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        lines = read_bounded(path, 1 << 12).splitlines()
        content = base64.b64decode(lines[1], validate=True)
        if len(lines) != 2 or len(content) != N_BYTES:
            raise ValueError("another length")
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise ConfigurationError(path, problem, MAKE_ONE) from None
    except (ValueError, IndexError):
        raise ConfigurationError(path, "is no secret key of minisign", MAKE_ONE) from None
    kind, kdf, checksum = content[:2], content[2:4], content[4:6]
    if kind != PLAIN or checksum != BLAKE2B or kdf not in (SCRYPT, UNENCRYPTED):
        raise ConfigurationError(path, "is a key of another kind", MAKE_ONE)
    secret = content[-SECRET_BYTES:]
    if kdf == SCRYPT:
        n, p = _scrypt_cost(*(int.from_bytes(content[i : i + 8], "little") for i in (38, 46)))
        if 128 * SCRYPT_R * n * p > MAX_MEMORY_BYTES:
            raise ConfigurationError(path, "takes too much memory to decrypt", MAKE_ONE)
        password = ask(f"Password of {path}: ").encode()
        stream = hashlib.scrypt(
            password,
            salt=content[6:38],
            n=n,
            r=SCRYPT_R,
            p=p,
            maxmem=MAX_MEMORY_BYTES,
            dklen=SECRET_BYTES,
        )
        secret = bytes(a ^ b for a, b in zip(secret, stream, strict=True))
    key_id, seed, public, digest = secret[:8], secret[8:40], secret[40:72], secret[72:]
    if kdf == SCRYPT and hashlib.blake2b(kind + secret[:72], digest_size=32).digest() != digest:
        raise ConfigurationError(path, "has another password", "try again")
    # without a password minisign writes no digest
    if Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() != public:
        raise ConfigurationError(path, "is damaged", "copy it again")
    return SecretKey(key_id, seed)


def _scrypt_cost(operations: int, memory_bytes: int) -> tuple[int, int]:
    """N and p of scrypt, as libsodium's `pickparams` reckons them for r = 8."""
    operations = max(operations, 32768)
    bounded_by_memory = operations >= memory_bytes // 32
    most = memory_bytes // (128 * SCRYPT_R) if bounded_by_memory else operations // (4 * SCRYPT_R)
    log2 = next((i for i in range(1, 63) if 1 << i > most // 2), 63)
    p = 1
    if bounded_by_memory:
        p = max(1, min(operations // 4 >> log2, 0x3FFFFFFF) // SCRYPT_R)
    return 1 << log2, p
