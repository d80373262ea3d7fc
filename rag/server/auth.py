"""Who is asking: bearer tokens, compared in constant time, and the filter that binds each tenant.

A tokens file is YAML, one line per token, under the SHA-256 of the token so that the file holds no secret:

    9f86d081884c7d65...: {tenant: acme, where: {meta.tenant: acme}}
    60303ae22b998861...: {tenant: globex, where: {source: {ge: "globex/", lt: "globex0"}}}
    fd61a03af4f77d87...: {tenant: auditors, where: all}

A tenant without a filter, or with an empty one, sees nothing; `all` is the word for everything. A filter may name
`source`, `doc_id`, `title` and `meta.NAME`, not `section`: selectors take in neighbours of a chunk, so what a tenant
may see is decided by the document.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from rag.errors import ConfigError, UsageError
from rag.protocols import Filter

__all__ = ["NOTHING", "OPERATOR", "Caller", "Tokens", "is_loopback"]

NOTHING: Filter = {"or": []}
"""The filter that no document passes."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEYS = ("tenant", "where")
_BEARER = "bearer"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A tenant and its filter; `where` None sees everything. The operator's `tenant` is ""."""

    tenant: str = ""
    where: Filter | None = field(default_factory=lambda: NOTHING)

    @property
    def is_operator(self) -> bool:
        """True for the holder of RAG_TOKEN, and for everybody where no token is asked for."""
        return not self.tenant

    def within(self, where: Filter | None) -> Filter | None:
        """The filter of a request, inside of the tenant's own."""
        if self.where is None:
            return where or None
        return {"and": [self.where, where]} if where else self.where


OPERATOR = Caller(where=None)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Digest of a token -> its caller. None at all: the server is open, and listens on loopback only."""

    callers: Mapping[str, Caller] = field(default_factory=dict)

    @classmethod
    def load(cls, operator_token: str | None, tenants: Path | None = None) -> Tokens:
        """From RAG_TOKEN and a tokens file; ConfigError names what is wrong."""
        callers = _read(tenants) if tenants else {}
        if operator_token is not None:
            if not operator_token.strip():
                raise UsageError("RAG_TOKEN is set and empty. Unset it, or give it a long random text")
            if not operator_token.isascii() or operator_token != operator_token.strip():
                raise UsageError("RAG_TOKEN must be ASCII without spaces around it, since it travels in a header")
            callers = {**callers, _digest(operator_token): OPERATOR}
        return cls(callers=callers)

    @property
    def required(self) -> bool:
        """True when a request needs a token."""
        return bool(self.callers)

    @property
    def narrows(self) -> bool:
        """True when there is a tenant that may not see everything."""
        return any(caller.where is not None for caller in self.callers.values())

    def caller(self, authorization: str | None) -> Caller | None:
        """Who sent this header; None when nobody may be let in. Every digest is compared, whichever fits."""
        if not self.required:
            return OPERATOR
        scheme, _, token = (authorization or "").partition(" ")
        given, found = _digest(token.strip()), None
        for digest, caller in self.callers.items():
            if hmac.compare_digest(digest, given):
                found = caller
        return found if scheme.lower() == _BEARER else None

    def check_host(self, host: str) -> None:
        """UsageError when an open server would be reachable from other machines."""
        if not self.required and not is_loopback(host):
            raise UsageError(
                f"--host {host} can be reached from other machines, and no token is asked for. "
                "Set RAG_TOKEN (or give --tokens FILE), or use --host 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """True for `localhost` and the addresses of this machine to itself."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, Caller]:
    import yaml

    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--tokens {path}: cannot be read: {error}") from error
    if not isinstance(rows, Mapping) or not rows:
        raise ConfigError(f"--tokens {path}: expected lines such as SHA256: {{tenant: NAME, where: FILTER}}")
    callers: dict[str, Caller] = {}
    scopes: dict[str, Filter | None] = {}
    for number, (digest, row) in enumerate(rows.items(), start=1):
        caller = _caller(digest, row, f"--tokens {path}, entry {number}")
        if scopes.setdefault(caller.tenant, caller.where) != caller.where:
            raise ConfigError(
                f"--tokens {path}: tenant {caller.tenant!r} has two tokens with unlike filters; a tenant has one scope"
            )
        callers[str(digest).lower()] = caller
    return callers


def _caller(digest: object, row: object, place: str) -> Caller:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest.lower()):
        raise ConfigError(
            f"{place}: the key must be the SHA-256 of the token, 64 hex digits in quotes. "
            "Make it with: printf %s TOKEN | sha256sum"
        )
    if not isinstance(row, Mapping) or not isinstance(row.get("tenant"), str) or not row["tenant"].strip():
        raise ConfigError(f"{place}: expected {{tenant: NAME, where: FILTER}}, not {row!r}")
    if unknown := [key for key in row if key not in _KEYS]:
        raise ConfigError(f"{place}: unknown key {unknown[0]!r}; keys: {', '.join(_KEYS)}")
    return Caller(tenant=row["tenant"], where=_scope(row.get("where"), place))


def _scope(where: Any, place: str) -> Filter | None:
    from rag.store.filters import compile_filter, names_documents_only

    if where == "all":
        return None
    if not where:
        return NOTHING
    if not isinstance(where, Mapping):
        raise ConfigError(f"{place}: where must be a filter or the word all, not {where!r}")
    try:
        compile_filter(where)
    except (ConfigError, OverflowError) as error:
        raise ConfigError(f"{place}: {error}") from error
    if not names_documents_only(where) or not _narrows(where):
        raise ConfigError(
            f"{place}: the filter {dict(where)!r} must name source, doc_id, title or meta.NAME, and no section: a "
            "tenant sees whole documents. For everything write where: all"
        )
    return where


def _narrows(where: Filter) -> bool:
    """False when a filter holds always because one of its lists or parts is empty, such as {"and": []}."""

    def sound(name: str, rule: Any) -> bool:
        if name == "not":
            return bool(rule) and _narrows(rule)
        if name in ("and", "or"):
            parts: Sequence[Any] = rule
            return bool(parts) and all(bool(part) and _narrows(part) for part in parts)
        return True

    return all(sound(name, rule) for name, rule in where.items())
