"""Fields of which only matters whether the client filled them in."""

from __future__ import annotations

from dataclasses import dataclass

from rrtf_serve.api import fields
from rrtf_serve.api.errors import FieldPath
from rrtf_serve.api.fields import Asked, Rule, Verdict
from rrtf_serve.api.kinds import Schema


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""

    def check(self, value: object, path: FieldPath) -> object:  # noqa: ARG002  # of the protocol
        return value

    def schema(self) -> Schema:
        return {}


def refused_unless_empty(reason: str) -> Rule:
    """`reason`: what to do instead."""

    def rule(asked: Asked) -> Verdict:
        if not asked.value:
            return fields.NEUTRAL
        return Verdict(fields.Decision.REFUSED, reason)

    return rule
