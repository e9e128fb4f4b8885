"""Commands under strace and without a network: what they open, as the kernel sees it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from needed import must_be

TIMEOUT_S = 240
ALONE = ("unshare", "--net", *(() if os.geteuid() == 0 else ("--map-root-user",)))
TRACED = "socket,connect,/^(open|creat|mkdir|mknod|rename|link|symlink)"
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^(creat|mkdir|mknod|rename|link|symlink)")
SEMAPHORES = "/dev/shm/sem."
"""Locks between processes: made under a name, which is removed at once."""
FIRST_TO_GO = "/oom_score_adj"
"""A helper's word to the kernel about itself."""
PLACE = re.compile(r'(?:AT_FDCWD|\d+)<([^>]*)>, "([^"]*)"|"([^"]*)"')


class Watched:
    """Commands whose system calls are kept, in a home and a cache that are new and empty."""

    def __init__(self, folder: Path) -> None:
        """Make the folders; `given` is where the commands are told to write.

        Skips the test where nothing can be traced, or fails it in CI.
        """
        for program in ("unshare", "strace"):
            found = shutil.which(program) is not None
            must_be(found, f"needs {program}: scripts/install_test_media.sh")
        tried = subprocess.run(
            [*ALONE, "strace", "-qq", "-e", "trace=none", "true"],
            capture_output=True,
            text=True,
            check=False,
        )
        must_be(tried.returncode == 0, f"may not trace or unshare here: {tried.stderr}")
        self.given, self._traces = folder / "given", folder / "traces"
        self._started: list[subprocess.Popen[str]] = []
        self._own = [folder / name for name in ("home", "cache", "tmp")]
        for made in (self.given, self._traces, *self._own):
            made.mkdir()
        home, cache, tmp = map(str, self._own)
        # Nothing else is passed on: ONNX Runtime sends nothing where CI=true.
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "XDG_CACHE_HOME": cache,
            "TMPDIR": tmp,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Python with these words; the tracer is no parent of it, so that signals reach it."""
        trace = str(self._traces / str(len(self._started)))
        options = ("-D", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "4096", "-e", "signal=none")
        process = subprocess.Popen(
            [
                *(*ALONE, "strace", *options, "-e", f"trace={TRACED}", "-o", trace),
                *(sys.executable, *map(str, words)),
            ],
            cwd=self.given,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *words: object) -> str:
        """Python with these words, to its end; what it printed."""
        process = self.start(*words)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
        return out

    def edge(self, *words: object) -> str:
        return self.run("-m", "edge.cli", *words)

    def build_engine(self, *words: object) -> str:
        return self.run("-m", "build_engine.cli", *words)

    def serve(self, *words: object, n_segments: int) -> subprocess.Popen[str]:
        """`edge run`, once it has looked at so many pairs of frames."""
        service = self.start("-m", "edge.cli", "run", *words)
        assert service.stderr is not None
        log: list[str] = []
        while sum("segment=video" in line for line in log) < n_segments:
            log.append(service.stderr.readline())
            assert log[-1], "".join(log)
        return service

    def close(self) -> None:
        """End what still runs."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def internet(self) -> list[str]:
        """The calls that made a socket of the internet's protocols, or connected one."""
        return [call for call in self._calls() if "AF_INET" in call]

    def unasked(self) -> list[str]:
        """What was written, or tried to be, elsewhere than in `given`, and temporary files left."""
        left = [str(path) for folder in self._own for path in folder.rglob("*")]
        return left + [
            call
            for call in self._calls()
            if WRITES.search(call) and not all(map(self._allowed, self._places(call)))
        ]

    def _places(self, call: str) -> list[Path]:
        """The paths that a line of strace names."""
        named = [
            (folder or self.given, name or alone) for folder, name, alone in PLACE.findall(call)
        ]
        return [Path(os.path.normpath(Path(folder) / name)) for folder, name in named]

    def _allowed(self, place: Path) -> bool:
        inside = any(place.is_relative_to(folder) for folder in (self.given, self._own[-1]))
        if str(place).startswith("/proc/") and str(place).endswith(FIRST_TO_GO):
            return True
        return inside or str(place).startswith(SEMAPHORES) or str(place) == os.devnull

    def _calls(self) -> list[str]:
        lines = [
            line.split(maxsplit=1)[1]
            for trace in self._traces.iterdir()
            for line in trace.read_text().splitlines()
        ]
        assert lines
        return [line for line in lines if not line.startswith(("<...", "+++", "---"))]
