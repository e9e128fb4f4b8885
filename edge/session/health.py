"""What a board says of itself: heat, memory, power. The budget listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/")
"""Where /proc and /sys are; tests have their own."""
PASSIVE = "passive"
"""The kind of trip point at which Linux begins to lower a board's clocks."""


@dataclass(frozen=True, slots=True)
class BoardHealth:
    """One reading; None where the board does not say."""

    temperature_c: float | None = None
    """Of the zone that is nearest to its limit."""
    max_temperature_c: float | None = None
    """Where that zone's clocks begin to be lowered."""
    is_throttled: bool = False
    """Clocks are being held down, by heat or by current."""
    memory_share: float = 0.0
    """Of the memory that is in use, 0..1."""
    power_w: float | None = None
    """Of the whole board."""
    max_power_w: float | None = None
    """What its power mode allows."""


def linux_health(root: Path = SYSTEM) -> BoardHealth:
    """What any Linux says: memory, and the zone that is nearest to its passive trip point.

    Args:
        root: of the file system to read.
    """
    temperature_c, limit_c = _nearest_zone(root / "sys/class/thermal")
    return BoardHealth(temperature_c, limit_c, memory_share=_memory_share(root / "proc/meminfo"))


def _memory_share(path: Path) -> float:
    try:
        lines = path.read_text().splitlines()
        kb = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
        return 1.0 - kb["MemAvailable"] / kb["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
        return 0.0  # a system that does not say


def _nearest_zone(folder: Path) -> tuple[float | None, float | None]:
    """Temperature and limit; a zone without a passive trip point, or that cannot be read (its part
    of the chip is off), does not count."""
    found: list[tuple[float, float]] = []
    for zone in sorted(folder.glob("thermal_zone*")):
        for kind in sorted(zone.glob("trip_point_*_type")):
            limit = kind.with_name(kind.name.replace("_type", "_temp"))
            try:
                if kind.read_text().strip() == PASSIVE:
                    now_c = int((zone / "temp").read_text()) / 1000
                    found.append((now_c, int(limit.read_text()) / 1000))
            except (OSError, ValueError):
                continue
    return max(found, key=lambda zone: zone[0] - zone[1], default=(None, None))
