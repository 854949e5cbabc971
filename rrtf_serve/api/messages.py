"""Chat messages as OpenAI documents them, brought down to what prompt formats know: role and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rrtf_serve.api.errors import Path, invalid_type, invalid_value, missing, unsupported
from rrtf_serve.api.kinds import Schema
from rrtf_serve.models.tokens import well_formed

# OpenAI's role -> the one that chat templates know.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = {"text": "text", "refusal": "refusal"}  # type of a part -> its member that holds text


def read_messages(messages: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    """Raises ApiError 400 naming the message and, within it, the part."""
    if not messages:
        raise invalid_value(("messages",), "must hold at least one message.")
    return [_read(message, ("messages", index)) for index, message in enumerate(messages)]


def _read(message: Mapping[str, object], path: Path) -> dict[str, str]:
    role = message.get("role")
    if role is None:
        raise missing((*path, "role"), f"Give one of {', '.join(ROLES)}.")
    if not isinstance(role, str):
        raise invalid_type((*path, "role"), "a string", role)
    if role not in ROLES:
        raise invalid_value((*path, "role"), f"must be one of {', '.join(ROLES)}.")
    return {"role": ROLES[role], "content": _content(message, role, (*path, "content"))}


def _content(message: Mapping[str, object], role: str, path: Path) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return well_formed(content)
    if isinstance(content, list):
        # Parts are separate pieces of text; without a break the words at the seam would run together.
        return "\n".join(_part(part, (*path, index)) for index, part in enumerate(content))
    if content is not None:
        raise invalid_type(path, "a string or an array of content parts", content)
    # An assistant's turn that only called tools has no text.
    if role == "assistant" and (message.get("tool_calls") or message.get("function_call")):
        return ""
    raise missing(path, "Give the message's text.")


def _part(part: object, path: Path) -> str:
    if not isinstance(part, dict):
        raise invalid_type(path, "an object", part)
    kind = part.get("type")
    if not isinstance(kind, str):
        raise invalid_type((*path, "type"), "a string", kind)
    if kind not in TEXT_PARTS:
        raise unsupported(path, f"This model reads text only; leave out parts of type '{kind[:40]}'.")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise invalid_type((*path, TEXT_PARTS[kind]), "a string", text)
    return well_formed(text)


def schema() -> Schema:
    part: dict[str, Any] = {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}},
        "required": ["type", "text"],
    }
    message = {
        "type": "object",
        "properties": {
            "role": {"type": "string", "enum": list(ROLES)},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]},
        },
        "required": ["role", "content"],
    }
    return {"type": "array", "items": message, "minItems": 1}
