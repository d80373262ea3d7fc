"""The client of OpenAI-compatible endpoints, for embedders and generators. The key comes from the environment only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rag.errors import RagError, missing_extra

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["open_client", "readable_errors"]

_RETRIES = 3


def open_client(base_url: str, *, timeout_seconds: float, purpose: str) -> OpenAI:
    """A client for `base_url`, else OPENAI_BASE_URL, else the provider's own address.

    Without OPENAI_API_KEY a placeholder is sent, since local servers need none.
    """
    try:
        from openai import OpenAI
    except ImportError as error:
        raise missing_extra("openai", "openai", purpose) from error
    return OpenAI(
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        base_url=base_url or os.environ.get("OPENAI_BASE_URL") or None,
        timeout=timeout_seconds,
        max_retries=_RETRIES,
    )


@contextmanager
def readable_errors(client: OpenAI, purpose: str) -> Iterator[None]:
    """Turns the client's errors into a RagError that names the address and what to do; never the key."""
    from openai import APIConnectionError, APIError, AuthenticationError, PermissionDeniedError

    try:
        yield
    except APIConnectionError as error:  # also raised for time-outs
        raise RagError(
            f"{purpose}: no answer from {client.base_url} ({error}). Check base_url or OPENAI_BASE_URL, and the server"
        ) from error
    except (AuthenticationError, PermissionDeniedError) as error:
        raise RagError(
            f"{purpose}: {client.base_url} refused the key. Set OPENAI_API_KEY in the environment"
        ) from error
    except APIError as error:
        raise RagError(f"{purpose}: {client.base_url} answered with an error: {error.message}") from error
