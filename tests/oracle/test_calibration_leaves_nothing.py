"""Quantizing with samples under strace: torch, ModelOpt and what they bring along stay at home."""

from __future__ import annotations

from watched import Watched

TEMPORARY = "torchinductor_"
"""torch's folder for compiled code, empty; it stays in the temporary folder."""


def test_quantizing_with_samples_leaves_nothing(models, checkpoint, tmp_path):
    watched = Watched(tmp_path)
    (watched.given / "rules.txt").write_text("Keep to the right. " * 20)
    samples = ("--samples", "rules.txt")
    folder = checkpoint("base")
    watched.build_engine("quantize", folder, "quantized", "--recipe", "nvfp4", *samples)
    # urllib3 tries whether this machine could make a socket of IPv6; it connects to nobody.
    assert [call for call in watched.internet() if not call.startswith("socket(AF_INET6")] == []
    assert [call for call in watched.unasked() if TEMPORARY not in call] == []


def test_the_hub_is_out_of_reach(models, tmp_path):
    watched = Watched(tmp_path)
    offline = "print(huggingface_hub.is_offline_mode())"
    said = watched.run("-c", f"import build_engine.calibrate, huggingface_hub; {offline}")
    assert said == "True\n"
