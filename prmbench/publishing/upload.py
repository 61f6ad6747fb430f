"""Sends a plan to the hub as one commit, and turns the hub's refusals into one line each.

The token comes from the environment or from `hf auth login`, and is never printed. What a failed call has uploaded is
not sent again by the next one, since the hub knows large files by their hash; nothing shows before the commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import prmbench
from prmbench.core.records import RetryError, UserError
from prmbench.core.redaction import MASK, first_line, one_line
from prmbench.publishing.plan import Plan, PushFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

LOGIN = "run `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)"
AGAIN = "give the same command again later; what was uploaded is not sent twice"


def find_token() -> str | None:
    """Returns the token of the environment or of the hub's login, or None. Raises UserError."""
    from huggingface_hub import errors, get_token

    exchange_error: type[Exception] = getattr(errors, "OIDCError", OSError)  # older clients cannot exchange tokens
    try:
        return get_token()
    except (exchange_error, OSError) as error:
        raise UserError(f"the hub's token cannot be read ({first_line(error)}); {LOGIN}") from error


def upload(plan: Plan, token: str | None, *, force: bool = False) -> str:
    """Uploads the files of a plan as one commit and returns the address of the commit or pull request.

    Args:
        plan: What to upload.
        token: The hub's token.
        force: Whether files of the repository that have other content may be replaced.

    Raises:
        UserError: There is no token, or the hub refuses; a file would be replaced; the repository is public though a
            private one is asked for.
        RetryError: The hub cannot be reached, is busy, or the branch changed meanwhile.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # what matters is said here, in one line
    if not token:
        raise UserError(f"push: there is no token for the hub; {LOGIN}")
    api = HfApi(token=token, library_name="prmbench", library_version=prmbench.__version__)
    with one_line_errors(plan, token):
        head = _prepare_repository(api, plan)
        if not plan.create_pr and not force:
            _check_nothing_is_replaced(api, plan)
        commit = api.create_commit(
            plan.repo,
            [
                CommitOperationAdd(file.path, str(file.content) if isinstance(file.content, Path) else file.content)
                for file in plan.files
            ],
            commit_message=plan.message,
            repo_type=plan.repo_type,
            revision=plan.revision,
            create_pr=plan.create_pr,
            parent_commit=head,
        )
    return str(commit.pr_url or commit.commit_url)


def _prepare_repository(api: HfApi, plan: Plan) -> str | None:
    """Makes the repository and the branch where they are missing, and returns the branch's newest commit."""
    if not plan.create_pr:
        api.create_repo(plan.repo, private=plan.private or None, repo_type=plan.repo_type, exist_ok=True)
    info = api.repo_info(plan.repo, repo_type=plan.repo_type)
    if plan.private and not info.private:
        raise UserError(f"--private: {plan.repo} is public; make it private on its settings page, or choose another")
    if plan.revision == "main":
        return info.sha
    if not plan.create_pr:
        api.create_branch(plan.repo, branch=plan.revision, repo_type=plan.repo_type, exist_ok=True)
    return api.repo_info(plan.repo, repo_type=plan.repo_type, revision=plan.revision).sha


def _check_nothing_is_replaced(api: HfApi, plan: Plan) -> None:
    from huggingface_hub.hf_api import RepoFile

    ours = {file.path: file for file in plan.files}
    theirs = api.get_paths_info(plan.repo, list(ours), revision=plan.revision, repo_type=plan.repo_type)
    changed = [t.path for t in theirs if isinstance(t, RepoFile) and not _is_same(ours[t.path], t)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{plan.repo} has another {changed[0]}{more} on {plan.revision}; pass --force to replace it, or --create-pr"
        )


def _is_same(file: PushFile, theirs: RepoFile) -> bool:
    """Whether the repository's file has our content: by its SHA-256 if it is a large one, else by git's hash."""
    if theirs.size != file.size:
        return False
    is_large = theirs.lfs is not None
    digest = hashlib.sha256() if is_large else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    if isinstance(file.content, bytes):
        digest.update(file.content)
    else:
        with file.content.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest() == (theirs.lfs.sha256 if theirs.lfs is not None else theirs.blob_id)


@contextmanager
def one_line_errors(plan: Plan, token: str) -> Iterator[None]:
    """Turns errors of the hub's client into one line: what is wrong, and what to do. Raises UserError or RetryError."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    http_error: type[Exception] = HfHubHTTPError.__bases__[
        0
    ]  # of whichever HTTP library this version of the client uses
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("push: HF_HUB_OFFLINE is set, so the hub may not be asked; unset it") from error
    except HfHubHTTPError as error:
        raise _refusal(error, plan, token) from None  # the client's own text may repeat a header
    except (http_error, ConnectionError, TimeoutError, RuntimeError) as error:
        reason = _without_token(first_line(error), token)
        raise RetryError(f"push: the hub cannot be reached ({reason}); {AGAIN}") from None
    except ValueError as error:  # it found the card's metadata, or a name, invalid
        raise UserError(f"push: the hub's client refuses: {_without_token(first_line(error), token)}") from None


def _refusal(error: HfHubHTTPError, plan: Plan, token: str) -> UserError | RetryError:
    status, repo = error.response.status_code, plan.repo
    message = _without_token(error.server_message or "", token)
    said = f" ({message})" if message else ""
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return RetryError(f"push: the hub is busy, status {status}{said}; {AGAIN}")
    if status in (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED):
        return RetryError(f"push: {repo} changed while this ran{said}; give the same command again")
    if status == HTTPStatus.UNAUTHORIZED:
        return UserError(f"push: the hub does not accept the token{said}; {LOGIN}")
    if status == HTTPStatus.FORBIDDEN:
        return UserError(f"push: the token may not write to {repo}{said}; use one that may, or --create-pr")
    if status == HTTPStatus.NOT_FOUND:
        return UserError(f"push: {repo} or its branch {plan.revision} is not there, or not for this token{said}")
    return UserError(f"push: the hub refuses, status {status}{said}")


def _without_token(text: str, token: str) -> str:
    return one_line(text.replace(token, MASK))
