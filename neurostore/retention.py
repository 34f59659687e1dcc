"""Which records are to go: rules as plain data, and what they come to for a file and its series.

A `Keep` says which records it speaks of and which of those it keeps.  A record goes only if at
least one rule speaks of it and none keeps it.  Applying the rules twice is applying them once,
so they may run from cron.  Nothing is removed here, except by `clean`, which asks the session.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurostore import osio, querying, series, times
from neurostore.catalogue import Catalogue, Entry
from neurostore.errors import ClosedError, MovedError, StoreNotFoundError, ValidationError
from neurostore.journal import journal_path
from neurostore.osio import Durability
from neurostore.schema import KINDS
from neurostore.series import Volume
from neurostore.session import Session
from neurostore.views import View

__all__ = ["Doomed", "Keep", "clean", "drop", "keep_rules", "rules_of", "select"]

_log = logging.getLogger(__name__)
_DAY = 86_400.0
Mask = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Keep:
    """One rule: of the records of a kind and a name, keep those that meet every criterion given.

    Without a criterion it keeps all that it speaks of.

    Parameters
    ----------
    kind, name
        The records that the rule speaks of; None means all.
    days
        Keep what is at most this many days old.  Timestamps before 1980 are taken for model
        seconds, which have no age: they are kept unless ``model_time`` says otherwise.
    latest
        Keep this many, the latest.
    every
        Keep one, then the next that was stored at least this many records later; records of every
        kind and name count, so that a second run removes nothing more.
    interval
        Keep the first record of every interval of this many seconds, counted from time 0.
    best, metric, mode
        Keep this many by the value of ``metric``: that of performance metrics, or else a number in
        the metadata or the attributes of a record.  ``mode`` is ``"max"`` or ``"min"``.
    where
        Keep what has these values in its metadata or attributes; a dot goes into nested metadata.
    predicate
        Function of the catalogue Dataset of the records the rule speaks of that returns a boolean
        per record: True keeps.
    per
        ``latest``, ``every``, ``interval`` and ``best`` count for every ``"name"`` of every kind,
        for every ``"kind"``, or over ``"all"`` that the rule speaks of.

    Examples
    --------
    >>> Keep(kind="network_snapshot", latest=10), Keep(days=30)  # doctest: +ELLIPSIS
    (Keep(kind='network_snapshot', ... latest=10, ...), Keep(... days=30, ...))
    """

    kind: str | None = None
    name: str | None = None
    days: float | None = None
    latest: int | None = None
    every: int | None = None
    interval: float | None = None
    best: int | None = None
    metric: str | None = None
    mode: Literal["max", "min"] = "max"
    where: Mapping[str, Any] = field(default_factory=dict)
    predicate: Callable[[xr.Dataset], Any] | None = None
    per: Literal["name", "kind", "all"] = "name"

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ValidationError.of("Keep", problems)

    def _problems(self) -> Iterable[str]:
        if self.kind is not None and self.kind not in KINDS:
            yield f"kind is {self.kind!r}, expected one of {', '.join(KINDS)}"
        for key, least in (("days", 0), ("latest", 0), ("every", 1), ("best", 0)):
            value = getattr(self, key)
            if value is not None and not (_is_number(value, key != "days") and value >= least):
                what = "a number" if key == "days" else "an integer"
                yield f"{key} is {value!r}, expected {what} of at least {least}"
        if self.interval is not None and not (_is_number(self.interval) and self.interval > 0):
            yield f"interval is {self.interval!r}, expected a number of seconds above 0"
        if (self.best is None) != (self.metric is None):
            yield "best and metric go together: best=3, metric='accuracy'"
        if self.mode not in ("max", "min"):
            yield f"mode is {self.mode!r}, expected 'max' or 'min'"
        if self.per not in ("name", "kind", "all"):
            yield f"per is {self.per!r}, expected 'name', 'kind' or 'all'"
        if not isinstance(self.where, Mapping):
            yield f"where is {self.where!r}, expected a mapping of names to values"


def _is_number(value: Any, whole: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return math.isfinite(value)


def keep_rules(tables: Iterable[Any]) -> tuple[Keep, ...]:
    """Return rules from rules, or from the tables of a TOML file.

    >>> keep_rules([{"kind": "spike_train", "days": 7}])[0].days
    7
    """
    known = {f.name for f in fields(Keep)} - {"predicate"}
    found = []
    for number, given in enumerate(tables):
        if isinstance(given, Keep):
            found.append(given)
            continue
        if not isinstance(given, Mapping):
            raise ValidationError(f"rule {number + 1} is {given!r}, expected a Keep or a table")
        if unknown := sorted(set(given) - known):
            raise ValidationError(
                f"rule {number + 1} has {', '.join(map(repr, unknown))}, expected some of "
                f"{', '.join(sorted(known))}"
            )
        found.append(Keep(**given))
    return tuple(found)


def rules_of(
    retention_days: float | None,
    keep: Keep | Iterable[Any] | None,
    kind: str | None,
    name: str | None,
) -> tuple[Keep, ...]:
    """Return the rules that the arguments of a cleanup mean: days, or rules of their own."""
    if (retention_days is None) == (keep is None):
        raise ValidationError("expected either retention_days or keep, and not both")
    if keep is None:
        assert retention_days is not None
        if not (_is_number(retention_days) and retention_days >= 0):
            raise ValidationError(f"retention_days is {retention_days!r}, expected at least 0")
        return (Keep(querying.kind_of(kind).name if kind else None, name, days=retention_days),)
    if kind is not None or name is not None:
        raise ValidationError(
            "kind and name belong into the rules of keep; use Keep(kind=..., name=...)"
        )
    return keep_rules([keep] if isinstance(keep, Keep) else keep)


@dataclass(frozen=True)
class Doomed:
    """What is to go: ids in time order, and by file.

    Parameters
    ----------
    ids
        All of them, in time order.
    entries
        The same for each file of the series that loses some and keeps others.
    whole
        Files before the newest that lose all they have, and are dropped: those in which nothing
        stands but records.
    """

    ids: list[str]
    entries: list[tuple[Volume, list[Entry]]]
    whole: list[Volume]


class _History:
    """All live records of a series as columns, in time order."""

    def __init__(self, session: Session) -> None:
        self.head = session
        self.members: list[Volume] = []
        self.helds: list[Catalogue] = []
        for member in series.members(session):  # not all can be open at once
            held = member.catalogue
            self.members.append(Volume.of(member, held))
            self.helds.append(held)
        self.kinds = list(KINDS.values())
        texts: dict[str, int] = {}
        pieces = []
        for place, held in enumerate(self.helds):
            codes = np.array(
                [texts.setdefault(held.text(c), len(texts)) for c in range(len(held.texts))]
            )
            for number, kind in enumerate(self.kinds):
                rows = held.select(kind)
                if len(rows):
                    found = held.tables[kind.name].take(rows)
                    whole = np.full(len(rows), place), np.full(len(rows), number), rows
                    own = found["timestamp"], found["serial"], codes[found["name"]]
                    pieces.append((*whole, *own))
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)] or [
            np.empty(0, int)
        ] * 6
        order = np.argsort(columns[3], kind="stable")
        self.member, self.kind, self.row, self.time, self.serial, self.name = (
            column[order] for column in columns
        )
        self.texts = texts

    def __len__(self) -> int:
        return len(self.row)

    def scope(self, rule: Keep) -> Mask:
        """Return the positions of the records that a rule speaks of, in time order."""
        mask = np.ones(len(self), bool)
        if rule.kind is not None:
            mask &= self.kind == list(KINDS).index(rule.kind)
        if rule.name is not None:
            mask &= self.name == self.texts.get(rule.name, -1)
        return np.flatnonzero(mask)

    def groups(self, rule: Keep, scope: Mask) -> list[Mask]:
        """Return positions inside ``scope``, one array for each group that counts by itself."""
        if not len(scope):
            return []
        if rule.per == "all":
            return [np.arange(len(scope))]
        key = self.kind[scope] * (len(self.texts) + 1)
        if rule.per == "name":
            key = key + self.name[scope]
        order = np.argsort(key, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)

    def entry(self, position: int) -> Entry:
        held = self.helds[int(self.member[position])]
        return held.entry(self.kinds[int(self.kind[position])], int(self.row[position]))

    def dataset(self, position: int) -> xr.Dataset:
        with self.members[int(self.member[position])].open() as member:
            ds, _ = member.open_record(self.entry(position))
        return ds


def select(
    session: Session,
    rules: Sequence[Keep],
    now: times.TimeLike | None = None,
    model_time: bool = False,
) -> Doomed:
    """Return what the rules let go of in a series.

    Parameters
    ----------
    now
        The moment to count days back from; the clock's if it is None.
    model_time
        Whether timestamps before 1980 have an age, too.
    """
    moment = time.time() if now is None else times.to_seconds(now, "now")
    history = _History(session)
    spoken, kept = np.zeros(len(history), bool), np.zeros(len(history), bool)
    ageless = 0
    # Rules that open records come last, and look only at those that no other rule keeps.
    for rule in sorted(rules, key=lambda rule: bool(rule.where)):
        scope = history.scope(rule)
        spoken[scope] = True
        mask = np.ones(len(scope), bool)
        if rule.days is not None:
            young = history.time[scope] >= moment - rule.days * _DAY
            dateless = history.time[scope] < times.EARLIEST_DATE
            if not model_time:
                ageless += int((dateless & ~young & ~kept[scope]).sum())
                young |= dateless
            mask &= young
        for criterion in (_latest, _every, _interval, _best, _predicate):
            mask &= criterion(rule, history, scope)
        kept[scope[mask & _where(rule, history, scope, mask & ~kept[scope])]] = True
    if ageless:
        _log.warning(
            "%s: %d records have timestamps before 1980 and were kept as model time; "
            "model_time=True gives them an age",
            session.path,
            ageless,
        )
    return _sorted_out(history, np.flatnonzero(spoken & ~kept))


def _sorted_out(history: _History, gone: Mask) -> Doomed:
    entries: list[tuple[Volume, list[Entry]]] = []
    whole: list[Volume] = []
    ids: dict[int, str] = {}
    for place, member in enumerate(history.members):
        mine = gone[history.member[gone] == place].tolist()
        found = [history.entry(position) for position in mine]
        ids.update(zip(mine, (entry.id for entry in found), strict=True))
        all_of_it = bool(found and place) and len(found) == int((history.member == place).sum())
        if all_of_it and not _holds_others(member):
            whole.append(member)
        elif found:
            entries.append((member, found))
    return Doomed([ids[position] for position in gone.tolist()], entries, whole)


def _holds_others(volume: Volume) -> bool:
    """Tell whether somebody keeps something of their own in a file of the series."""
    with suppress(StoreNotFoundError, MovedError), volume.open() as member:
        return bool(member.other_groups())
    return False


def clean(session: Session, doomed: Doomed, timeout: float, durability: Durability) -> None:
    """Remove what is doomed, in one commit for every file; inside ``session.writing``.

    Files that are doomed whole are taken out of the series; :func:`drop` removes them after that
    was committed.

    Raises
    ------
    ClosedError
        Files before the newest are concerned, and this is a batch, which could be undone.
    """
    older = [volume for volume, _ in doomed.entries if volume.path != session.path]
    if (older or doomed.whole) and not session.is_outermost:
        raise ClosedError(
            f"{session.path}: records of rotated files cannot be removed inside a batch; end the "
            "batch first"
        )
    for volume, entries in doomed.entries:
        if volume.path == session.path:
            session.remove(entries)
            continue
        with (
            volume.open(close=True) as member,  # a journal is not left beside it
            member.writing(timeout=timeout, durability=durability, sealed=True),
        ):
            member.remove(entries)
    if doomed.whole:
        names = {volume.path.name for volume in doomed.whole}
        session.write_ledger(session.catalogue.ledger.without(names))


def drop(session: Session) -> None:
    """Remove the files that the series has let go of, now or before a crash.

    Inside a `writing` of its own, after that in which they left was committed.
    """
    head = session.catalogue.ledger
    stay = []
    for name, file_id in head.leaving:
        volume = Volume(session.path.with_name(name), file_id)
        with suppress(StoreNotFoundError, MovedError), volume.open() as member:
            if member.catalogue.ledger.series != head.series:
                continue
            io = member.io
            member.close()  # its last commit is settled, so that no journal is left alone
            with osio.freed_later(volume.path):
                osio.discard(volume.path, io)
            osio.discard(journal_path(volume.path), io)
            if volume.path.exists():
                stay.append((name, file_id))
            else:
                _log.info("%s: dropped, all its records had expired", volume.path)
    session.write_ledger(replace(head, leaving=tuple(stay)))


# -- criteria ----------------------------------------------------------------------------------


def _latest(rule: Keep, history: _History, scope: Mask) -> Mask:
    if rule.latest is None:
        return np.ones(len(scope), bool)
    mask = np.zeros(len(scope), bool)
    for group in history.groups(rule, scope):
        mask[group[max(0, len(group) - rule.latest) :]] = True
    return mask


def _every(rule: Keep, history: _History, scope: Mask) -> Mask:
    """Go by serials, which count the records of a series: what was kept once is kept again."""
    if rule.every is None:
        return np.ones(len(scope), bool)
    mask = np.zeros(len(scope), bool)
    for group in history.groups(rule, scope):
        serials = history.serial[scope[group]].astype(np.int64)
        order = np.argsort(serials, kind="stable")
        place = 0
        while place < len(order):
            mask[group[order[place]]] = True
            following = serials[order[place]] + rule.every
            place = int(np.searchsorted(serials[order], following))
    return mask


def _interval(rule: Keep, history: _History, scope: Mask) -> Mask:
    if rule.interval is None:
        return np.ones(len(scope), bool)
    mask = np.zeros(len(scope), bool)
    for group in history.groups(rule, scope):
        number = np.floor(history.time[scope[group]] / rule.interval)
        mask[group[np.concatenate([[True], np.diff(number) != 0])]] = True
    return mask


def _best(rule: Keep, history: _History, scope: Mask) -> Mask:
    if rule.best is None or rule.metric is None:
        return np.ones(len(scope), bool)
    values = np.array([_metric(history, position, rule.metric) for position in scope.tolist()])
    mask = np.zeros(len(scope), bool)
    for group in history.groups(rule, scope):
        known = group[~np.isnan(values[group])]
        order = np.argsort(values[known] * (-1 if rule.mode == "max" else 1), kind="stable")
        mask[known[order[: rule.best]]] = True
    return mask


def _metric(history: _History, position: int, metric: str) -> float:
    """Return a metric of a record: a labelled value of its own, or a number in what it says."""
    ds = history.dataset(position)
    kind = history.kinds[int(history.kind[position])]
    if kind.mapping == "labels" and kind.elastic in ds.coords:
        found = np.flatnonzero(ds[kind.elastic].values == metric)
        if len(found):
            return float(ds[kind.variables[0].name].values[found[0]])
    value = _said(ds, kind.details, metric)
    return float(value) if isinstance(value, int | float | np.number) else math.nan


def _where(rule: Keep, history: _History, scope: Mask, wanted: Mask) -> Mask:
    mask = np.ones(len(scope), bool)
    for place in np.flatnonzero(wanted).tolist() if rule.where else ():
        position = int(scope[place])
        ds = history.dataset(position)
        details = history.kinds[int(history.kind[position])].details
        mask[place] = all(_said(ds, details, k) == value for k, value in rule.where.items())
    return mask


_ABSENT = object()


def _said(ds: xr.Dataset, details: str, key: str) -> Any:
    """Return what a record says under a name: in its metadata, or else in its attributes."""
    text = ds.attrs.get(details)
    value: Any = json.loads(text) if isinstance(text, str) else _ABSENT
    for step in key.split("."):
        value = value.get(step, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return ds.attrs.get(key, _ABSENT) if value is _ABSENT else value


def _predicate(rule: Keep, history: _History, scope: Mask) -> Mask:
    if rule.predicate is None:
        return np.ones(len(scope), bool)
    table = querying.catalogue(View.of(history.head), rule.kind, None, None, rule.name)
    answer = np.asarray(rule.predicate(table))
    if answer.shape != (table.sizes["record"],) or answer.dtype != bool:
        raise ValidationError(
            f"predicate returned {answer.dtype} of shape {answer.shape}, expected bool of shape "
            f"({table.sizes['record']},), one for each record of the catalogue"
        )
    # Records of two kinds may have one id in files that others wrote.
    names = zip(table["kind"].values.tolist(), table["record"].values.tolist(), strict=True)
    kept = dict(zip(names, answer.tolist(), strict=True))
    entries = map(history.entry, scope.tolist())
    return np.array([kept[entry.kind.name, entry.id] for entry in entries], bool)
