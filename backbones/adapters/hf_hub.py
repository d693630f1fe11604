"""Weights from the Hugging Face hub: the local cache first, and without network one clear line,
quickly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from cliptex_common.errors import UserError, first_line

T = TypeVar("T")
TIMEOUT = 3.0  # seconds until the hub counts as unreachable


def hub_file(repo: str, files: Sequence[str], *, backbone: str, weights: bool = True) -> Path:
    """The first of ``files`` that the hub repository has, from the local cache or downloaded.

    Args:
        weights: whether the user may pass the file as ``--weights FILE`` instead.

    Raises:
        UserError: the hub cannot be reached or refuses; says which file to put where.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{backbone!r}: {first_line(error)}") from error
    for file in files:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    or_pass = "pass it with --weights FILE, or " if weights else ""
    advice = (
        f"fetch {files[0]} of https://huggingface.co/{repo} elsewhere and {or_pass}copy the hub"
        f" cache to {constants.HF_HUB_CACHE}"
    )
    if not hub_reachable():
        raise UserError(f"no network for the files of {backbone!r}: {advice}")
    for file in files:
        try:
            return Path(hf_hub_download(repo, file, etag_timeout=TIMEOUT))
        except LocalEntryNotFoundError as error:  # the network failed; an EntryNotFoundError too
            raise UserError(f"no network for the files of {backbone!r}: {advice}") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"the hub refuses the files of {backbone!r} ({type(error).__name__}): {advice}"
            ) from error
    raise UserError(
        f"hub repository {repo} has none of {', '.join(files)} for {backbone!r}; pass weights with"
        " --weights FILE"
    )


def load_tokenizer(load: Callable[..., T], repo: str, backbone: str) -> T:
    """``load`` a tokenizer from the local cache, else from the hub.

    Args:
        load: takes ``local_files_only``.

    Raises:
        UserError: it is neither in the local cache nor reachable.
    """
    try:
        return load(local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        if Path(repo).is_dir() or not hub_reachable():
            raise UserError(
                f"no tokenizer for {backbone!r} ({first_line(error)}): copy the hub cache of"
                f" {repo} to {constants.HF_HUB_CACHE}"
            ) from error
    return load()


def hub_reachable() -> bool:
    """Whether the hub answers within a few seconds; its own client would retry for half a
    minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # the client's exceptions differ between its versions
        return False
    return True
