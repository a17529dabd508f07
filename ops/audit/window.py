"""Which orders an audit looks at: all, or those that were placed in a window of time."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gotohotel.ids import first_id_at
from ops.errors import StackError

CLOCKS_DIFFER = timedelta(minutes=5)  # at most, between those who make ids and the stream


@dataclass(frozen=True, slots=True)
class Window:
    """Orders that were placed from `begins` on and before `ends`. Their ids sort by time."""

    begins: datetime | None = None
    ends: datetime | None = None

    def __post_init__(self) -> None:
        """Raises StackError if no order can be in it: everything would hold."""
        if self.begins and (self.begins >= (self.ends or datetime.now(UTC))):
            raise StackError("The window is empty: it begins when it has ended, or in the future.")

    @property
    def is_everything(self) -> bool:
        """Whether it has no bounds."""
        return self.begins is None and self.ends is None

    @property
    def reads_from(self) -> datetime | None:
        """No event of these orders is older."""
        return self.begins - CLOCKS_DIFFER if self.begins else None

    def has(self, order_id: str) -> bool:
        """Whether an order is one of them."""
        return self.is_everything or self._first <= order_id < self._last

    def where(self, column: str) -> str:
        """The condition in SQL, for a column with the orders' ids."""
        return "true" if self.is_everything else f"{column} >= '{self._first}' AND {column} < '{self._last}'"

    def since(self, column: str) -> str:
        """The condition in SQL for a column with the ids of events, which come after their order."""
        return f"{column} >= '{first_id_at(self.reads_from)}'" if self.reads_from else "true"

    @property
    def _first(self) -> str:
        return first_id_at(self.begins) if self.begins else "00000000-0000-0000-0000-000000000000"

    @property
    def _last(self) -> str:
        return first_id_at(self.ends) if self.ends else "ffffffff-ffff-ffff-ffff-ffffffffffff"


EVERYTHING = Window()
