"""Values of a policy that need more than a simple kind: windows, shares, members, secrets, times."""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfoNotFoundError

from yaml.nodes import MappingNode, Node, SequenceNode

from mailweir.contracts.job import BUCKET_ALIASES, Bucket
from mailweir.contracts.policy import Member, Share, Window
from router.policy.kinds import (
    BAD,
    Converted,
    Key,
    ListOf,
    MapOf,
    Number,
    Path,
    Reader,
    Record,
    Text,
)
from router.policy.patterns import alternatives, is_exact
from router.policy.problems import closest
from router.policy.windows import zone

NAME = Text(pattern=r"[^\s|]{1,64}", says="a name without spaces and |")
WEIGHT = Number(0, 100, whole=True)
BUCKETS = tuple(b.value for b in Bucket)
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SECRET = Text(
    pattern=r"(?:env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|vault:.+|aws:.+)",
    says="a reference: env:NAME, file:/path, vault:path#field or aws:name",
    secret=True,
)
TLS = Text(choices=("opportunistic", "required", "verified", "none"))
DOMAIN = Converted(
    Text(
        pattern=r"(?i)(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]{0,62})?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62})?)+",
        says="a domain such as mail.example.com (international names in their xn-- form)",
    ),
    str.lower,
)
HOST = Text(pattern=r"[A-Za-z0-9._:\-\[\]]{1,253}", says="a host name or address")


def _bucket(text: str) -> str:
    """The bucket behind a name or a seed's alias. ValueError says what is right."""
    name = text.lower()
    if name in BUCKET_ALIASES:
        return BUCKET_ALIASES[name].value
    if name not in BUCKETS:
        raise ValueError(f"{text!r} is not a bucket; one of {', '.join(BUCKETS)}")
    return name


BUCKET = Converted(Text(), _bucket)
BUCKET_LIST = Converted(ListOf(BUCKET, low=1), lambda names: tuple(dict.fromkeys(names)))


def _bucket_patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_bucket(p) if is_exact(p) else p for p in alternatives(values))


BUCKET_PATTERNS = Converted(ListOf(Text(), low=1), _bucket_patterns)
PATTERNS = ListOf(Text(), low=1)


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(
            f"{text!r} is not an IP address; write 192.0.2.10 or 2001:db8::10"
        ) from None


IP = Converted(Text(), _ip)


def _zone(text: str) -> str:
    try:
        zone(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{text!r} is not a time zone; write a name such as Europe/Berlin"
        ) from None
    return text


def _minute(text: str) -> int:
    match = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if match and (minute := int(match[1]) * 60 + int(match[2])) <= 1440 and int(match[2]) < 60:
        return minute
    raise ValueError(f"{text!r} is not a time of day; write 00:00 to 24:00")


def _days(values: tuple[str, ...]) -> tuple[int, ...]:
    out: set[int] = set()
    for value in values:
        text = value.lower().strip()
        text = {"weekdays": "mon-fri", "weekend": "sat-sun", "all": "mon-sun"}.get(text, text)
        first, _, last = text.partition("-")
        ends = [part[:3] for part in (first, last or first)]
        if any(part not in DAYS for part in ends):
            raise ValueError(f"{value!r} is not a weekday; write mon, tue-thu, weekdays or weekend")
        begin, end = (DAYS.index(part) for part in ends)
        out.update((begin + i) % 7 for i in range((end - begin) % 7 + 1))
    return tuple(sorted(out))


def _window(values: dict[str, Any]) -> Window:
    window = Window(
        zone=values.get("zone", "UTC"),
        days=values.get("days", tuple(range(7))),
        start=values.get("from", 0),
        end=values.get("to", 1440),
    )
    if window.start == window.end or window.start == 1440:
        raise ValueError("the window is empty; 'from' and 'to' must differ")
    return window


WINDOW = Converted(
    Record(
        {
            "zone": Key(Converted(Text(), _zone), "Time zone by IANA name; default UTC."),
            "days": Key(
                Converted(ListOf(Text(), low=1), _days),
                "Weekdays: mon, tue-thu, weekdays, weekend; default all.",
            ),
            "from": Key(Converted(Text(), _minute), "First minute, HH:MM; default 00:00."),
            "to": Key(
                Converted(Text(), _minute),
                "First minute after it, HH:MM; before 'from': the next day; default 24:00.",
            ),
        },
    ),
    _window,
)


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time; write 2026-08-01T00:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


TIME = Converted(Text(), _time)

_WEIGHTS = MapOf(WEIGHT, low=1)


