"""Files that are written whole or not at all, and files of others that are read with care."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

MOST_JSON = (
    16 * 2**20
)  # bytes; the longest configurations that timm writes, with 22,000 class names, have two million
MOST_YAML = 2**20  # characters; settings have two thousand
MOST_DEPTH = 32  # of YAML; settings have two levels

_BEGIN = (
    yaml.BlockMappingStartToken
    | yaml.BlockSequenceStartToken
    | yaml.FlowMappingStartToken
    | yaml.FlowSequenceStartToken
)
_END = yaml.BlockEndToken | yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken


def write_whole(path: Path, content: bytes) -> None:
    """Write aside, sync to the disk, rename into place: a reader sees the old file or the new one."""
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_whole(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that others may have written.

    Raises:
        ValueError: it is no JSON, larger than `MOST_JSON`, or nested deeper than any that is meant to be read.
    """
    if path.stat().st_size > MOST_JSON:
        raise ValueError(
            f"expected at most {MOST_JSON >> 20} MiB of JSON, {path} has {path.stat().st_size} bytes"
        )
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected JSON, but {path} cannot be read: {error}") from error


def parse_json(text: str) -> Any:
    """Parse JSON that others may have written; whatever is wrong with it is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML that others may have written: plain values only.

    Tags, which could name code, and aliases, of which a page can stand for gigabytes, are refused before a value is
    built.

    Raises:
        ValueError: it is no such YAML.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"expected at most {MOST_YAML >> 20} MiB of YAML, got {len(text)} characters")
    depth = 0
    try:
        for token in yaml.scan(text):
            depth += isinstance(token, _BEGIN) - isinstance(token, _END)
            if depth > MOST_DEPTH:
                raise ValueError("the YAML is nested too deeply")
            if isinstance(token, yaml.TagToken | yaml.AnchorToken | yaml.AliasToken):
                kind = type(token).__name__.removesuffix("Token").lower()
                raise ValueError(
                    f"expected plain values, got the {kind} {token.value!r} in line {token.start_mark.line + 1}"
                )
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def refuse_outside(path: Path, folder: Path) -> None:
    """Refuse a file of `folder` that is a link to somewhere else.

    In the Hugging Face hub's cache, a snapshot's files are links to blobs beside it; those are followed.

    Raises:
        ValueError: where the link leads, and what to do.
    """
    folder = folder.resolve()
    inside = folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not path.resolve().is_relative_to(inside):
        raise ValueError(
            f"expected files of {folder} itself, but {path.name} is a link to {path.resolve()}; copy that file there"
        )


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
