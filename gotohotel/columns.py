"""Statements whose parameters have names, and the columns of an aggregate: named once, for SQL and for its values."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

A = TypeVar("A")
_PARAMETER = re.compile(r"(?<!:):([a-z]\w*)")


class Statement:
    """SQL written with :names, and as PostgreSQL takes it: with $1, $2, … in the order in which the names appear."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._names = list(dict.fromkeys(_PARAMETER.findall(source)))
        numbers = {name: number for number, name in enumerate(self._names, start=1)}
        self._sql = _PARAMETER.sub(lambda found: f"${numbers[found[1]]}", source)

    def bind(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The SQL and its parameters, as asyncpg takes them. Raises KeyError for a name that has no value."""
        return (self._sql, *(values[name] for name in self._names))


@dataclass(frozen=True)
class Column(Generic[A]):
    """One column: its name, PostgreSQL's type, and the aggregate's value for it."""

    name: str
    type: str
    value: Callable[[A], Any]


class Columns(Generic[A]):
    """The columns that an aggregate is saved in, in one order for every statement."""

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
    def arrays(self) -> str:
        """`:a::text[], :b::uuid[]`: the values of any number of rows, for unnest."""
        return ", ".join(f":{column.name}::{column.type}[]" for column in self._columns)

    def values(self, aggregate: A) -> dict[str, Any]:
        """One row's values; two states of an aggregate whose values are the same need no saving."""
        return {column.name: column.value(aggregate) for column in self._columns}

    def columns(self, aggregates: Iterable[A]) -> dict[str, list[Any]]:
        """Many rows' values, a list for each column."""
        rows = list(aggregates)
        return {column.name: [column.value(row) for row in rows] for column in self._columns}
