"""Releases: what is refused before anything changes, and what of a good one is run."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import platform
import sys
import tarfile

import pytest
from test_signature import PUBLIC, SECRET, no_password

from build_engine.signing import read_secret_key
from edge import advice, update
from edge.cli import main
from edge.errors import ConfigurationError, ReleaseError
from edge.update import SUMS, Target, unpack

TOP = "omni-edge-0.2.0-aarch64"
HERE = f"cp3{sys.version_info.minor}"
TARGET = Target("aarch64", (3, 11), "0.2.0")
INSTALL = """#!/bin/sh
echo "$WHEELS $PYTHON" >"$DESTDIR/ran"
ls "$WHEELS" >>"$DESTDIR/ran"
stat -c %a "$SOURCE" >>"$DESTDIR/ran"
"""


def contents(machine="aarch64", python="cp311", version="0.2.0"):
    return {
        "install.sh": b"",
        "jetson/install.sh": INSTALL.encode(),
        "jetson/edge-ingest@.service": b"[Unit]\n",
        "locks/runtime.txt": b"numpy==2.2.6\n",
        f"wheels/omni_edge-{version}-cp310-abi3-linux_{machine}.whl": b"ours",
        f"wheels/numpy-2.2.6-{python}-{python}-manylinux_2_28_{machine}.whl": b"numpy",
    }


def sums_of(files):
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    return "".join(lines).encode()


def tar_of(files, *extra, top=f"{TOP}/"):
    """A tar of files in this order, and of what else is given as TarInfo."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{top}{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return made.getvalue()


def release(files=None, **about):
    files = files or contents(**about)
    return {SUMS: sums_of(files)} | files