class Shares:
    """``news`` (all of it), or ``{a: 80, b: 20}``."""

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        if not isinstance(node, MappingNode):
            name = NAME.read(node, path, reader)
            return BAD if name is BAD else (Share(name, 100),)
        weights = _WEIGHTS.read(node, path, reader)
        if weights is BAD:
            return BAD
        if sum(weights.values()) == 0:
            reader.say(path, path, "the weights sum to 0", "at least one weight from 1 to 100")
            return BAD
        return tuple(Share(pool, weight) for pool, weight in weights.items())

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [NAME.schema(), _WEIGHTS.schema()]}


_MEMBER = Record(
    {
        "source": Key(NAME, "A source of this file.", required=True),
        "weight": Key(Number(0, 1000), "Its share inside the pool; default 1."),
    },
    lambda v: Member(v["source"], v.get("weight", 1.0)),
    short_key="source",
)
_MEMBER_WEIGHTS = MapOf(Number(0, 1000), low=1)


class Members:
    """``[a, b]``, ``[{source: a, weight: 2}, b]`` or ``{a: 2, b: 1}``."""

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        if isinstance(node, MappingNode):
            weights = _MEMBER_WEIGHTS.read(node, path, reader)
            if weights is BAD:
                return BAD
            members = tuple(Member(name, weight) for name, weight in weights.items())
        else:
            members = ListOf(_MEMBER).read(node, path, reader)
            if members is BAD:
                return BAD
        names = [m.source for m in members]
        for i, name in enumerate(names):
            if name in names[:i]:
                reader.say(
                    (*path, i), (*path, i), f"source {name!r} is in the pool twice", "keep one"
                )
                return BAD
        if members and sum(m.weight for m in members) == 0:
            reader.say(path, path, "the weights sum to 0", "at least one weight above 0")
            return BAD
        return members

    def schema(self) -> dict[str, Any]:
        items = {"type": "array", "items": _MEMBER.schema()}
        return {"anyOf": [items, _MEMBER_WEIGHTS.schema(), NAME.schema()]}


_ARM = Record(
    {
        "pool": Key(NAME, "The arm's pool.", required=True),
        "source": Key(NAME, "Only this source or fallback relay of the pool."),
        "weight": Key(WEIGHT, "The arm's percentage, 0-100.", required=True),
        "to": Key(WEIGHT, "Its percentage at the end of the shift."),
    },
)


def _split(values: dict[str, Any]) -> tuple[Share, ...]:
    shift = values.get("shift", {})
    arms = tuple(
        Share(
            arm["pool"],
            arm["weight"],
            arm.get("source"),
            arm.get("to"),
            shift.get("start", 0.0),
            shift.get("over", 0.0),
        )
        for arm in values["arms"]
    )
    if any(arm.to is not None for arm in arms) and not shift:
        raise ValueError(
            "an arm has 'to' and the split has no shift; add shift: {start: ..., over: 7d}"
        )
    if sum(arm.weight for arm in arms) == 0:
        raise ValueError("the weights sum to 0; at least one weight from 1 to 100")
    if any(a.to is not None for a in arms) and not sum(
        a.weight if a.to is None else a.to for a in arms
    ):
        raise ValueError("the weights after the shift sum to 0; at least one from 1 to 100")
    return arms


def split_kind(duration: Any) -> Converted:
    """An A/B split: arms and an optional gradual shift."""
    shift = Record(
        {
            "start": Key(TIME, "When the shift begins, ISO 8601.", required=True),
            "over": Key(duration, "How long it takes.", required=True),
        }
    )
    return Converted(
        Record(
            {
                "arms": Key(ListOf(_ARM, low=1, high=100), "What is compared.", required=True),
                "shift": Key(shift, "Moves the weights to each arm's 'to', gradually."),
            }
        ),
        _split,
    )


class Names:
    """A list of names, each known to somebody else; used with :func:`unknown`."""

    def __init__(self, high: int = 10_000) -> None:
        self._list = ListOf(NAME, high=high)

    def read(self, node: Node, path: Path, reader: Reader) -> Any:
        names = self._list.read(node, path, reader)
        if names is BAD:
            return BAD
        for i, name in enumerate(names):
            if name in names[:i]:
                where = (*path, i) if isinstance(node, SequenceNode) else path
                reader.say(where, where, f"{name!r} is named twice", "keep one")
                return BAD
        return names

    def schema(self) -> dict[str, Any]:
        return self._list.schema()


def unknown(reader: Reader, path: Path, what: str, name: str, known: Any) -> bool:
    """Report a reference to something that is not defined; whether it was."""
    if name in known:
        return False
    reader.say(path, path, f"there is no {what} {name!r}", closest(name, known))
    return True
