"""What a Jetson says of itself in /proc, /sys and /etc: its make, its power mode, its health.

Everything is read from files, as jtop's service does, so that nothing has to be installed and the
service needs no rights for it. A file that is not there is a thing that the board does not say.

Source: Jetson Linux Developer Guide, "Platform Power and Performance" (zones, rails, throttling);
the kernel's hwmon documentation (ina3221: mV and mA, ina238: µW); jetson_stats for which rail is
the whole board's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from edge.session.health import SYSTEM, BoardHealth, linux_health

SOCS = {"tegra234": ("Orin", "8.7"), "tegra264": ("Thor", "11.0")}
"""Chip -> family, compute capability."""
JETPACKS = {"35": "5", "36": "6", "38": "7.0 or 7.1", "39": "7.2"}
"""Major release of L4T -> JetPack."""
FIRST_L4T = {"Orin": (39, 2), "Thor": (38, 0)}
"""Family -> the first release whose TensorRT is `edge.engines.plan.MIN_TENSORRT` or later."""
WHOLE_BOARD = ("VDD_IN", "VIN")
"""Rails that feed all others; without one of them all are added up."""
CARRIER = "VIN"
"""Feeds the carrier board too: no measure of the module's power mode."""
_CLOCKS = ("cpufreq", "devfreq", "cpu-throttle", "gpu-throttle", "hot-surface")
"""Kinds of cooling devices that lower clocks; the others are fans."""


@dataclass(frozen=True, slots=True)
class Board:
    """Which machine this is; empty where it does not say."""

    model: str
    family: str
    """Orin, Thor, or empty: no Jetson that is known here."""
    compute_capability: str
    l4t: str
    """Release of NVIDIA's Linux, such as 39.2.0."""
    jetpack: str
    power_mode: str
    """Name in nvpmodel, such as MAXN or MODE_30W."""
    memory_bytes: int
    free_memory_bytes: int

    @property
    def runs_plans(self) -> bool:
        """Whether its JetPack is recent enough for the GPU; else the cpu engine runs."""
        release = tuple(int(part) for part in self.l4t.split(".") if part)
        return self.family in FIRST_L4T and release >= FIRST_L4T[self.family]

    @property
    def mode_power_w(self) -> float | None:
        """What the power mode allows, where its name says so."""
        return _mode_power_w(self.power_mode)


def read_board(root: Path = SYSTEM) -> Board:
    """Look at the machine.

    Args:
        root: of the file system to read.
    """
    compatible = _text(root / "proc/device-tree/compatible").replace("\0", ",")
    family, capability = next((SOCS[soc] for soc in SOCS if soc in compatible), ("", ""))
    release = re.search(r"R(\d+) .*REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    memory = dict(re.findall(r"(\w+): +(\d+) kB", _text(root / "proc/meminfo")))
    return Board(
        model=_text(root / "proc/device-tree/model").strip("\0"),
        family=family,
        compute_capability=capability,
        l4t=f"{release[1]}.{release[2]}" if release else "",
        jetpack=JETPACKS.get(release[1], "") if release else "",
        power_mode=_power_mode(root),
        memory_bytes=int(memory.get("MemTotal", 0)) * 1024,
        free_memory_bytes=int(memory.get("MemAvailable", 0)) * 1024,
    )


def rails_w(root: Path = SYSTEM) -> dict[str, float]:
    """Power by rail, W."""
    rails: dict[str, float] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        kind = _text(folder / "name")
        if kind == "ina3221":
            for label in sorted(folder.glob("in[123]_label")):
                n, rail = label.name[2], _text(label)
                mv, ma = _number(folder / f"in{n}_input"), _number(folder / f"curr{n}_input")
                if rail != "NC" and mv is not None and ma is not None:
                    rails[rail] = mv * ma / 1e6
        elif kind == "ina238" and (uw := _number(folder / "power1_input")) is not None:
            rails[CARRIER] = uw / 1e6
    return rails


@dataclass
class HealthReader:
    """Reads a board's health again and again: some of it is a count that rises."""

    root: Path = SYSTEM
    _n_overcurrents: dict[Path, float] = field(default_factory=dict)

    def __call__(self) -> BoardHealth:
        """One reading."""
        linux = linux_health(self.root)
        rails = rails_w(self.root)
        whole = next((name for name in WHOLE_BOARD if name in rails), None)
        power_w = rails[whole] if whole else sum(rails.values()) or None
        return BoardHealth(
            linux.temperature_c,
            linux.max_temperature_c,
            is_throttled=self._is_held_down(),
            memory_share=linux.memory_share,
            power_w=power_w,
            max_power_w=None if whole == CARRIER else _mode_power_w(_power_mode(self.root)),
        )

    def _is_held_down(self) -> bool:
        """Whether a clock is lowered by heat now, or was by current since the last reading."""
        cooling = (self.root / "sys/class/thermal").glob("cooling_device*")
        by_heat = any(
            (_number(device / "cur_state") or 0) > 0
            for device in cooling
            if _text(device / "type").startswith(_CLOCKS)
        )
        by_current = False
        for folder in (self.root / "sys/class/hwmon").glob("hwmon*"):
            if _text(folder / "name") != "soctherm_oc":
                continue
            for path in folder.glob("oc*_event_cnt"):
                now = _number(path) or 0
                by_current |= now > self._n_overcurrents.get(path, now)
                self._n_overcurrents[path] = now
        return by_heat or by_current


def _power_mode(root: Path) -> str:
    number = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status"))
    modes = re.findall(
        r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root / "etc/nvpmodel.conf")
    )
    return dict(modes).get(number[1], "") if number else ""


def _mode_power_w(mode: str) -> float | None:
    found = re.search(r"(\d+)W", mode)
    return float(found[1]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # it does not say


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None  # a rail or a zone that is off
