"""Sends a film whose pictures say when they were made, as MPEG-TS over UDP: barcode_stream.py PORT.

A picture has 16 stripes, black or white: the milliseconds of the monotonic clock, modulo 2**16.
"""

from __future__ import annotations

import sys
import time
from fractions import Fraction

import av
import numpy as np

from edge.types import UInt8

WIDTH, HEIGHT, FPS, BITS = 320, 160, 20, 16
MODULUS = 1 << BITS


def picture(ms: int) -> UInt8:
    bits = (ms % MODULUS) >> np.arange(BITS) & 1
    row = np.repeat(bits * 255, WIDTH // BITS).astype(np.uint8)
    return np.repeat(np.tile(row, (HEIGHT, 1))[:, :, None], 3, axis=2)


def read(pixels: UInt8) -> int:
    """The milliseconds that a picture says."""
    middle = pixels[HEIGHT // 2, WIDTH // BITS // 2 :: WIDTH // BITS].mean(axis=-1)
    return int(((middle > 128) << np.arange(BITS)).sum())


def main() -> None:
    address = f"udp://127.0.0.1:{sys.argv[1]}?pkt_size=1316"
    with av.open(address, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"tune": "zerolatency", "preset": "ultrafast", "g": "10"}
        stream.codec_context.time_base = Fraction(1, 1000)
        start_ms = time.monotonic_ns() // 1_000_000
        for _ in range(10_000):
            now_ms = time.monotonic_ns() // 1_000_000
            frame = av.VideoFrame.from_ndarray(picture(now_ms))
            frame.pts, frame.time_base = now_ms - start_ms, Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
            time.sleep(1 / FPS)  # a camera's pace


if __name__ == "__main__":
    main()
