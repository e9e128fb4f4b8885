"""ONNX Runtime without its telemetry: everybody here imports it from this module.

Its wheels since 1.29 bring a client of Microsoft's event collector, on by default. As it is loaded
it writes a device id and a database of events into the user's cache folder, and seconds later it
looks for the collector. Only this variable ends that, and only if it is set before the import:
`disable_telemetry_events` comes too late for the files.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

__all__ = ["onnxruntime"]
