"""Pictures, sounds and films of few bytes that would take much time or memory to decode.

Each is made from what its format allows, and is small enough for a request. `fuzz_media.py` opens
them beside damaged files, the tests send them to a running service.
"""

from __future__ import annotations

import io
import struct
import wave
import zlib
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

MB = 1 << 20
Make = Callable[[], bytes]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int,
    height: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    bits: int = 8,
    colour: int = 2,
    n_rows: int | None = None,
) -> bytes:
    """A black PNG.

    Args:
        before, after: chunks before and behind the pixels.
        colour: 2 is RGB, 6 RGBA.
        n_rows: so many are there; None is all.
    """
    row = bytes(1 + width * bits // 8 * {0: 1, 2: 3, 6: 4}[colour])
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(height if n_rows is None else n_rows))
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = _chunk(b"IDAT", packed + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + after + _chunk(b"IEND", b"")


def _inflating(kind: bytes, n_chunks: int) -> bytes:
    """Text, or a colour profile, that is much longer than it looks."""
    packed = zlib.compress(bytes(64 * MB), 9)
    if kind == b"iTXt":
        return b"".join(
            _chunk(kind, b"key%d\0\1\0\0\0" % k + packed[: MB if n_chunks > 1 else None])
            for k in range(n_chunks)
        )
    return b"".join(_chunk(kind, b"key%d\0\0" % k + packed) for k in range(n_chunks))


def _many_texts(n: int, size: int) -> bytes:
    packed = zlib.compress(bytes(size), 9)
    return png(16, 16, before=b"".join(_chunk(b"zTXt", b"k%d\0\0" % k + packed) for k in range(n)))


def _many_chunks() -> bytes:
    return png(16, 16, before=_chunk(b"abCd", b"") * 900_000)


def ifd_of_views(n_tags: int, n_bytes: int) -> bytes:
    """A TIFF directory whose tags all show the same bytes, which are there once."""
    entries = b"".join(
        struct.pack("<HHII", 0x8000 + k, 7, n_bytes, 8 + 2 + 12 * n_tags + 4) for k in range(n_tags)
    )
    return struct.pack("<2sHIH", b"II", 42, 8, n_tags) + entries + bytes(4 + n_bytes)


def _tiff_of_views() -> bytes:
    return ifd_of_views(30_000, 8 * MB)


def _tiff_of_strips() -> bytes:
    """A million strips, each of them a part of the picture to look at."""
    n = 1 << 20
    tags = [
        (256, 4, 1, 4096),
        (257, 4, 1, 4096),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, n, 0),
        (277, 3, 1, 1),
        (278, 4, 1, 1),
        (279, 4, n, 0),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, kind, count, value in tags:
        head += struct.pack("<HHII", tag, kind, count, start if count > 1 else value)
    return head + bytes(4) + struct.pack("<I", start) * n + bytes(4096)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_with(segments: bytes) -> bytes:
    """A small JPEG with these segments at its beginning."""
    plain = _saved(Image.new("RGB", (16, 16)), "JPEG")
    return plain[:2] + segments + plain[2:]


def jpeg_of_scans(width: int, height: int, n_scans: int) -> bytes:
    """A progressive JPEG that goes through all its coefficients again and again."""
    plain = _saved(Image.new("L", (width, height)), "JPEG", progressive=True)
    first = plain.index(b"\xff\xda")
    # A refining scan whose bits are all zero: the Huffman table's shortest code ends many blocks.
    second = plain.index(b"\xff\xda", first + 2)
    end = plain.index(b"\xff\xd9")
    scans = plain[second:end]
    return plain[:end] + scans * n_scans + plain[end:]


def _gif_of_comments() -> bytes:
    plain = _saved(Image.new("P", (16, 16)), "GIF")
    head = 13 + (3 << ((plain[10] & 7) + 1) if plain[10] & 0x80 else 0)
    blocks = (b"\xff" + b"x" * 255) * 43_000
    return plain[:head] + b"!\xfe" + blocks + b"\0" + plain[head:]


def _animated(kind: str, n: int) -> bytes:
    """So many frames of 16x16."""
    frame = Image.new("P", (16, 16))
    if kind == "GIF":
        plain = _saved(frame, "GIF")
        head = 13 + (3 << ((plain[10] & 7) + 1) if plain[10] & 0x80 else 0)
        return plain[:head] + plain[head:-1] * n + b";"
    if kind == "PNG":
        packed = zlib.compress(bytes(17 * 16))
        control = struct.pack(">IIIIHHBB", 16, 16, 0, 0, 1, 10, 0, 0)
        out = [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)),
        ]
        out += [_chunk(b"acTL", struct.pack(">II", n, 0))]
        for k in range(n):
            out.append(_chunk(b"fcTL", struct.pack(">I", max(0, 2 * k - 1)) + control))
            if k == 0:
                out.append(_chunk(b"IDAT", packed))
            else:
                out.append(_chunk(b"fdAT", struct.pack(">I", 2 * k) + packed))
        return b"".join(out) + _chunk(b"IEND", b"")
    still = _saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    body = bytes(6) + (15).to_bytes(3, "little") * 2 + (10).to_bytes(3, "little") + b"\0" + still
    part = b"ANMF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    canvas = b"VP8X" + struct.pack("<II", 10, 2) + (15).to_bytes(3, "little") * 2
    anim = b"ANIM" + struct.pack("<I", 6) + bytes(6)
    riff = b"WEBP" + canvas + anim + part * n
    return b"RIFF" + struct.pack("<I", len(riff)) + riff


