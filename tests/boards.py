"""Boards as files below a root: what /proc, /sys and /etc of three Jetsons and a PC hold.

Nothing here was recorded on a device by us. Names of zones, rails, counters and modes are those
of public sources: Jetson Linux Developer Guide r36 and r38, "Platform Power and Performance"
(thermal zones, software throttling of Orin from 99 °C, INA3221 rails, soctherm_oc counters, power
modes); jetson_stats, pull requests #738, #900 and #905 (Thor's devfreq gpu-gpc-0, INA238 with the
rail VIN). Readings (mV, mA, °C, kB) are examples.
"""

from __future__ import annotations

from pathlib import Path

Files = dict[str, str]


def _memory(total_kb: int, available_kb: int) -> Files:
    text = (
        f"MemTotal:       {total_kb} kB\nMemFree:        9 kB\nMemAvailable:   {available_kb} kB\n"
    )
    return {"proc/meminfo": text}


def zone(n: int, kind: str, now_mc: int, passive_mc: int) -> Files:
    """A zone's files; its passive trip point is its second."""
    folder = f"sys/class/thermal/thermal_zone{n}"
    return {
        f"{folder}/type": f"{kind}\n",
        f"{folder}/temp": f"{now_mc}\n",
        f"{folder}/trip_point_0_type": "critical\n",
        f"{folder}/trip_point_0_temp": "104500\n",
        f"{folder}/trip_point_1_type": "passive\n",
        f"{folder}/trip_point_1_temp": f"{passive_mc}\n",
    }


def _rails(n: int, *rails: tuple[str, int, int]) -> Files:
    files = {f"sys/class/hwmon/hwmon{n}/name": "ina3221\n"}
    for i, (label, mv, ma) in enumerate(rails, 1):
        files |= {
            f"sys/class/hwmon/hwmon{n}/in{i}_label": f"{label}\n",
            f"sys/class/hwmon/hwmon{n}/in{i}_input": f"{mv}\n",
            f"sys/class/hwmon/hwmon{n}/curr{i}_input": f"{ma}\n",
        }
    files[f"sys/class/hwmon/hwmon{n}/in7_label"] = "sum of shunt voltages\n"
    return files


def _modes(current: int, *names: str) -> Files:
    modes = "".join(
        f"< POWER_MODEL ID={i} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for i, name in enumerate(names)
    )
    return {
        "etc/nvpmodel.conf": modes,
        "var/lib/nvpmodel/status": f"pmode:{current:04d} fmode:quiet\n",
    }


def _identity(model: str, compatible: str, release: str) -> Files:
    return {
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": compatible.replace(",,", "\0") + "\0",
        "proc/device-tree/serial-number": "1424021000000\0",
        "etc/nv_tegra_release": f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x\n",
        "etc/hostname": "kitchen-robot\n",
    }


_COOLING: Files = {
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/thermal/cooling_device2/type": "devfreq-17000000.gpu\n",
    "sys/class/thermal/cooling_device2/cur_state": "0\n",
    "sys/class/hwmon/hwmon9/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon9/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon9/oc3_event_cnt": "17\n",
}

AGX_ORIN: Files = {
    **_identity(
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0005,,nvidia,p3701-0005,,nvidia,tegra234",
        "R39 (release), REVISION: 2.0",
    ),
    **_memory(64_337_000, 58_100_000),
    **zone(0, "cpu-thermal", 51_000, 99_000),
    **zone(1, "gpu-thermal", 48_500, 99_000),
    **zone(8, "tj-thermal", 51_000, 99_000),
    **_rails(
        1, ("VDD_GPU_SOC", 19_112, 240), ("VDD_CPU_CV", 19_120, 80), ("VIN_SYS_5V0", 5_024, 900)
    ),
    **_rails(2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5_024, 180), ("NC", 0, 0)),
    **_modes(0, "MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
    **_COOLING,
}
ORIN_NX: Files = {
    **_identity(
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "nvidia,p3768-0000+p3767-0000,,nvidia,p3767-0000,,nvidia,tegra234",
        "R36 (release), REVISION: 4.3",
    ),
    **_memory(15_655_000, 13_200_000),
    **zone(0, "cpu-thermal", 62_000, 99_000),
    **zone(1, "gpu-thermal", 61_000, 99_000),
    **_rails(
        1, ("VDD_IN", 5_000, 3_400), ("VDD_CPU_GPU_CV", 5_000, 1_500), ("VDD_SOC", 5_000, 700)
    ),
    **_modes(2, "MAXN", "10W", "15W", "25W"),
    **_COOLING,
}
THOR: Files = {
    **_identity(
        "NVIDIA Jetson AGX Thor Developer Kit",
        "nvidia,p4071-0000+p3834-0008,,nvidia,p3834-0008,,nvidia,tegra264",
        "R38 (release), REVISION: 2.0",
    ),
    **_memory(128_800_000, 121_000_000),
    **zone(0, "cpu-thermal", 45_000, 99_000),
    **zone(1, "gpu-thermal", 44_000, 99_000),
    **zone(4, "tj-thermal", 46_000, 99_000),
    **_rails(
        1, ("VDD_GPU", 19_000, 800), ("VDD_CPU_SOC_MSS", 19_000, 600), ("VIN_SYS_5V0", 5_000, 1_000)
    ),
    "sys/class/hwmon/hwmon2/name": "ina238\n",
    "sys/class/hwmon/hwmon2/power1_input": "52300000\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
    **_modes(1, "MAXN", "120W"),
    **_COOLING,
}
PC: Files = _memory(24_000_000, 20_000_000)


def laid_out(root: Path, files: Files) -> Path:
    """The files below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
