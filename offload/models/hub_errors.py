"""What can go wrong between here and a Hugging Face hub, each in one line with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from offload.errors import FinemoeError, ModelNotFound, PullError

GO_ON_HINT = "run the same command again: it goes on where it stopped"
_LOGIN = "run 'hf auth login' or set HF_TOKEN"


class BrokenOff(PullError):
    """A transfer that may be gone on with at once."""


@contextmanager
def hub_errors(repo: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Turns what huggingface_hub and its HTTP client raise within the block into one line and a hint."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # The base of all errors of the HTTP client, whichever huggingface_hub is built on.
    http_error: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except FinemoeError:
        raise
    except HFValidationError as error:
        raise ModelNotFound(f"'{repo}' cannot be the name of a hub repository", "write owner/name") from error
    except OfflineModeIsEnabled as error:
        raise PullError(
            f"{repo} cannot be asked for: HF_HUB_OFFLINE is set", "unset it, or use a model that is pulled already"
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(error, repo, revision, file) from error
    except http_error as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if file:
            raise BrokenOff(f"{file} of {repo} broke off: {reason}", GO_ON_HINT) from error
        raise PullError(
            f"the hub cannot be reached to look up {repo}: {reason}", "check the network, proxies and HF_ENDPOINT"
        ) from error


def _refusal(error: Any, repo: str, revision: str | None, file: str) -> FinemoeError:
    """The error for an answer of the hub that is not the wanted one."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return PullError(
            f"{repo} is gated: its owner gives access to those who ask for it",
            f"ask for access on the model's page on the hub, then {_LOGIN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{repo} has no revision '{revision}'", "name a branch, a tag or a whole commit hash")
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"the hub has no model '{repo}', or it is private", f"check the name; for a private model {_LOGIN}"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return PullError(f"{repo} lacks {file} that it lists", "name another revision")
    if status in (401, 403):
        return PullError(f"the hub refuses access to {repo} ({status})", f"the token may be wrong or old: {_LOGIN}")
    if status == 429 or status >= 500:
        return BrokenOff(f"the hub answers {status} for {file or repo}", "try again later")
    return PullError(f"the hub answers {status} for {file or repo}", "check HF_ENDPOINT")
