"""Webdataset folders (``wds_NAME``) from the Hugging Face hub, which resumes downloads itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cliptex_common.errors import UserError, first_line
from cliptex_common.files import sha256_file

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

REPOSITORIES = ("clip-benchmark/{}", "djghosh/{}_test")  # CLIP_benchmark's and DataComp's


def hub_files(name: str, train: bool = False) -> tuple[str, str, list[RepoSibling]]:
    """Repository, commit and files of the folder ``wds_NAME``.

    Args:
        train: with its training shards.
    Raises:
        UserError: there is no such repository, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    from backbones.adapters.common import hub_reachable

    if not hub_reachable():
        raise UserError(f"cannot download {name}: no network to the Hugging Face hub")
    names = [pattern.format(name.removesuffix("_test")) for pattern in REPOSITORIES]
    for repository in names:
        try:
            info = HfApi().dataset_info(repository, files_metadata=True)
        except RepositoryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise UserError(f"cannot read {repository} on the hub: {first_line(error)}") from error
        files = [
            file
            for file in info.siblings or []
            if file.rfilename[0] != "." and (train or not file.rfilename.startswith("train/"))
        ]
        return repository, info.sha or "main", files
    raise UserError(
        f"the hub has no dataset {' or '.join(names)}; see https://huggingface.co/clip-benchmark"
    )


def get_webdataset(name: str, to: Path, train: bool = False) -> Path:
    """Download ``wds_NAME`` into ``to`` and verify the sha256 of its shards; returns its folder.

    Raises:
        UserError: see ``hub_files``; or a shard is damaged, and is deleted.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    folder = to / name
    repository, commit, files = hub_files(name, train)
    try:
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            allow_patterns=[file.rfilename for file in files],
        )
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot download {repository} ({first_line(error)}); run the command again to resume"
        ) from error
    for file in files:
        path = folder / file.rfilename
        if file.lfs and sha256_file(path) != file.lfs.sha256:
            path.unlink()
            raise UserError(f"{path} was damaged and is deleted; run the command again")
    return folder
