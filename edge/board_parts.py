"""Parts of a board's report that no other command does, each called in a process of its own."""

# ruff: noqa: T201  what they print is what the report holds

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge import demo
from edge.client import Client
from edge.clock import NS_PER_S, MonotonicClock
from edge.engines.choose import open_cuda
from edge.errors import ConfigurationError, DeviceError, EdgeError, MediaError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses import devices
from edge.senses.camera import Camera
from edge.senses.microphone import DEVICE, Microphone, input_devices
from edge.wire import DEFAULT_SOCKET
from jetson.doctor import check_tensorrt

CAPTURE_S, OPEN_S = 5.0, 6.0
"""So long is captured; so long may pass before the first frame or sound."""
MAX_DEVICES = 3
CSI = (
    "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=30/1"
    " ! nvvidconv"
)
ANY_FPS = 1000.0
BOARDS = {"8.7": "orin", "11.0": "thor"}
"""Compute capability -> the board that GPU kernels are compiled for."""
_SHOWN = "LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,DeviceAllow"


def gpu() -> None:
    """Which GPU and TensorRT are here."""
    cuda = open_cuda()
    device, (free, total) = cuda.device(), cuda.memory_bytes()
    cuda.close()
    print(f"{device}, {free / 1e9:.1f} of {total / 1e9:.1f} GB are free")
    tensorrt = check_tensorrt()
    print(f"TensorRT: {tensorrt.found}")
    if tensorrt.verdict != "ok":
        raise ConfigurationError("TensorRT", tensorrt.found, tensorrt.remedy)


def kernels(out: str) -> None:
    """Compile the GPU kernels for this board."""
    cuda = open_cuda()
    capability = cuda.device().compute_capability
    cuda.close()
    if capability not in BOARDS:
        raise DeviceError("GPU", f"is sm {capability}", "kernels are compiled for Orin and Thor")
    from gpu_kernels.build import write_kernels

    for name, took in write_kernels(Path(out), BOARDS[capability]).items():
        print(name, took)


def session(work: str) -> None:
    """Play the demo's recording to a service with this bundle, and ask."""
    used = replace(demo.files(), kept=Path(work))
    used.settings.write_text(demo.SETTINGS)
    n_right = demo.print_answers(demo.watch(used))
    if n_right < demo.N_RIGHT:
        raise MediaError("the session", f"got {n_right} right answers", "compare with `edge demo`")


def cameras() -> None:
    """Capture from each V4L2 camera."""
    found = [d for d in devices.cameras() if d.formats or not shutil.which(devices.LISTER)]
    if not found:
        print("there is none")
    for device in found[:MAX_DEVICES]:
        print(device.source, *(f"({line})" for line in devices.shown(device)[:MAX_DEVICES]))
        _each(_frames, device.source)


def csi() -> None:
    """Capture from the first CSI camera."""
    print(CSI)
    _frames(CSI)


def microphones() -> None:
    """Capture from the default microphone and from those on USB; their names are left out."""
    import pyaudio

    audio = pyaudio.PyAudio()
    names = [str(found["name"]) for found in input_devices(audio)]
    audio.terminate()
    if not names:
        print("there is none")
        return
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Unnamed(names))
    on_usb = [name for name in names if "usb" in name.lower()]
    for i, name in enumerate(["", *on_usb[: MAX_DEVICES - 1]]):
        print(f"USB microphone {i}:" if name else "the default microphone:")
        _each(_sound, DEVICE + name)


def service() -> None:
    """How the installed service is."""
    shown = subprocess.run(
        ["systemctl", "show", "edge.service", "-p", _SHOWN],
        capture_output=True,
        text=True,
        check=False,
    )
    print(shown.stdout.strip() or shown.stderr.strip())
    health = Client(DEFAULT_SOCKET).health()
    known = ("ready", "uptime_s", "counters")
    print(json.dumps({name: health[name] for name in known if name in health}))


class _Unnamed(logging.Filter):
    """Takes names of devices, which may be people's, out of what is logged."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        for name in self._names:
            text = text.replace(name, "(a device)")
        record.msg, record.args = text, ()
        return True


PARTS: dict[str, Callable[..., None]] = {
    part.__name__: part for part in (gpu, kernels, session, cameras, csi, microphones, service)
}


def main(name: str, *words: str) -> int:
    """Do one part; its exit code."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    try:
        PARTS[name](*words)
    except EdgeError as error:
        print(f"edge: {error}")
        return error.exit_code
    return 0


def _each(capture: Callable[[str], None], source: str) -> None:
    """Capture, or say why not, so that the next one has its turn."""
    try:
        capture(source)
    except EdgeError as error:
        print(f"  {error.problem}")


def _frames(source: str) -> None:
    camera = Camera("camera", source, MonotonicClock(), ANY_FPS)
    timer = threading.Timer(OPEN_S + CAPTURE_S, camera.close)
    timer.start()
    times: list[int] = []
    shape: tuple[int, ...] = ()
    try:
        for frame in camera.frames():
            times.append(frame.capture_ns)
            shape = frame.pixels.shape
            if frame.capture_ns - times[0] >= CAPTURE_S * NS_PER_S:
                break
    finally:
        timer.cancel()
        camera.close()
    if len(times) < 2:
        raise MediaError("camera", f"gave {len(times)} frames", "check camera and cable")
    gaps_ms = np.diff(times) / 1e6
    print(
        f"  {len(times)} frames of {shape[1]}x{shape[0]} in {(times[-1] - times[0]) / 1e9:.2f} s, "
        f"from one to the next {np.median(gaps_ms):.1f} ms, at most {gaps_ms.max():.1f} ms"
    )


def _sound(source: str) -> None:
    microphone = Microphone("microphone", source, MonotonicClock())
    timer = threading.Timer(OPEN_S + CAPTURE_S, microphone.close)
    timer.start()
    n, squares = 0, 0.0
    try:
        for chunk in microphone.chunks():
            n += len(chunk.samples)
            squares += float(np.square(chunk.samples, dtype=np.float64).sum())
            if n >= CAPTURE_S * SAMPLE_RATE_HZ:
                break
    finally:
        timer.cancel()
        microphone.close()
    if not n:
        raise MediaError("microphone", "gave no sound", "check its cable")
    level_db = 10 * np.log10(max(squares / n, 1e-12))
    print(
        f"  {n / SAMPLE_RATE_HZ:.2f} s at {level_db:.0f} dB of full scale, "
        f"{microphone.n_lost} times sound was lost"
    )
