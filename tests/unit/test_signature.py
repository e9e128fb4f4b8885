"""Signatures of bundles, in minisign's format: what its own command made and what we make."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess

import pytest
from needed import must_be

from build_engine import cli as build_cli
from build_engine.bundle import build_bundle, save_manifest
from build_engine.signing import _scrypt_cost, read_secret_key, signature_of
from edge.cli import main
from edge.config import load_config
from edge.engines.bundle import MANIFEST, Bundle
from edge.engines.signature import require, shown_id, told
from edge.errors import BundleError, ConfigurationError

# Made by minisign 0.11: `minisign -G -W`, and `minisign -Sm file` of the bytes "a bundle\n".
PUBLIC = "RWSKs5qbiKRITPyyt1j9stea8gDH49jxG7mx0/vL+pDfsLZVmg+EkIfm"
SECRET = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAirOam4ikSEzbtJ81Me6SZBNxRZQBMZNz4IM52ceAoqKbOXGn5W8Klfyyt1j9stea8gDH49jxG7mx0/vL+pDfsLZVmg+EkIfmAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
SIGNED = b"a bundle\n"
SIGNATURE = """untrusted comment: signature from minisign secret key
RUSKs5qbiKRITNeR6aVvTUX/1wYRdP9Eh6Ct7UHtZioGu7S6o3CsMKkpclt/O6813ER/zlVOOCh6JM9il8tcGjZsI0HcWYyQ1As=
trusted comment: timestamp:1796059387	file:file	hashed
hNGu7SEpVmkON76/BgwkgfSrEb5+lrRsMILVGXWRq67tzLtt1YJRstUjZg3RSi02m77mykO3bkNHG9yHOiK0DQ==
"""
LEGACY = """untrusted comment: signature from minisign secret key
RWSKs5qbiKRITOdjCK1mnzqp6pxDX7YmHEoeU/3iPes1z209kwCOoWOL+cIdMbhvRPXDnKv9Yg/ZKq60jGETo+J+rpnnPHU9OQ8=
trusted comment: timestamp:1796059387	file:file
pQEGy9vGyQWqHB0CA7H8jVpqgdy52EDLY6aRf60ezxy/w8ZyaaSoeB6FBHFZHvp1b9JLwuHDcwmJ2imMmBM/Cg==
"""


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(SECRET)
    return path


@pytest.fixture
def other(tmp_path):
    """Another key: its file and its public key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed, key_id = bytes(range(32)), b"otherkey"
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    digest = hashlib.blake2b(b"Ed" + key_id + seed + public, digest_size=32).digest()
    content = b"Ed\0\0B2" + bytes(48) + key_id + seed + public + digest
    path = tmp_path / "other"
    path.write_bytes(b"untrusted comment: test\n" + base64.b64encode(content) + b"\n")
    return path, base64.b64encode(b"Ed" + key_id + public).decode()


def no_password(prompt):
    raise AssertionError("this key has none")


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle("base"), tmp_path / "bundle")


@pytest.mark.parametrize("signature", [SIGNATURE, LEGACY])
def test_what_minisign_has_signed_is_taken(tmp_path, signature):
    path = tmp_path / "file"
    (tmp_path / "file.minisig").write_text(signature)
    signed = require(path, SIGNED, [PUBLIC])
    assert signed.key_id == shown_id(base64.b64decode(PUBLIC)[2:10])
    assert "file:file" in signed.comment


@pytest.mark.parametrize(
    ("line", "at", "problem"),
    [
        (1, 20, "was changed"),
        (3, 20, "was changed"),
        (2, 20, "was changed"),
        (0, 0, "is no signature of minisign"),
        (1, 0, "is no signature of minisign"),
        (1, 3, "is signed by the key"),
    ],
)
def test_a_changed_signature_is_refused(tmp_path, line, at, problem):
    lines = SIGNATURE.splitlines()
    changed = list(lines[line])
    changed[at] = "B" if changed[at] != "B" else "C"
    lines[line] = "".join(changed)
    (tmp_path / "file.minisig").write_text("\n".join(lines) + "\n")
    with pytest.raises(BundleError, match=problem):
        require(tmp_path / "file", SIGNED, [PUBLIC])


def test_another_file_another_key_and_none_are_refused(tmp_path, other):
    path = tmp_path / "file"
    with pytest.raises(BundleError, match="is not signed"):
        require(path, SIGNED, [PUBLIC])
    (tmp_path / "file.minisig").write_text(SIGNATURE)
    with pytest.raises(BundleError, match="was changed"):
        require(path, SIGNED + b" ", [PUBLIC])
    with pytest.raises(BundleError, match="is not trusted here"):
        require(path, SIGNED, [other[1]])
    require(path, SIGNED, [other[1], PUBLIC])