def unpacked(tmp_path, data, target=TARGET, **how):
    folder = tmp_path / "release"
    folder.mkdir()
    return unpack(io.BytesIO(data), folder, target, **how)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A file system to install into."""
    root = tmp_path / "root"
    (root / "etc/edge").mkdir(parents=True)
    monkeypatch.setenv("DESTDIR", str(root))
    return root


@pytest.fixture
def tar(tmp_path):
    """A release for this machine."""
    path = tmp_path / "release.tar"
    path.write_bytes(tar_of(release(machine=platform.machine(), python=HERE)))
    return path


@pytest.mark.parametrize("top", [f"{TOP}/", f"./{TOP}/", "", "./"])
def test_a_whole_release_is_unpacked(tmp_path, top):
    assert unpacked(tmp_path, tar_of(release(), top=top)) == "0.2.0"
    found = {
        str(path.relative_to(tmp_path / "release")): path.read_bytes()
        for path in (tmp_path / "release").rglob("*")
        if path.is_file()
    }
    assert found == release()


@pytest.mark.parametrize("name", [*contents(), SUMS])
def test_a_changed_byte_is_found(tmp_path, name):
    files = release()
    files[name] = bytes([*files[name][:-1], 1])
    with pytest.raises(ReleaseError, match=r"was changed|has the line|is not in"):
        unpacked(tmp_path, tar_of(files))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.7])
def test_a_release_that_was_cut_off_is_refused(tmp_path, share):
    data = tar_of(release()).rstrip(b"\0")
    with pytest.raises(ReleaseError, match=r"damaged|ends before|unexpected"):
        unpacked(tmp_path, data[: int(len(data) * share)])


@pytest.mark.parametrize("name", contents())
def test_a_file_that_lacks_is_missed(tmp_path, name):
    files = release()
    del files[name]
    with pytest.raises(ReleaseError, match=f"ends before {name}"):
        unpacked(tmp_path, tar_of(files))


@pytest.mark.parametrize(
    "name", ["../out", "/out", "jetson/../../out", "./out", "a//b", ".", "..", "a\n../out", "a b"]
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    """Not even one that the checksums list."""
    with pytest.raises(ReleaseError, match="has the line"):
        unpacked(tmp_path, tar_of(release(contents() | {name: b"x"})))
    assert {path.name for path in tmp_path.rglob("*")} == {"release", SUMS}


@pytest.mark.parametrize("name", [f"{TOP}/../../out", "/out", "elsewhere/out", f"{TOP}/out"])
@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)
def test_what_is_not_listed_is_refused(tmp_path, name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(ReleaseError, match=r"is no file of a release|is not in"):
        unpacked(tmp_path, tar_of(release(), member))
    assert not [path for path in tmp_path.rglob("*") if path.name == "out" or path.is_symlink()]


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path):
    """What is behind it would be written through it."""
    files = release()
    del files["jetson/install.sh"]
    member = tarfile.TarInfo(f"{TOP}/jetson/install.sh")
    member.type, member.linkname = tarfile.SYMTYPE, "../../out"
    with pytest.raises(ReleaseError, match="is no file of a release"):
        unpacked(tmp_path, tar_of(files, member))


def test_a_file_that_comes_twice_is_refused(tmp_path):
    again = tarfile.TarInfo(f"{TOP}/jetson/install.sh")
    with pytest.raises(ReleaseError, match="there twice"):
        unpacked(tmp_path, tar_of(release(), again))


def test_checksums_come_first_and_are_no_flood(tmp_path):
    with pytest.raises(ReleaseError, match=f"comes before {SUMS}"):
        unpacked(tmp_path, tar_of(contents() | {SUMS: sums_of(contents())}))
    (tmp_path / "release").rmdir()
    with pytest.raises(ReleaseError, match="has 1048577 bytes"):
        unpacked(tmp_path, tar_of({SUMS: bytes((1 << 20) + 1)}))
    assert not [*(tmp_path / "release").iterdir()]


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        ({"machine": "x86_64"}, "is for linux_x86_64, this is aarch64"),
        ({"python": "cp310"}, "has packages for Python 3.10, here it is 3.11"),
        ({"version": "0.1.9"}, "is 0.1.9, older than 0.2.0"),
    ],
)
def test_a_release_for_something_else_is_refused_before_it_is_unpacked(tmp_path, about, problem):
    with pytest.raises(ReleaseError, match=problem):
        unpacked(tmp_path, tar_of(release(**about)))
    assert [path.name for path in (tmp_path / "release").iterdir()] == [SUMS]


@pytest.mark.parametrize("version", ["0.2.0", "0.10.0", "1.0.0", "0.2.0+board"])
def test_the_same_and_newer_ones_are_taken(tmp_path, version):
    assert unpacked(tmp_path, tar_of(release(version=version))) == version


def test_an_older_one_is_taken_where_that_is_meant(tmp_path):
    assert unpacked(tmp_path, tar_of(release(version="0.1.9")), older=True) == "0.1.9"


@pytest.fixture
def signed(tmp_path):
    """A release's files with their signature."""
    (tmp_path / "key").write_text(SECRET)
    sums = tmp_path / SUMS
    sums.write_bytes(release()[SUMS])
    read_secret_key(tmp_path / "key", no_password).sign(sums)
    signature = {f"{SUMS}.minisig": (tmp_path / f"{SUMS}.minisig").read_bytes()}
    return {SUMS: sums.read_bytes()} | signature | contents()


def test_with_trusted_keys_a_signature_is_needed(tmp_path, signed):
    assert unpacked(tmp_path, tar_of(signed), trusted_keys=[PUBLIC]) == "0.2.0"


@pytest.mark.parametrize("how", ["unsigned", "late", "of another"])
def test_with_trusted_keys_nothing_else_is_unpacked(tmp_path, signed, how):
    signature = f"{SUMS}.minisig"
    files = {
        "unsigned": release(),
        "late": {name: signed[name] for name in sorted(signed, key=signature.__eq__)},
        "of another": signed | release(version="0.3.0"),
    }[how]
    with pytest.raises(ReleaseError, match=r"is not signed|was changed"):
        unpacked(tmp_path, tar_of(files), trusted_keys=[PUBLIC])
    assert {path.name for path in (tmp_path / "release").iterdir()} <= {SUMS, signature}


