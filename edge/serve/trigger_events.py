"""Triggers on /v1/realtime: `edge.trigger.*`, in both directions."""

from __future__ import annotations

import uuid

import msgspec

from edge.serve.protocol import Json
from edge.session.triggers import Cause, Trigger


class TriggerCreate(msgspec.Struct, frozen=True, kw_only=True, tag="edge.trigger.create"):
    """Watch for something, until it is deleted or this client goes."""

    trigger: Trigger
    event_id: str | None = None


class TriggerDelete(msgspec.Struct, frozen=True, kw_only=True, tag="edge.trigger.delete"):
    """Watch for it no longer."""

    trigger_id: str
    event_id: str | None = None


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    event_id: str = msgspec.field(default_factory=lambda: f"event_{uuid.uuid4().hex[:20]}")


class EdgeTriggerCreated(_Event, frozen=True, kw_only=True, tag="edge.trigger.created"):
    """It is watched for."""

    trigger_id: str
    trigger: Trigger


class EdgeTriggerDeleted(_Event, frozen=True, kw_only=True, tag="edge.trigger.deleted"):
    """It no longer is."""

    trigger_id: str


class _Judged(_Event, frozen=True, kw_only=True):
    id: str
    condition: str
    at_s: float
    began_s: float
    """When it was first likely: the debounce time before it began."""
    confidence: float
    """P(yes) / (P(yes) + P(no)), 0..1."""
    evidence: list[Json]


class EdgeTriggerBegan(_Judged, frozen=True, kw_only=True, tag="edge.trigger.began"):
    """What it watches for is the case."""


class EdgeTriggerEnded(_Judged, frozen=True, kw_only=True, tag="edge.trigger.ended"):
    """It no longer is, or nobody watches for it any more."""

    cause: Cause
    """judged: it no longer is. unseen: nothing comes from its cameras and microphones any more.
    deleted: a client watches no longer. stopped: the session ends."""


ClientTriggerEvent = TriggerCreate | TriggerDelete
ServerTriggerEvent = EdgeTriggerCreated | EdgeTriggerDeleted | EdgeTriggerBegan | EdgeTriggerEnded