def test_a_key_that_took_anothers_id_signs_nothing(tmp_path, other):
    """Ids are chosen by who makes a key."""
    theirs = base64.b64decode(other[1])[10:]
    forged = base64.b64encode(base64.b64decode(PUBLIC)[:10] + theirs).decode()
    (tmp_path / "file.minisig").write_text(SIGNATURE)
    with pytest.raises(BundleError, match="was changed"):
        require(tmp_path / "file", SIGNED, [forged])
    require(tmp_path / "file", SIGNED, [forged, PUBLIC])


@pytest.mark.parametrize("content", [b"", b"x" * 20_000, b"\xff\n\xff\n\xff\n\xff\n", b"a\n" * 4])
def test_what_is_no_signature_is_refused_by_name(tmp_path, content):
    (tmp_path / "file.minisig").write_bytes(content)
    for look in (lambda path: require(path, SIGNED, [PUBLIC]), told):
        with pytest.raises(BundleError, match=r"file\.minisig: (is no signature|cannot be read)"):
            look(tmp_path / "file")


def test_a_bundle_is_signed_as_it_is_built_and_run_by_that_key_only(
    checkpoint, tmp_path, key_file, other, capsys
):
    out = tmp_path / "out"
    command = ["bundle", str(checkpoint("base")), str(out), "--target", "cpu", "--json"]
    assert build_cli.main([*command, "--sign", str(key_file)]) == 0
    opened = Bundle(out, trusted_keys=[PUBLIC])
    assert opened.signed == told(out / MANIFEST)
    assert opened.unknown == []
    with pytest.raises(BundleError, match="is not trusted here"):
        Bundle(out, trusted_keys=[other[1]])
    assert build_cli.main(["sign", str(out), str(other[0])]) == 0
    Bundle(out, trusted_keys=[other[1]])
    with pytest.raises(BundleError, match="is not trusted here"):
        Bundle(out, trusted_keys=[PUBLIC])
    assert f"signed by the key {shown_id(b'otherkey')}" in capsys.readouterr().out


def test_a_wrong_key_file_ends_a_build_before_it_begins(checkpoint, tmp_path, capsys):
    wrong = tmp_path / "key"
    wrong.write_text("x\n")
    command = ["bundle", str(checkpoint("base")), str(tmp_path / "out"), "--target", "cpu"]
    assert build_cli.main([*command, "--sign", str(wrong)]) == 78
    assert "is no secret key of minisign" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_damaged_bundle_is_signed(copied, key_file, capsys):
    (copied / "tokenizer.json").write_text("{}")
    assert build_cli.main(["sign", str(copied), str(key_file)]) == 78
    assert not signature_of(copied).exists()
    capsys.readouterr()


def test_a_manifest_that_is_written_anew_is_not_signed(copied, key_file):
    read_secret_key(key_file, no_password).sign(copied / MANIFEST)
    save_manifest(Bundle(copied).manifest, copied)
    with pytest.raises(BundleError, match="is not signed"):
        Bundle(copied, trusted_keys=[PUBLIC])


def test_a_service_refuses_what_nobody_trusted_has_signed(copied, key_file, tmp_path, capsys):
    config = tmp_path / "edge.toml"
    config.write_text(f'[bundle]\ntrusted_keys = ["{PUBLIC}"]\n')
    run = ["run", str(copied), "--config", str(config), "--socket", str(tmp_path / "s"), "--quiet"]
    assert main(run) == 78
    assert "is not signed, and only trusted bundles run here" in capsys.readouterr().err
    main(["doctor", str(copied), "--config", str(config)])
    assert "manifest.json is not signed" in capsys.readouterr().out
    read_secret_key(key_file, no_password).sign(copied / MANIFEST)
    main(["doctor", str(copied), "--config", str(config)])
    key_id = shown_id(base64.b64decode(PUBLIC)[2:10])
    assert f"by the trusted key {key_id}" in capsys.readouterr().out
    main(["doctor", str(copied)])
    assert f"by the key {key_id}, as it says itself" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["", "RW", PUBLIC[:-1], PUBLIC + "\n", "x" * 56, 5])
