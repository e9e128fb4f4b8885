"""What boards say of themselves, and what the doctor makes of it."""

from __future__ import annotations

import ctypes
import json
import os
import stat
import sys
from types import SimpleNamespace

import pytest
from boards import AGX_ORIN, ORIN_NX, PC, THOR, laid_out, zone

from edge.cli import main
from edge.session.budget import Budget, Load
from edge.session.health import linux_health
from jetson import doctor
from jetson.board import HealthReader, rails_w, read_board

GB = 1_000_000_000


@pytest.mark.parametrize(
    ("files", "family", "capability", "jetpack", "mode", "power_w", "max_power_w"),
    [
        (AGX_ORIN, "Orin", "8.7", "7.2", "MAXN", 11.542, None),
        (ORIN_NX, "Orin", "8.7", "6", "15W", 17.0, 15.0),
        (THOR, "Thor", "11.0", "7.0 or 7.1", "120W", 52.3, None),
        (PC, "", "", "", "", None, None),
    ],
    ids=["agx-orin", "orin-nx", "thor", "pc"],
)
def test_boards(tmp_path, files, family, capability, jetpack, mode, power_w, max_power_w):
    root = laid_out(tmp_path, files)
    board, health = read_board(root), HealthReader(root)()
    assert (board.family, board.compute_capability) == (family, capability)
    assert (board.jetpack, board.power_mode) == (jetpack, mode)
    assert health.power_w == (None if power_w is None else pytest.approx(power_w, abs=0.01))
    assert health.max_power_w == max_power_w
    assert not health.is_throttled
    assert board.free_memory_bytes < board.memory_bytes
    assert "NC" not in rails_w(root)


def test_the_hottest_zone_counts(tmp_path):
    health = HealthReader(laid_out(tmp_path, ORIN_NX))()
    assert (health.temperature_c, health.max_temperature_c) == (62.0, 99.0)


@pytest.mark.parametrize(
    ("cool", "near"), [((62_000, 99_000), (60_000, 70_000)), ((95_000, 120_000), (60_000, 80_000))]
)
@pytest.mark.parametrize("is_first", [False, True])
def test_of_zones_the_one_nearest_to_its_own_limit_counts(tmp_path, cool, near, is_first):
    zones = (near, cool) if is_first else (cool, near)
    files = zone(0, "cpu-thermal", *zones[0]) | zone(1, "skin-thermal", *zones[1])
    health = linux_health(laid_out(tmp_path, PC | files))
    assert (health.temperature_c, health.max_temperature_c) == (near[0] / 1000, near[1] / 1000)


def test_a_lowered_clock_is_throttling_and_a_fan_is_not(tmp_path):
    root = laid_out(tmp_path, AGX_ORIN)
    (root / "sys/class/thermal/cooling_device2/cur_state").write_text("2\n")
    assert HealthReader(root)().is_throttled


def test_a_rising_count_of_overcurrents_is_throttling(tmp_path):
    root = laid_out(tmp_path, THOR)
    read = HealthReader(root)
    assert not read().is_throttled  # 17 of them, from before
    (root / "sys/class/hwmon/hwmon9/oc3_event_cnt").write_text("18\n")
    assert read().is_throttled
    assert not read().is_throttled


def test_heat_and_power_move_the_budget(tmp_path):
    read = HealthReader(laid_out(tmp_path / "nx", ORIN_NX))
    s = 1_000_000_000
    step = Budget(0).look(10 * s, Load(0.0, 0.0, read()))
    assert step is not None
    assert step.cause == "113% of the power that the board may take"
    hot = laid_out(tmp_path / "agx", AGX_ORIN)
    (hot / "sys/class/thermal/thermal_zone1/temp").write_text("98500\n")
    step = Budget(0).look(10 * s, Load(0.0, 0.0, HealthReader(hot)()))
    assert step is not None
    assert step.cause.endswith("°C of 99 °C")


def test_a_rail_that_cannot_be_read_does_not_count(tmp_path):
    root = laid_out(tmp_path, ORIN_NX)
    (root / "sys/class/hwmon/hwmon1/curr1_input").write_text("nothing\n")
    assert rails_w(root) == {"VDD_CPU_GPU_CV": 7.5, "VDD_SOC": 3.5}


def verdicts(root, bundle=None, **words):
    return {check.name: check for check in doctor.examine(bundle, root, **words)}


def test_verdicts_on_boards(tmp_path):
    agx = verdicts(laid_out(tmp_path / "agx", AGX_ORIN))
    assert agx["machine"].verdict == agx["JetPack"].verdict == agx["power mode"].verdict == "ok"
    nx = verdicts(laid_out(tmp_path / "nx", ORIN_NX))
    assert nx["power mode"].remedy == "for full speed: sudo nvpmodel -m 0"
    assert nx["power"].found == "17.0 W, 15W allows 15 W"
    assert nx["JetPack"].found == "JetPack 6 (L4T 36.4.3): only the cpu engine runs"
    pc = verdicts(laid_out(tmp_path / "pc", PC))
    for name in ("machine", "JetPack", "CUDA", "TensorRT"):
        assert pc[name].verdict == "warning", name
    for checks in (agx, nx, pc):
        assert all(bool(check.remedy) == (check.verdict != "ok") for check in checks.values())


