"""What is advised where a package is missing, by how the project was installed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edge import advice

METADATA = """\
Metadata-Version: 2.1
Name: omni-edge
Version: 1
Provides-Extra: runtime
Provides-Extra: top
Provides-Extra: build
Requires-Dist: msgspec>=0.19
Requires-Dist: numpy<3,>=1.26; extra == "runtime"
Requires-Dist: rich>=13; extra == "top"
Requires-Dist: omni-edge[runtime, top]; extra == "build"
Requires-Dist: onnx-of-nobody>=1.17; extra == "build"
"""
PIP = f"{shlex.quote(sys.executable)} -m pip install"


@pytest.fixture
def install_from(monkeypatch, tmp_path):
    """Let the project have been installed as a direct_url.json says; None: from an index."""

    def install(direct_url: dict[str, object] | None) -> None:
        folder = tmp_path / "omni_edge-1.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(METADATA)
        if direct_url:
            (folder / "direct_url.json").write_text(json.dumps(direct_url))
        real = metadata.distribution
        ours = metadata.Distribution.at(folder)
        monkeypatch.setattr(
            metadata, "distribution", lambda name: ours if name == "omni-edge" else real(name)
        )

    return install


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the files that tell a checkout."""
    folder = tmp_path / "check out"
    (folder / "locks").mkdir(parents=True)
    (folder / "Makefile").touch()
    return folder


def local(folder: Path, **more: bool) -> dict[str, object]:
    """As pip writes it for a folder."""
    return {"url": folder.as_uri(), "dir_info": more}


@pytest.mark.parametrize("how", [{"editable": True}, {}])
def test_a_checkout_has_its_lock(install_from, checkout, how):
    (checkout / "locks" / "top.txt").touch()
    install_from(local(checkout, **how))
    lock = shlex.quote(str(checkout / "locks" / "top.txt"))
    assert (
        advice.install("top") == f"{PIP} --no-deps --no-build-isolation --require-hashes -r {lock}"
    )


def test_without_a_lock_it_is_other_peoples_packages(install_from, checkout):
    install_from(local(checkout))
    assert advice.install("top") == f"{PIP} 'rich>=13'"
    assert advice.install("build") == f"{PIP} 'numpy<3,>=1.26' 'rich>=13' 'onnx-of-nobody>=1.17'"


def test_a_wheel_and_a_source_that_is_gone_as_well(install_from, tmp_path):
    for direct_url in (
        None,
        {"url": "file:///omni_edge-1-py3-none-any.whl", "archive_info": {}},
        local(tmp_path / "gone"),
    ):
        install_from(direct_url)
        assert advice.install("top") == f"{PIP} 'rich>=13'"


def test_the_service_is_installed_again_with_more_in_it(
    install_from, checkout, tmp_path, monkeypatch
):
    monkeypatch.setattr(advice, "VERSIONS", Path(sys.prefix).parent)
    monkeypatch.setattr(advice, "DEBIAN_PACKAGE", tmp_path / "absent")
    install_from(local(checkout))
    # numpy and rich are here, as in a service that was installed with runtime and top.
    expected = f"cd {shlex.quote(str(checkout))} && sudo make install EXTRAS=build,runtime,top"
    assert advice.install("build") == expected
    install_from(local(tmp_path / "gone"))
    told = "in this version's source: sudo make install EXTRAS=mcp,runtime,top"
    assert advice.install("mcp") == told
    monkeypatch.setattr(advice, "DEBIAN_PACKAGE", tmp_path)
    assert advice.install("mcp") == told.replace("sudo make install", "make deb")


def test_what_nobody_installed_names_the_file(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert advice.install("top") == "install the packages that pyproject.toml names in top"


def test_the_command_for_this_very_copy_works():
    """Every package is here: pip has nothing to do, and its exit code says that it understood."""
    command = f"{advice.install('top')} --dry-run --quiet --no-index --disable-pip-version-check"
    subprocess.run(shlex.split(command), check=True, capture_output=True)


@pytest.mark.parametrize("module", ["numpy", "rich", "mcp"])
def test_a_missing_package_is_one_line(module, tmp_path):
    """`edge run`, `edge top` and `edge mcp` where the package that each imports first is not."""
    words = {"numpy": ["run", "b"], "rich": ["top"], "mcp": ["mcp"]}[module]
    hide = (
        f"import sys; sys.modules[{module!r}] = None; from edge.cli import main; sys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", hide, *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 78, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "pip install" in line
    assert module in line
