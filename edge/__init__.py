"""Omni Edge: a runtime that keeps perceiving with Nemotron 3 Nano Omni."""

__version__ = "0.1.0"
