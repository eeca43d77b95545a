"""A template directory: subject.txt, body.txt and/or body.html, optionally template.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

import msgspec

from producer.message import Attachment, Template


class BadFolder(Exception):
    """The directory is no template; the message names the file and what would be right."""


class Defaults(msgspec.Struct, frozen=True, rename={"from_": "from"}, forbid_unknown_fields=True):
    """What ``template.toml`` may say; flags of the command go before it."""

    from_: str | None = None
    reply_to: list[str] = []
    bucket: str | None = None
    campaign: str | None = None
    tags: list[str] = []
    attachments: list[str] = []  # files beside it


class Folder(NamedTuple):
    """A template with its defaults."""

    template: Template
    defaults: Defaults


def read_folder(path: Path) -> Folder:
    """Read a template directory. Raises :class:`BadFolder`."""
    subject = _text(path / "subject.txt")
    if subject is None:
        raise BadFolder(f"{path / 'subject.txt'} is missing")
    text, html = _text(path / "body.txt"), _text(path / "body.html")
    if text is None and html is None:
        raise BadFolder(f"{path}: body.txt or body.html is needed")
    defaults = Defaults()
    toml = path / "template.toml"
    if toml.exists():
        try:
            defaults = msgspec.convert(tomllib.loads(toml.read_text("utf-8")), Defaults)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise BadFolder(f"{toml}: {error}") from None
    try:
        files = tuple(Attachment.from_path(path / name) for name in defaults.attachments)
    except OSError as error:
        raise BadFolder(f"{toml}: attachments: {error.strerror}: {error.filename}") from None
    template = Template(subject.strip(), text, html, files)
    return Folder(template, defaults)


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadFolder(f"{path}: {error}") from None
