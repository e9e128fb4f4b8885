"""Items of a conversation as Responses have them, and those that are kept for their clients."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from edge.serve.fields import ignored
from edge.serve.messages import Part
from edge.serve.protocol import Json
from edge.serve.replies import NotFoundError


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    """Something said."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[str | Part]
    id: str | None = None
    status: Annotated[Any, ignored("An item is what it says.")] = None
    phase: Annotated[Any, ignored("The model's prompt knows no phases.")] = None


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    """A call that the model has proposed."""

    name: str
    arguments: str
    call_id: str = ""
    """The order says which output is meant."""
    id: str | None = None
    status: Annotated[Any, ignored("An item is what it says.")] = None
    caller: Annotated[Any, ignored("The model is the only caller.")] = None
    namespace: Annotated[Any, ignored("Tools have names only.")] = None
    is_async: Annotated[Any, ignored("An item is what it says.")] = msgspec.field(
        name="async", default=None
    )


class FunctionOutputItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call_output"):
    """What the call gave."""

    output: str | list[str | Part]
    call_id: str = ""
    id: str | None = None
    status: Annotated[Any, ignored("An item is what it says.")] = None
    name: Annotated[Any, ignored("The order says which call is meant.")] = None
    namespace: Annotated[Any, ignored("Tools have names only.")] = None
    caller: Annotated[Any, ignored("The model is the only caller.")] = None


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning_text"):
    """A piece of it."""

    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    """What the model thought before; what is kept of it is the template's affair."""

    id: str | None = None
    content: list[ReasoningText] | None = None
    summary: Annotated[Any, ignored("The thinking itself is told.")] = None
    encrypted_content: Annotated[Any, ignored("Nothing is encrypted here.")] = None
    status: Annotated[Any, ignored("An item is what it says.")] = None


class ItemReference(msgspec.Struct, frozen=True, kw_only=True, tag="item_reference"):
    """An item of a response that is kept."""

    id: str


InputItem = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem | ItemReference


MAX_KEPT, MAX_KEPT_BYTES = 64, 16 << 20
"""Of one client. A response takes what its whole conversation takes, as JSON."""
MAX_CLIENTS = 8
"""For whom something is kept: who was silent for longest makes room."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A response, and what a next one follows."""

    response: Json
    items: tuple[InputItem, ...]
    n_bytes: int


class KeptOf:
    """What is kept for one client. Bounded: the oldest make room for the newest."""

    def __init__(self) -> None:
        self._all: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()  # large requests are read in threads of their own

    def keep(self, kept: Kept) -> None:
        """Keep a response, unless it is too large alone."""
        if kept.n_bytes > MAX_KEPT_BYTES:
            return
        with self._lock:
            self._all[kept.response["id"]] = kept
            while len(self._all) > MAX_KEPT or self._n_bytes() > MAX_KEPT_BYTES:
                self._all.popitem(last=False)

    def _n_bytes(self) -> int:
        return sum(one.n_bytes for one in self._all.values())

    def response(self, response_id: str, thing: str = "response_id") -> Kept:
        """A response.

        Raises:
            NotFoundError: it is not kept, or no longer.
        """
        found = self._all.get(response_id)
        if found is None:
            problem = f"{response_id[:80]!r} is not kept"
            raise NotFoundError(thing, problem, "send the whole conversation as input")
        return found

    def item(self, item_id: str, thing: str) -> InputItem:
        """An item of a kept response.

        Raises:
            NotFoundError: it is not kept, or no longer.
        """
        with self._lock:
            newest_first = [*reversed(self._all.values())]
        for kept in newest_first:
            for item in kept.items:
                if item.id == item_id:
                    return item
        raise NotFoundError(thing, f"{item_id[:80]!r} is not kept", "send the item itself")

    def forget(self, response_id: str) -> None:
        """Keep it no longer.

        Raises:
            NotFoundError: it is not kept.
        """
        self.response(response_id)
        with self._lock:
            self._all.pop(response_id, None)


class KeptResponses:
    """What is kept for each client, by who it is."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, KeptOf] = OrderedDict()

    def of(self, client: str) -> KeptOf:
        """What is kept for one."""
        self._clients.setdefault(client, KeptOf())
        self._clients.move_to_end(client)
        while len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        return self._clients[client]
