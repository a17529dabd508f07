"""Statements with named parameters, and the columns of an aggregate, named once for SQL and values."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gotohotel.domain import Actor, Role

A = TypeVar("A")
_PARAMETER = re.compile(r"(?<!:):([a-z]\w*)")


class Statement:
    """SQL written with :names, converted to PostgreSQL's $1, $2, … in order of first use."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._names = list(dict.fromkeys(_PARAMETER.findall(source)))
        numbers = {name: number for number, name in enumerate(self._names, start=1)}
        self._sql = _PARAMETER.sub(lambda found: f"${numbers[found[1]]}", source)

    def bind(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Returns the SQL and its parameters in asyncpg's form. Raises KeyError for a name without a value."""
        return (self._sql, *(values[name] for name in self._names))


@dataclass(frozen=True)
class Column(Generic[A]):
    """One column: its name, its PostgreSQL type, and how to get its value from the aggregate."""

    name: str
    type: str
    value: Callable[[A], Any]


class Columns(Generic[A]):
    """The columns of an aggregate, in one order for every statement."""

    def __init__(self, *columns: Column[A]) -> None:
        self._columns = columns

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [column.name for column in self._columns]

    @property
    def listed(self) -> str:
        """`a, b, c`: for SELECT and INSERT."""
        return ", ".join(self.names)

    @property
    def parameters(self) -> str:
        """`:a::text, :b::uuid`: the values of one row."""
        return ", ".join(f":{column.name}::{column.type}" for column in self._columns)

    @property
    def assigned(self) -> str:
        """`a = :a::text, b = :b::uuid`: for SET, in the one row that an UPDATE finds."""
        return ", ".join(f"{column.name} = :{column.name}::{column.type}" for column in self._columns)

    @property
    def arrays(self) -> str:
        """`:a::text[], :b::uuid[]`: the values of any number of rows, for unnest."""
        return ", ".join(f":{column.name}::{column.type}[]" for column in self._columns)

    def values(self, aggregate: A) -> dict[str, Any]:
        """The values of one row. Two states of an aggregate with equal values need no save."""
        return {column.name: column.value(aggregate) for column in self._columns}

    def columns(self, aggregates: Iterable[A]) -> dict[str, list[Any]]:
        """The values of many rows, one list per column."""
        rows = list(aggregates)
        return {column.name: [column.value(row) for row in rows] for column in self._columns}


def actor_json(actor: Actor | None) -> str | None:
    """Who caused a change, for a column of type jsonb."""
    return json.dumps({"role": actor.role.value, "subject": actor.subject}) if actor else None


def actor_of(stored: str | None) -> Actor | None:
    """Who caused a change, from such a column."""
    if stored is None:
        return None
    value = json.loads(stored)
    return Actor(value["subject"], Role(value["role"]))
