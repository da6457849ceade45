"""Uploads a model folder to a hub, with huggingface_hub and its ways to find the user's token."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from estep.errors import ConfigError, SourceError


def check_access(name: str) -> None:
    """Check that a name is allowed, and that the hub knows the user's token, before anything is computed.

    Raises:
        ConfigError: the name is none of a repository, or there is no token.
        SourceError: the hub cannot be reached, or refuses the token.
    """
    from huggingface_hub import HfApi, get_token

    check_name(name)
    with _one_line(name):
        if get_token() is None:
            raise ConfigError(
                "no token for the hub; set HF_TOKEN, or log in with 'hf auth login' (a token that may write is needed)"
            )
        HfApi().whoami()


def check_name(name: str) -> None:
    """Check that a name is one of a repository.

    Raises:
        ConfigError: it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"'{name}' is no name of a repository; OWNER/NAME or NAME is expected, of letters, digits, '-', '_' and '.'"
        ) from error


def push(folder: Path, name: str, private: bool, revision: str | None) -> str:
    """Create a repository if it does not exist, and upload a folder to it in one commit.

    Args:
        private: whether a new repository is private.
        revision: a branch, which is created if it does not exist; None for the main one.

    Returns:
        The address of the repository.

    Raises:
        SourceError: the hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi

    from estep.models.loading import silence_logs

    api = HfApi()
    with _one_line(name), silence_logs():
        # Without a wish, what the owner's account or organization has set decides.
        repo = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo.repo_id).private:
            raise ConfigError(f"{name} exists and is public: make it private on the hub, or push without --private")
        if revision is not None:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=repo.repo_id, revision=revision, commit_message="Add a model trained with estep"
        )
    return str(repo)


def files_in(folder: Path) -> list[tuple[str, int]]:
    """The files that an upload would send, with their sizes in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.stat().st_size) for path in files]


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into errors on one line. They never hold the token."""
    from huggingface_hub import constants

    # Its own HTTP library's base error, which library that may be.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:
        yield
    except OfflineModeIsEnabled:
        raise SourceError(f"could not push to {name}: HF_HUB_OFFLINE is set; --dry-run needs no network") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise SourceError(f"the hub refuses the token{_token_source()} (401)") from None
        if status == 403:
            raise SourceError(f"the token{_token_source()} may not write to {name} (403)") from None
        reason = error.server_message or str(error).splitlines()[0]
        raise SourceError(f"could not push to {name}: {reason} ({status})") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise SourceError(
            f"could not push to {name}: {constants.ENDPOINT} cannot be reached ({_reason(error)}); --dry-run needs no "
            "network"
        ) from None
    except (
        ValueError,
        RuntimeError,
    ) as error:  # the hub refuses the card's metadata, or the upload in native code fails
        raise SourceError(f"could not push to {name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _token_source() -> str:
    return " in HF_TOKEN" if os.environ.get("HF_TOKEN") else ""