def _webp_canvas() -> bytes:
    """An animation whose header has the largest canvas that there is."""
    data = bytearray(_animated("WEBP", 2))
    at = data.index(b"VP8X") + 8 + 4
    data[at : at + 6] = (16_382).to_bytes(3, "little") * 2
    return bytes(data)


def _bmp_of_runs() -> bytes:
    """Run-length coded, one pixel a run."""
    n = 4_000_000
    head = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54 + 1024)
    head += struct.pack("<IiiHHIIiiII", 40, 8192, 4096, 1, 8, 1, 2 * n, 0, 0, 256, 0)
    return head + bytes(1024) + b"\1\0" * n


PICTURES: dict[str, Make] = {
    "16000x16000 pixels, one row": lambda: png(16_000, 16_000, n_rows=1),
    "12000x12000 pixels of 64 bits": lambda: png(12_000, 12_000, bits=16, colour=6, n_rows=1),
    "8192x8192 pixels": lambda: png(8192, 8192, n_rows=1),
    "PNG: a text of 64 MB": lambda: png(16, 16, before=_inflating(b"zTXt", 1)),
    "PNG: a text of 64 MB behind the pixels": lambda: png(16, 16, after=_inflating(b"zTXt", 1)),
    "PNG: an international text of 64 MB": lambda: png(16, 16, before=_inflating(b"iTXt", 1)),
    "PNG: a colour profile of 64 MB": lambda: png(16, 16, before=_inflating(b"iCCP", 1)),
    "PNG: texts of 400 MB together": lambda: _many_texts(400, MB - 1),
    "PNG: 900,000 chunks": _many_chunks,
    "PNG: EXIF whose tags share 8 MB": lambda: png(
        16, 16, before=_chunk(b"eXIf", ifd_of_views(30_000, 8 * MB))
    ),
    "PNG of 100,000 frames": lambda: _animated("PNG", 100_000),
    "GIF of 100,000 frames": lambda: _animated("GIF", 100_000),
    "WebP of 100,000 frames": lambda: _animated("WEBP", 100_000),
    "WebP with a canvas of 16383x16383": _webp_canvas,
    "GIF: a comment of 11 MB": _gif_of_comments,
    "JPEG: 3,000 scans": lambda: jpeg_of_scans(4096, 4096, 3000),
    "JPEG: 2,000,000 segments": lambda: jpeg_with(_segment(0xFE, b"") * 2_000_000),
    "JPEG: EXIF in 600,000 pieces": lambda: jpeg_with(_segment(0xE1, b"Exif\0\0x") * 600_000),
    "JPEG: EXIF whose tags share 32 KB": lambda: jpeg_with(
        _segment(0xE1, b"Exif\0\0" + ifd_of_views(2600, 32_000))
    ),
    "JPEG: EXIF whose tags share 4 MB": lambda: jpeg_with(
        b"".join(
            _segment(0xE1, b"Exif\0\0" + part)
            for data in [ifd_of_views(30_000, 4 * MB)]
            for part in (data[k : k + 65_000] for k in range(0, len(data), 65_000))
        )
    ),
    "TIFF whose tags share 8 MB": _tiff_of_views,
    "TIFF of a million strips": _tiff_of_strips,
    "BMP: four million runs": _bmp_of_runs,
}


