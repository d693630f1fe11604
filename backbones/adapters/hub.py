"""Weights from the Hugging Face hub: the local cache first, and without network one clear line,
quickly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from common.errors import UserError
from common.files import sha256_file

TIMEOUT = 3.0  # seconds until the hub counts as unreachable


def hub_file(repo: str, files: Sequence[str], *, backbone: str, weights: bool = True) -> Path:
    """The first of ``files`` that the hub repository has, downloaded unless it is in the local
    cache. ``weights``: whether ``--weights FILE`` could stand in for it.

    Raises:
        UserError: the hub cannot be reached or refuses; says which file to put where.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(
            f"{backbone!r}: {repo!r} is no name of a hub repository, such as timm/resnet18.a1_in1k"
        ) from None
    for file in files:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    by_hand = (
        "and pass it with --weights FILE, or copy the hub cache"
        if weights
        else "and copy the hub cache"
    )
    where = (
        f"fetch {files[0]} of https://huggingface.co/{repo} elsewhere {by_hand} to"
        f" {constants.HF_HUB_CACHE}"
    )
    if not hub_reachable():
        raise UserError(f"no network for the files of {backbone!r}: {where}")
    for file in files:
        try:
            return verified(Path(hf_hub_download(repo, file, etag_timeout=TIMEOUT)))
        except (
            LocalEntryNotFoundError
        ) as error:  # a kind of EntryNotFoundError that means: the network went away
            raise UserError(f"no network for the files of {backbone!r}: {where}") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"the hub refuses the files of {backbone!r} ({type(error).__name__}): {where}"
            ) from error
    raise UserError(
        f"hub repository {repo} has none of {', '.join(files)} for {backbone!r}; pass weights with"
        " --weights FILE"
    )


def verified(path: Path) -> Path:
    """A file that was downloaded. The hub names large ones by their sha256, and its cache keeps
    them under that name. Raises ``UserError`` where the content is another; the file goes."""
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256_file(blob) != blob.name:
        blob.unlink()
        raise UserError(
            f"{path.name} from the hub is not what it says (sha256 {blob.name[:16]}…); fetch it"
            " again"
        )
    return path


def hub_reachable() -> bool:
    """Whether the hub answers within a few seconds; asked first, since its client retries for half
    a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except (
        Exception
    ):  # the client library's own exceptions differ between its versions; any means: not reachable
        return False
    return True