def test_keys_are_checked_as_settings_are(tmp_path, key):
    config = tmp_path / "edge.toml"
    config.write_text(f"[bundle]\ntrusted_keys = [{json.dumps(key)}]\n")
    with pytest.raises(ConfigurationError, match=r"bundle\.trusted_keys"):
        load_config(config)


def test_a_password_is_asked_for_and_must_be_right(tmp_path, monkeypatch):
    """minisign's own keys take a gigabyte to decrypt: the cost is another here."""
    plain = bytearray(base64.b64decode(SECRET.splitlines()[1]))
    plain[-32:] = hashlib.blake2b(b"Ed" + plain[-104:-32], digest_size=32).digest()
    salt, password = bytes(32), b"word"
    stream = hashlib.scrypt(password, salt=salt, n=2, r=8, p=1, dklen=104)
    secret = bytes(a ^ b for a, b in zip(plain[-104:], stream, strict=True))
    cost = (1).to_bytes(8, "little") + (2048).to_bytes(8, "little")
    path = tmp_path / "key"
    monkeypatch.setattr("build_engine.signing._scrypt_cost", lambda *_: (2, 1))
    path.write_bytes(b"c\n" + base64.b64encode(b"EdScB2" + salt + cost + secret))
    asked = []
    key = read_secret_key(path, lambda prompt: asked.append(prompt) or "word")
    assert asked == [f"Password of {path}: "]
    path.write_text(SECRET)
    assert key == read_secret_key(path, no_password)
    path.write_bytes(b"c\n" + base64.b64encode(b"EdScB2" + salt + cost + secret))
    with pytest.raises(ConfigurationError, match="has another password"):
        read_secret_key(path, lambda _: "words")


def test_a_password_costs_what_libsodium_says():
    """crypto_pwhash_scryptsalsa208sha256: SENSITIVE, which is minisign's, and INTERACTIVE."""
    assert _scrypt_cost(33_554_432, 1_073_741_824) == (1 << 20, 1)
    assert _scrypt_cost(524_288, 16_777_216) == (1 << 14, 1)


@pytest.mark.parametrize(
    ("operations", "memory_bytes", "n", "p"),
    [
        (0, 1 << 20, 1 << 10, 1),  # 32768 at least
        (32_768, 1 << 20, 1 << 10, 1),
        (32_768, 1 << 30, 1 << 10, 1),  # bounded by the operations
        (32_768, (1 << 20) + 32, 1 << 10, 1),
        (65_535, 1 << 30, 1 << 10, 1),
        (65_536, 1 << 30, 1 << 11, 1),
        (1 << 22, 1 << 24, 1 << 14, 8),  # bounded by the memory
        ((1 << 22) - 1, 1 << 24, 1 << 14, 7),
        (1 << 22, (1 << 24) - 1, 1 << 13, 16),
        (1 << 50, 1 << 20, 1 << 10, 0x3FFFFFFF // 8),
    ],
)
def test_a_password_s_cost_is_reckoned_as_libsodium_does(operations, memory_bytes, n, p):
    """Source: `pickparams` of its crypto_pwhash_scryptsalsa208sha256.c."""
    assert _scrypt_cost(operations, memory_bytes) == (n, p)


def test_a_key_s_file_has_at_most_four_kilobytes(key_file):
    first, second = SECRET.splitlines()
    longer = first + "x" * (4096 - len(SECRET))
    key_file.write_text(f"{longer}\n{second}\n")
    assert read_secret_key(key_file, no_password).key_id == base64.b64decode(PUBLIC)[2:10]
    key_file.write_text(f"{longer}x\n{second}\n")
    with pytest.raises(ConfigurationError, match=r"cannot be read .*has more than the 4096 bytes"):
        read_secret_key(key_file, no_password)


def test_minisign_verifies_what_we_sign_and_we_what_it_signs(copied, key_file, tmp_path):
    minisign = shutil.which("minisign")
    must_be(minisign is not None, "minisign is not installed: apt install minisign")
    read_secret_key(key_file, no_password).sign(copied / MANIFEST)
    command = [minisign, "-Vm", str(copied / MANIFEST), "-P", PUBLIC]
    assert "verified" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    signature_of(copied).unlink()
    command = [minisign, "-Sm", str(copied / MANIFEST), "-s", str(key_file), "-t", "by hand"]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert Bundle(copied, trusted_keys=[PUBLIC]).signed.comment == "by hand"


def test_an_unsigned_build_has_no_signature(checkpoint, tmp_path):
    build_bundle(checkpoint("base"), tmp_path / "out", "cpu", lambda *_: None)
    assert told(tmp_path / "out" / MANIFEST) is None
