"""
Log ids and event ids in text that a person pastes or types, in any form.

An id is found with or without its log type, in capitals, with the letters that Crockford's
base32 takes for digits (O for 0, I and L for 1: https://www.crockford.com/base32.html), as a
UUID with or without hyphens, in an address, between quotes, in the middle of a sentence.
``LogId.parse`` stays strict: this is for people, not for programs.

This module queries no database. An id without its log type is a UUID, and not yet a log.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote
from uuid import UUID

from eventlogs.conf import MAX_LOG_TYPE_LENGTH, MAX_VERSION
from eventlogs.exceptions import InvalidLogId, RegistrationError
from eventlogs.ids import LogId, check_log_type

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, as TypeIDs have it
LENIENT: Final = str.maketrans("oil", "011")
MINUS: Final = "\N{MINUS SIGN}"  # which is no dash to Unicode, and looks like one
WHOLE: Final = 26  # characters; the first one has 3 bits, the others 5 each
SHORTEST: Final = 6  # characters of a part of an id: 30 bits, or 24 of a UUID's digits
READ: Final = 10_000  # characters of a text that are read
MOST: Final = 50  # ids of a text that are returned

TYPE: Final = rf"[a-z](?:[a-z_]{{0,{MAX_LOG_TYPE_LENGTH - 2}}}[a-z])?"
TYPED: Final = rf"(?P<type>{TYPE})_(?P<typed>[0-7oil][0-9a-z]{{{WHOLE - 1}}})"
BARE: Final = rf"(?P<bare>[0-7oil][0-9a-z]{{{WHOLE - 1}}})"
HEX: Final = "(?P<uuid>[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12})"
INDEX: Final = r"(?::(?P<index>[0-9]{1,10})(?![0-9a-z]))?"
ID: Final = re.compile(
    rf"(?<![0-9a-z])(?:{TYPED}|{HEX}|{BARE})(?![0-9a-z]){INDEX}", re.ASCII | re.IGNORECASE
)
# The part of an admin address that names an event of the log.
EVENT: Final = re.compile(r"[^\s#]*[?&#]event[=-](?P<index>[0-9]{1,10})(?![0-9a-z])", re.ASCII)
PART: Final = re.compile(rf"(?:(?P<type>{TYPE})_)?(?P<part>[0-9a-z]{{1,{WHOLE - 1}}})", re.ASCII)
HEX_PART: Final = re.compile("[0-9a-f][0-9a-f-]*[0-9a-f]", re.ASCII)
GROUPS: Final = (8, 12, 16, 20)  # digits of a UUID before its hyphens
AROUND: Final = re.compile(r"\A[\W_]+|[\W_]+\Z")  # spaces, quotes, brackets, an ellipsis


@dataclass(frozen=True, slots=True)
class Named:
    """A log that a text names, and the index of an event if the text names one."""

    uuid: UUID
    log_type: str | None = None  # None if the text has none
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Beginning:
    """The range of UUIDs whose ids begin with a text."""

    lowest: UUID
    highest: UUID
    log_type: str | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The end of ids that end with a text: ``digits`` of the UUID, ``text`` of a log id."""

    digits: str  # hexadecimal, the whole ones
    text: str = ""  # of the log id; a character of it may have bits beside the whole digits
    log_type: str | None = None


def names_in(text: str) -> list[Named]:
    """Return the logs and events whose complete ids are in a text, in order, each once."""
    text = _plain(text)
    # Django's admin writes "_5F" for "_" and "_3A" for ":" in its addresses.
    of_admin = text.replace("_5F", "_").replace("_3A", ":")
    found = list(_names(text)) or list(_names(of_admin))
    if not found and (match := ID.fullmatch("".join(AROUND.sub("", text).split()))):
        found = [each for each in [_named(match)] if each]  # a line break came in between
    return list(dict.fromkeys(found))[:MOST]


