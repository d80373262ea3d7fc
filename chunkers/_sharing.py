"""Services of a plugin, and of the plugins inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["needs", "with_services"]


def with_services(plugin: Any, services: Mapping[str, Any]) -> Any:
    """The plugin with these services in place of its own, and so its nested plugins."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(plugin):
        value = getattr(plugin, field.name)
        if field.metadata.get("service") and field.name in services and value is not None:
            changes[field.name] = services[field.name]
        elif "nested" in field.metadata and value is not None:
            many = isinstance(value, tuple)
            inner = [with_services(one, services) for one in (value if many else (value,))]
            changes[field.name] = tuple(inner) if many else inner[0]
    return dataclasses.replace(plugin, **changes) if changes else plugin


def needs(plugin: Any, service: str) -> bool:
    """True when the plugin, or one inside it, was given that service."""
    values = [(field, getattr(plugin, field.name)) for field in dataclasses.fields(plugin)]
    if any(field.metadata.get("service") and field.name == service and value is not None for field, value in values):
        return True
    inner = [value for field, value in values if "nested" in field.metadata and value is not None]
    return any(needs(one, service) for value in inner for one in (value if isinstance(value, tuple) else (value,)))