def test_it_is_installed_by_its_own_script(root, tar, capsys):
    assert main(["update", str(tar), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"installed": "0.2.0"}
    wheels, python, *rest = (root / "ran").read_text().split()
    assert wheels == str(root / "opt/edge/release/wheels")
    assert python == os.path.realpath(sys.executable)
    assert len(rest) == 3
    assert rest[-1] == "700", "nobody else changes what was checked"
    assert not (root / "opt/edge/release").exists()


def test_the_settings_say_whom_to_trust(root, tar, capsys):
    (root / update.SETTINGS).write_text(f'[bundle]\ntrusted_keys = ["{PUBLIC}"]\n')
    assert main(["update", str(tar)]) == ReleaseError.exit_code
    assert f"{SUMS}: is not signed" in capsys.readouterr().err
    assert not (root / "ran").exists()


def test_what_cannot_check_signatures_says_so(root, tar, monkeypatch):
    """A release's own script, before anything is installed."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    (root / update.SETTINGS).write_text("[perception]\nfps = 1.0\n")
    update.install(str(tar))
    (root / update.SETTINGS).write_text(f'[bundle]\ntrusted_keys = ["{PUBLIC}"]\n')
    with pytest.raises(ConfigurationError, match="asks for signatures"):
        update.install(str(tar))


def test_an_older_one_than_current_is_refused(root, tar):
    (root / "opt/edge").mkdir(parents=True)
    (root / "opt/edge/current").symlink_to("/opt/edge/versions/0.3.0-20261201000000")
    with pytest.raises(ReleaseError, match=r"is 0\.2\.0, older than 0\.3\.0"):
        update.install(str(tar))
    assert update.install(str(tar), older=True) == "0.2.0"


def test_what_a_cut_off_update_has_left_goes(root, tar):
    (root / "opt/edge/release/wheels").mkdir(parents=True)
    (root / "opt/edge/release/wheels/half.whl").touch()
    update.install(str(tar))
    assert "half.whl" not in (root / "ran").read_text()


def test_a_script_that_fails_is_told_and_leaves_nothing(root, tmp_path):
    files = contents(platform.machine(), HERE) | {"jetson/install.sh": b"exit 3\n"}
    (tmp_path / "tar").write_bytes(tar_of(release(files)))
    with pytest.raises(ReleaseError, match="what ran before goes on"):
        update.install(str(tmp_path / "tar"))
    assert not (root / "opt/edge/release").exists()


def test_a_mounted_disk_and_stdin_are_sources(root, tar, monkeypatch):
    spaced = tar.rename(tar.with_name("a disk.tar"))
    assert update.install(f"file://{tar.parent}/a%20disk.tar") == "0.2.0"
    with spaced.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert update.install("-") == "0.2.0"


@pytest.mark.parametrize("source", ["https://example.com/release.tar", "file://host/release.tar"])
def test_nothing_is_fetched(root, source):
    with pytest.raises(ConfigurationError, match="is no file"):
        update.install(source)


def test_one_update_at_a_time(root, tar):
    home = root / "opt/edge"
    home.mkdir(parents=True)
    descriptor = os.open(home, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ReleaseError, match="goes on already"):
        update.install(str(tar))
    os.close(descriptor)
    update.install(str(tar))


def test_a_package_is_its_managers(root, tar, monkeypatch, tmp_path):
    monkeypatch.setattr(advice, "DEBIAN_PACKAGE", tmp_path)
    with pytest.raises(ConfigurationError, match="is installed as a package"):
        update.install(str(tar))


def test_the_version_before_is_taken_by_its_own_script(root, capsys):
    versions = root / "opt/edge/versions"
    for name in ("0.1.0-1", "0.2.0-2"):
        script = versions / name / "lib/python3.11/site-packages/jetson/install.sh"
        script.parent.mkdir(parents=True)
        script.write_text(f'echo {name} "$BACK" >"$DESTDIR/ran"\n')
    (root / "opt/edge/current").symlink_to("/opt/edge/versions/0.2.0-2")
    assert main(["update", "--back"]) == 0
    assert capsys.readouterr().out == "0.1.0-1 is installed\n"
    assert (root / "ran").read_text() == "0.1.0-1 /opt/edge/versions/0.1.0-1\n"


def test_without_a_version_before_there_is_no_way_back(root):
    (root / "opt/edge/versions/0.1.0-1").mkdir(parents=True)
    (root / "opt/edge/current").symlink_to("/opt/edge/versions/0.1.0-1")
    with pytest.raises(ReleaseError, match="has nothing to go back to"):
        update.go_back()


@pytest.mark.parametrize("words", [[], ["release.tar", "--back"]])
def test_it_takes_a_release_or_goes_back(words, capsys):
    assert main(["update", *words]) == ConfigurationError.exit_code
    assert "takes a release, or --back" in capsys.readouterr().err