def log_id(text: str) -> LogId:
    """
    Read one log id with its log type: ``PAYMENT_01H455VB4PEX5VSKNK084SN02Q``, or an event's id.

    Raise InvalidLogId if the text is anything else, or has anything else in it.
    """
    match = ID.fullmatch(_bare(text))
    named = _named(match) if match else None
    if named is None:
        return LogId.parse(text)  # raises with the reason
    if named.log_type is None:
        raise InvalidLogId(
            "This id lacks its log type. Write it in front, as in "
            f"payment_{LogId.stored('x', named.uuid)[2:]}; the admin's search finds the log "
            "without it."
        )
    return LogId(named.log_type, named.uuid)


def beginnings(text: str) -> list[Beginning]:
    """Return the ranges of ids that can begin with a text: log ids and UUIDs."""
    found = []
    text = _bare(text).lower()
    match = PART.fullmatch(text)
    if match and (match["type"] or len(match["part"]) >= SHORTEST):
        part = match["part"].translate(LENIENT)
        if part[0] in "01234567" and _is_base32(part):
            found.append(_between(_number(part), 5 * len(part) - 2, match["type"]))
    if (digits := _digits(text, from_the_end=False)) is not None:
        found.append(_between(int(digits, 16), 4 * len(digits), None))
    return found


def ends(text: str) -> list[End]:
    """Return the ends of ids that a text can be: of log ids and UUIDs."""
    found = []
    text = _bare(text).lower()
    match = PART.fullmatch(text)
    if match and len(match["part"]) >= SHORTEST:
        part = match["part"].translate(LENIENT)
        if _is_base32(part):
            whole = len(part) * 5 // 4
            digits = f"{_number(part) & (1 << 4 * whole) - 1:0{whole}x}"
            found.append(End(digits, part, match["type"]))
    if (tail := _digits(text, from_the_end=True)) is not None:
        found.append(End(tail))
    return found


def _plain(text: str) -> str:
    """Return a text without invisible characters, and with plain hyphens and letters."""
    found = []
    for character in unicodedata.normalize("NFKC", unquote(text[:READ])):
        category = unicodedata.category(character)
        if category == "Pd" or character == MINUS:
            found.append("-")
        elif category != "Cf":  # marks of direction, soft hyphens, spaces without a width
            found.append(character)
    return "".join(found)


def _bare(text: str) -> str:
    """Return a text without the spaces and punctuation around it."""
    return AROUND.sub("", _plain(text))


def _names(text: str) -> Iterator[Named]:
    for match in ID.finditer(text):
        named = _named(match)
        if named is None:
            continue
        if named.index is None and (event := EVENT.match(text, match.end())):
            named = Named(named.uuid, named.log_type, _index(event["index"]))
        yield named


def _named(match: re.Match[str]) -> Named | None:
    index = _index(match["index"])
    if match["uuid"]:
        return Named(UUID(match["uuid"]), None, index)
    text = (match["typed"] or match["bare"]).lower().translate(LENIENT)
    if not _is_base32(text):
        return None
    log_type = match["type"].lower() if match["type"] else None
    try:
        if log_type is not None:
            check_log_type(log_type)
    except RegistrationError:
        return None
    return Named(UUID(int=_number(text)), log_type, index)


def _index(digits: str | None) -> int | None:
    if digits is None or int(digits) > MAX_VERSION:
        return None
    return int(digits)


def _is_base32(text: str) -> bool:
    return all(character in ALPHABET for character in text)


def _number(text: str) -> int:
    value = 0
    for character in text:
        value = value << 5 | ALPHABET.index(character)
    return value


def _between(value: int, bits: int, log_type: str | None) -> Beginning:
    rest = 128 - bits
    lowest = value << rest
    return Beginning(UUID(int=lowest), UUID(int=lowest | (1 << rest) - 1), log_type)


def _digits(text: str, *, from_the_end: bool) -> str | None:
    """Return the digits of a part of a UUID, or None if its hyphens are misplaced."""
    if not HEX_PART.fullmatch(text):
        return None
    digits = text.replace("-", "")
    if not SHORTEST <= len(digits) < 32:
        return None
    before = 32 - len(digits) if from_the_end else 0
    places = [place - before for place in GROUPS if before < place < before + len(digits)]
    hyphens = [place for place, character in enumerate(text) if character == "-"]
    seen = [len(text[:place].replace("-", "")) for place in hyphens]
    return digits if seen in ([], places) else None