def wav(n_channels: int, rate_hz: int, seconds: float, n_bytes: int = 2) -> bytes:
    """Silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(n_channels)
        written.setsampwidth(n_bytes)
        written.setframerate(rate_hz)
        written.writeframes(bytes(int(n_channels * rate_hz * seconds) * n_bytes))
    return file.getvalue()


def coded(
    container: str, codec: str, seconds: float, rate_hz: int = 48_000, layout: str = "mono"
) -> bytes:
    """Silence."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, AudioStream)
        n = getattr(stream, "frame_size", 0) or 4096
        n_channels = av.AudioLayout(layout).nb_channels
        kind = stream.format.name
        dtype = {
            "s16": "int16",
            "fltp": "float32",
            "s16p": "int16",
            "s32": "int32",
            "s32p": "int32",
        }[kind]
        shape = (n_channels, n) if kind.endswith("p") else (1, n * n_channels)
        frame = av.AudioFrame.from_ndarray(np.zeros(shape, dtype), format=kind, layout=layout)
        frame.sample_rate = rate_hz
        for k in range(int(seconds * rate_hz / n)):
            frame.pts, frame.time_base = k * n, Fraction(1, rate_hz)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _flac_hours() -> bytes:
    """One frame of silence, again and again: FLAC's largest, under a header without a length."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as output:
        stream = output.add_stream(
            "flac", rate=48_000, layout="mono", options={"frame_size": "65535"}
        )
        assert isinstance(stream, AudioStream)
        n = 65_535
        frame = av.AudioFrame.from_ndarray(np.zeros((1, n), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = file.getvalue()
    at = data.index(b"\xff\xf8")
    end = data.find(b"\xff\xf8", at + 2)
    one = data[at : end if end > 0 else None]
    return data[:at] + one * (8 * MB // len(one))


def _alac_frame() -> bytes:
    """Apple Lossless with frames of 16 million samples by its header."""
    data = bytearray(coded("ipod", "alac", 1.0))
    at = data.index(b"alac", data.index(b"alac") + 4) + 8  # behind the box's version
    data[at : at + 4] = struct.pack(">I", 4096 * 4096)
    return bytes(data)


SOUNDS: dict[str, Make] = {
    "64 channels": lambda: wav(64, 8000, 8),
    "255 channels": lambda: wav(255, 8000, 2),
    "384 kHz": lambda: wav(1, 384_000, 10),
    "1 Hz": lambda: wav(1, 1, 20),
    "FLAC: hours of silence": _flac_hours,
    "Opus: minutes of silence": lambda: coded("ogg", "libopus", 300),
    "Opus: hours of silence in Matroska": lambda: coded("matroska", "libopus", 300),
    "ALAC: frames of 16 million samples": _alac_frame,
}


def film(
    container: str,
    codec: str,
    n: int,
    size: tuple[int, int] = (16, 16),
    rate: int = 25,
    pixels: str = "yuv420p",
    n_streams: int = 1,
) -> bytes:
    """Black frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        streams = []
        for _ in range(n_streams):
            stream = output.add_stream(codec, rate=rate)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            stream.time_base = Fraction(1, rate)
            streams.append(stream)
        frame = av.VideoFrame(*size, pixels)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for stream in streams:
            for k in range(n):
                frame.pts, frame.time_base = k, Fraction(1, rate)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return file.getvalue()


def _box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data) + 8, name) + data


def _full(name: bytes, data: bytes) -> bytes:
    return _box(name, bytes(4) + data)


def movie(
    n_samples: int, sample_size: int, data_reference: bytes = b"", entry: bytes = b""
) -> bytes:
    """A QuickTime film of one track of raw sound, written box by box.

    Args:
        n_samples: so many are in its tables.
        data_reference: where its samples are; in the file, if left out.
    """
    matrix = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    mvhd = _full(b"mvhd", struct.pack(">IIII", 0, 0, 1000, 1000) + bytes(16) + matrix + bytes(28))
    tkhd = _box(
        b"tkhd", struct.pack(">IIIIII", 7, 0, 0, 1, 0, 1000) + bytes(16) + matrix + bytes(8)
    )
    mdhd = _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, 8000, 8000, 0, 0))
    hdlr = _full(b"hdlr", b"mhlrsoun" + bytes(13))
    reference = data_reference or _box(b"url ", b"\0\0\0\1")
    dinf = _box(b"dinf", _full(b"dref", struct.pack(">I", 1) + reference))
    entry = entry or _box(
        b"sowt", bytes(6) + struct.pack(">HHHIHHHHI", 1, 0, 0, 0, 1, 16, 0, 0, 8000 << 16)
    )
    stsd = _full(b"stsd", struct.pack(">I", 1) + entry)
    stts = _full(b"stts", struct.pack(">III", 1, n_samples, 2))
    stsc = _full(b"stsc", struct.pack(">IIII", 1, 1, n_samples, 1))
    stsz = _full(b"stsz", struct.pack(">II", sample_size, n_samples))

    def whole(offset: int) -> bytes:
        stco = _full(b"stco", struct.pack(">II", 1, offset))
        stbl = _box(b"stbl", stsd + stts + stsc + stsz + stco)
        minf = _box(b"minf", _full(b"smhd", bytes(4)) + dinf + stbl)
        trak = _box(b"trak", tkhd + _box(b"mdia", mdhd + hdlr + minf))
        moov = _box(b"moov", mvhd + trak)
        return _box(b"ftyp", b"qt  " + bytes(4) + b"qt  ") + moov + _box(b"mdat", bytes(16_000))

    return whole(len(whole(0)) - 16_000 if not data_reference else 0)