@pytest.mark.parametrize(
    ("board", "release", "found"),
    [
        (
            AGX_ORIN,
            "R35 (release), REVISION: 5.0",
            "JetPack 5 (L4T 35.5.0): only the cpu engine runs",
        ),
        (AGX_ORIN, "R36 (release), REVISION: 5", "JetPack 6 (L4T 36.5): only the cpu engine runs"),
        (AGX_ORIN, "R39 (release), REVISION: 2.0", "JetPack 7.2 (L4T 39.2.0)"),
        (THOR, "R38 (release), REVISION: 2.0", "JetPack 7.0 or 7.1 (L4T 38.2.0)"),
        (THOR, "R41 (release), REVISION: 1.0", "JetPack ? (L4T 41.1.0)"),
    ],
)
def test_which_jetpack_runs_plans(tmp_path, board, release, found):
    files = board | {"etc/nv_tegra_release": f"# {release}, GCID: 1\n"}
    check = verdicts(laid_out(tmp_path, files))["JetPack"]
    assert check.found == found
    is_old = "only the cpu" in found
    assert check.verdict == ("warning" if is_old else "ok")
    assert ("JetPack 7.2 on Orin, 7.0 or later on Thor" in check.remedy) is is_old


@pytest.mark.parametrize(
    ("module", "verdict", "found"),
    [
        (
            {"__version__": "10.3.0"},
            "warning",
            "10.3.0 is older than 10.9: only the cpu engine runs",
        ),
        ({"__version__": "10.9.0.34"}, "ok", "10.9.0.34"),
        ({"__version__": "10.13.3.9"}, "ok", "10.13.3.9"),
        ({"__version__": "11.1"}, "ok", "11.1"),
        ({}, "warning", "is not installed"),  # a folder of type stubs
    ],
)
def test_which_tensorrt_runs_plans(monkeypatch, module, verdict, found):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(**module))
    check = doctor.check_tensorrt()
    assert (check.verdict, check.found) == (verdict, found)


@pytest.mark.parametrize(("mode", "verdict"), [(0o444, "ok"), (0o666, "ok"), (0o440, "warning")])
def test_the_gpus_memory_need_not_be_written(tmp_path, monkeypatch, mode, verdict):
    """Some boards' /dev/nvmap is for reading only."""
    nvmap = laid_out(tmp_path, THOR | {"dev/nvmap": ""}) / "dev/nvmap"
    nvmap.chmod(mode)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)

    def as_another(path, wanted):  # whoever runs this may be root, for whom all is open
        return stat.S_IMODE(path.stat().st_mode) & 7 & wanted == wanted

    monkeypatch.setattr(os, "access", as_another)
    assert verdicts(tmp_path)["CUDA"].verdict == verdict


@pytest.mark.parametrize(("weights", "verdict"), [(8, "ok"), (13, "warning"), (15, "failure")])
def test_memory_for_a_bundle(tmp_path, weights, verdict):
    board = read_board(laid_out(tmp_path, ORIN_NX))
    assert doctor._memory(board, weights * GB).verdict == verdict


def test_a_bundle_is_opened_and_tried(tmp_path, bundle):
    root = laid_out(tmp_path, THOR)
    checks = verdicts(root, bundle("base"), try_it=True)
    assert checks["bundle"].verdict == checks["memory"].verdict == "ok"
    assert checks["self-check"].verdict == "ok"
    assert verdicts(root, tmp_path / "none")["bundle"].verdict == "failure"


def test_the_command(tmp_path, bundle, capsys):
    assert main(["doctor", str(bundle("base")), "--json", "--report", str(tmp_path / "r")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {check["name"] for check in printed["checks"]} >= {"machine", "bundle", "memory"}
    assert json.loads((tmp_path / "r").read_text())["checks"] == printed["checks"]
    assert main(["doctor", str(tmp_path / "none")]) == 78
    shown = capsys.readouterr()
    assert "failure" in shown.out
    assert shown.err == "edge: this machine: failed 1 check; do what it says above\n"


def test_a_report_holds_nothing_private(tmp_path, bundle):
    root = laid_out(tmp_path, THOR)
    text = json.dumps(doctor.report(list(doctor.examine(bundle("base"), root)), root))
    for private in ("kitchen-robot", "1424021000000", str(tmp_path), str(bundle("base").parent)):
        assert private not in text


def test_nor_do_words_of_others_in_it(tmp_path, monkeypatch):
    """A module that does not load names its file, and a remedy this very Python."""
    why = "/home/ana/tensorrt.so: undefined symbol: x"
    (tmp_path / "tensorrt.py").write_text(f"raise ImportError({why!r})\n")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    checks = [doctor.check_tensorrt(), doctor.Check("x", "failure", "y", f"{sys.prefix}/bin/pip")]
    assert why in checks[0].found
    tensorrt, other = doctor.report(checks, laid_out(tmp_path, THOR))["checks"]
    assert "(ImportError: /home/USER/tensorrt.so: undefined symbol: x)" in tensorrt["found"]
    assert other["remedy"] == "PYTHON/bin/pip"
