"""A chat model behind an OpenAI-compatible endpoint: vLLM, Ollama, `transformers serve`, hosted.

Nothing that a server sends is copied into our messages, and keys are read from the environment and
never written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field

from attacks.core.errors import BadInput

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Endpoints that fail this often before anything came back are taken to be away.
_AWAY = 3


class Reply(NamedTuple):
    """What a model says, and what that cost."""

    text: str
    tokens: Mapping[str, int]
    """Of the prompt and of the completion; empty where the server does not say."""


class EndpointError(Exception):
    """A request that failed; the message is one line."""

    def __init__(self, reason: str, *, rejected: bool = False) -> None:
        super().__init__(reason)
        self.rejected = rejected
        """Whether the server objects to the form of the request."""


@dataclass(frozen=True)
class Endpoint:
    """Address of a model, and how to query it."""

    model: str
    url: str = ""
    """Base URL; empty: OPENAI_BASE_URL."""
    key: str = "OPENAI_API_KEY"
    """Name of the environment variable with the key."""
    tries: Annotated[int, Field(ge=1)] = 4
    """Attempts for a failing request, with growing pauses."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds until a request times out."""
    parallel: Annotated[int, Field(ge=1)] = 4
    """Number of concurrent requests."""

    def connect(self, who: str) -> Callable[..., Reply]:
        """A function of messages, `max_tokens` and further fields that asks for a greedy answer.

        It may be called from several threads, and raises `EndpointError`.

        Args:
            who: what needs the endpoint, for messages.

        Raises:
            BadInput: the package is missing, or no address is given, or a wrong one.
        """
        # The package itself would send to its makers' servers what nobody meant to leave here.
        address = self.url or os.environ.get("OPENAI_BASE_URL")
        if not address:
            raise BadInput(
                f"{who}: no address is given for the model '{self.model}'; give url=..., or set "
                "OPENAI_BASE_URL"
            )
        try:
            import openai
        except ImportError as error:
            raise BadInput(
                f"{who} needs the package openai: pip install 'reroute-bench[judges]'"
            ) from error
        try:
            client = openai.OpenAI(
                api_key=os.environ.get(self.key) or "none",
                base_url=address,
                max_retries=self.tries - 1,
                timeout=self.timeout,
            )
        except Exception as error:
            raise BadInput(f"{who}: '{address}' is not a URL") from error

        def ask(messages: Sequence[Mapping[str, str]], *, max_tokens: int, **more: Any) -> Reply:
            try:
                reply = client.chat.completions.create(
                    model=self.model,
                    messages=messages,  # type: ignore[arg-type]
                    temperature=0,
                    max_tokens=max_tokens,
                    **more,
                )
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                reason = f"HTTP {error.status_code}: is {self.key} set, and may it?"
                raise EndpointError(reason) from error
            except openai.APIStatusError as error:
                kinds = (openai.BadRequestError, openai.UnprocessableEntityError)
                reason = f"{type(error).__name__}, HTTP {error.status_code}"
                raise EndpointError(reason, rejected=isinstance(error, kinds)) from error
            except openai.APIError as error:
                raise EndpointError(type(error).__name__) from error
            except ValueError as error:
                raise EndpointError("a reply that is not JSON") from error
            used = reply.usage
            return Reply(
                (reply.choices[0].message.content or "") if reply.choices else "",
                {"prompt": used.prompt_tokens, "completion": used.completion_tokens}
                if used
                else {},
            )

        return ask


def ask_all(
    ask: Callable[[Item], Result | str], items: Sequence[Item], *, parallel: int, who: str
) -> Iterator[tuple[int, Result | str]]:
    """Indices of `items` with what came of each, as it comes; a string is why nothing did.

    Raises:
        BadInput: the first few all failed.
    """
    pool = ThreadPoolExecutor(parallel)
    try:
        waiting = {pool.submit(ask, item): at for at, item in enumerate(items)}
        answered, failed = False, 0
        for done in as_completed(waiting):
            said = done.result()
            yield waiting[done], said
            answered |= not isinstance(said, str)
            failed += isinstance(said, str)
            if failed >= _AWAY and not answered:
                raise BadInput(f"{who} does not answer ({said}); judgements so far are kept")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