def elsewhere(path: str) -> bytes:
    """A reference to another file, as an alias of the Macintosh."""
    name = b":" + path.lstrip("/").replace("/", ":").encode()
    alias = bytes(10) + bytes([1]) + b"x".ljust(27, b"\0") + bytes(12)
    alias += bytes([1]) + b"y".ljust(63, b"\0") + bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    alias += struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2) + b"\xff\xff"
    return _box(b"alis", bytes(4) + alias)


def _vint(n: int, size: int = 8) -> bytes:
    return (n | 1 << 7 * size).to_bytes(size, "big")


def _element(name: str, data: bytes) -> bytes:
    return bytes.fromhex(name) + _vint(len(data)) + data


def matroska_of_packed(n_packets: int, track: str = "sound") -> bytes:
    """Packets that each unpack to nine million bytes.

    Args:
        track: what they are of; other than sound, there is a little sound beside them.
    """
    packed = zlib.compress(bytes(9_000_000))
    head = _element("1A45DFA3", _element("4282", b"matroska") + _element("4287", b"\4"))
    coding = _element("6D80", _element("6240", _element("5034", _element("4254", b"\0"))))
    rate = _element("B5", struct.pack(">f", 8000.0)) + _element("9F", b"\1")
    sound = _element("86", b"A_PCM/INT/LIT") + _element("83", b"\2")
    sound += _element("E1", rate + _element("6264", b"\x10"))
    one = _element("D7", b"\1") + _element("73C5", b"\1")
    tracks = _element("AE", one + sound + (coding if track == "sound" else b""))
    number = 1
    if track != "sound":
        number = 2
        text = _element("86", b"S_TEXT/UTF8") + _element("83", b"\x11") + coding
        tracks += _element("AE", _element("D7", b"\2") + _element("73C5", b"\2") + text)
    blocks = b""
    if track != "sound":
        blocks += _element("A3", _vint(1, 1) + struct.pack(">hB", 0, 0x80) + bytes(16_000))
    block = _vint(number, 1) + struct.pack(">hB", 0, 0x80) + packed
    blocks += (
        _element("A3", block)
        if track == "sound"
        else _element("A0", _element("A1", block) + _element("9B", b"\1"))
    ) * n_packets
    cluster = _element("1F43B675", _element("E7", b"\0") + blocks)
    info = _element("1549A966", _element("2AD7B1", struct.pack(">I", 1_000_000)))
    return head + _element("18538067", info + _element("1654AE6B", tracks) + cluster)


def _grows() -> bytes:
    """Motion JPEG: a small picture, then large ones."""
    small = film("avi", "mjpeg", 40, (64, 64), 2, "yuvj420p")
    large = _saved(Image.new("RGB", (4000, 4000)), "JPEG", quality=5)
    frames = []
    with av.open(io.BytesIO(small), "r") as container:
        frames = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=2)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for k, data in enumerate([*frames[:1], *[large] * 20]):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, k, k
            packet.time_base, packet.is_keyframe = Fraction(1, 2), True
            output.mux(packet)
    return file.getvalue()


SOUNDS |= {
    "tables of 170 million samples": lambda: movie(170_000_000, 2),
    "samples in another file": lambda: movie(8000, 2, elsewhere("/etc/passwd")),
    "Matroska: packets that unpack to 9 MB": lambda: matroska_of_packed(1000),
    "Matroska: subtitles that unpack to 9 MB": lambda: matroska_of_packed(1000, "text"),
}
FILMS: dict[str, Make] = {
    "8192x8192 pixels": lambda: film("matroska", "mjpeg", 1, (8192, 8192), 25, "yuvj420p"),
    "33,000 frames in a second": lambda: film("mp4", "mpeg4", 33_000, (16, 16), 33_000),
    "hours": lambda: film("mp4", "mpeg4", 4000, (16, 16), 1),
    "a hundred tracks": lambda: film("matroska", "mpeg4", 2, (64, 64), 25, n_streams=100),
    "pictures that grow": _grows,
    "a playlist": lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
    "a list to join": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a session description": lambda: (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 4000 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    ),
    "DASH": lambda: b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
}
