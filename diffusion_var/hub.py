"""The Hugging Face hub: files come from it by way of its cache, folders go to it in one commit.

Whatever goes wrong there is an InputError in the caller's words: the transport's own errors are no OSErrors, and differ
from version to version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import InputError

#: From the reason to the sentence that the user reads.
Sentence = Callable[[str], str]


def fetch_file(
    repo_id: str,
    filename: str,
    sentence: Sentence,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """One file of a repository, in the hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                repo_id,
                filename,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        )
    except Exception as error:
        raise InputError(sentence(type(error).__name__)) from error


def fetch_snapshot(repo_id: str, patterns: Sequence[str], sentence: Sentence, revision: str | None = None) -> Path:
    """The folder of a repository in the hub's cache, with the files that the patterns name."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        raise InputError(sentence(type(error).__name__)) from error


def push_folder(
    repo_id: str,
    folder: str | Path,
    message: str,
    sentence: Sentence,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a folder (its repository is made if absent); the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(sentence(f"{type(error).__name__}: {reason}")) from error
    return str(commit)
