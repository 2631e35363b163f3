"""Which commit of the Hugging Face hub something comes from, and refusing what names none."""

import os
import re

REQUIRE = "IAD_EXT_REQUIRE_REVISION"  # set to 1, every hub source must name its commit


def is_commit(revision: str | None) -> bool:
    """Whether `revision` is a full commit, 40 hexadecimal digits, and no branch or tag, which may move."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def refuse_unpinned(source: str, revision: str | None, *, address: str, require: bool) -> None:
    """Refuse a source on the hub without a full commit, where `require` or the environment asks for one.

    Args:
        source: how to write it down with a commit, for the message: `hf-hub:owner/name@COMMIT`.
        revision: what was asked for.
        address: its page on huggingface.co, for the message: `owner/name`, or `datasets/owner/name`.
        require: asked for by an argument; the environment variable `IAD_EXT_REQUIRE_REVISION=1` asks too.

    Raises:
        ValueError: names the source, and where its commits are listed.
    """
    if is_commit(revision) or not (require or os.environ.get(REQUIRE, "0") not in ("", "0")):
        return
    raise ValueError(
        f"a full commit is required of what comes from the hub, got {revision or 'none'}: write {source} with one of "
        f"the 40-digit commits that https://huggingface.co/{address}/commits/main lists "
        f"(required by require_revision or {REQUIRE})"
    )
