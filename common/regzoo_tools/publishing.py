"""Publishing a bundle on the Hugging Face Hub, through MONAI's own function."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path

from regzoo.errors import RegZooError, bad_file
from regzoo_tools.bundle import bundle_version, known_bundle
from regzoo_tools.linked_pages import PICTURES, Link, rewrite
from regzoo_tools.packing import stage
from regzoo_tools.verification import as_table, failed, verify


def publish(
    bundle: str | PathLike[str], repo: str, token: str | None = None, version: str | None = None, private: bool = True
) -> str:
    """Push a packaged bundle to the Hugging Face Hub, unless a check of the packaged copy fails; prints the checks.

    Arguments are those of the command `regzoo_tools.commands.publish`.

    Returns:
        The address of the repository.

    Raises:
        RegZooError: huggingface_hub is not installed, the repository has that version already, a check failed, or the
            Hub refused.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise RegZooError("huggingface_hub is not installed, which publishing needs; pip install huggingface_hub")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repo)):
        raise RegZooError(f"--repo {repo}: is not the name of a repository; write organisation/name")
    token = None if token is None else str(token)
    found = known_bundle(bundle)
    from huggingface_hub.constants import ENDPOINT
    from monai.bundle import push_to_hf_hub

    address, tag = f"{ENDPOINT}/{repo}", str(version or bundle_version(found))
    if tag in tags(repo, token):
        fix = "raise the version in configs/metadata.json, or give another --version"
        raise RegZooError(f"{repo}: has the version {tag} already; {fix}")
    with tempfile.TemporaryDirectory(prefix="regzoo-") as folder:
        staged = stage(found, Path(folder))
        absolute_links(staged, address)
        rows = verify(staged)
        print(as_table(rows))
        if names := failed(rows):
            raise RegZooError(f"{found.root}: not published, because these checks failed: {', '.join(names)}")
        with errors_in_one_line(repo, token):
            push_to_hf_hub(
                repo=repo,
                name=staged.name,
                bundle_dir=str(staged.parent),
                token=token,
                version=tag,
                private=private,
                commit_message=f"{staged.name} {tag}",
            )
    return address


def tags(repo: str, token: str | None) -> set[str]:
    """The tags of a repository; empty if it does not exist."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with errors_in_one_line(repo, token):
        try:
            return {tag.name for tag in HfApi(token=token).list_repo_refs(repo).tags}
        except RepositoryNotFoundError:
            return set()


@contextmanager
def errors_in_one_line(repo: str, token: str | None) -> Iterator[None]:
    """Turn errors of the Hub into one line without the token."""
    try:
        yield
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        for secret in (token, os.environ.get("HF_TOKEN")):
            message = message.replace(secret, "***") if secret else message
        raise bad_file(repo, f"the Hub refused it ({message})", "check the name, the token and the network") from None


def absolute_links(staged: Path, address: str) -> None:
    """Let ``docs/README.md`` link to files by their address on the Hub: MONAI copies it to the repository's top."""
    page = staged / "docs" / "README.md"

    def absolute(link: Link) -> str:
        path = Path(os.path.normpath(page.parent / link.path)).relative_to(staged).as_posix()
        kind = "resolve" if Path(path).suffix.lower() in PICTURES else "blob"
        return str(replace(link, path=f"{address}/{kind}/main/{path}"))

    text = rewrite(page.read_text(encoding="utf-8"), absolute)
    page.write_text(text, encoding="utf-8", newline="\n")
