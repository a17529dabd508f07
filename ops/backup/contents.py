"""What a backup's folder holds.

backup.json     what follows from when it was made; written last, so a folder that has it is complete
home/           passwords, keys and certificates: without them nobody opens the data
postgres/       all databases at one moment, as pg_basebackup writes them
archive/        every event that was published, in the archive's format
dead_letters/   the dead letters, in the same format
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ops import tokens
from ops.errors import StackError

FILE = "backup.json"
KEYS = ("secrets.json", tokens.KEY, tokens.KEY_SET, "tls")
HOME, POSTGRES, ARCHIVE, DEAD_LETTERS = "home", "postgres", "archive", "dead_letters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """How far the events had come when the databases were about to be copied."""

    began_at: datetime
    stream: str  # the id of the stream of events
    last: int  # the last event in it; the databases know it
    handled: dict[str, int]  # consumer → it had handled all of its events up to this one

    def write(self, folder: Path) -> None:
        """Completes a backup."""
        (folder / FILE).write_text(json.dumps({**asdict(self), "began_at": self.began_at.isoformat()}))

    @staticmethod
    def read(folder: Path) -> "Contents":
        """Raises StackError if the folder holds no complete backup."""
        try:
            found = json.loads((folder / FILE).read_text())
            return Contents(**{**found, "began_at": datetime.fromisoformat(found["began_at"])})
        except FileNotFoundError:
            raise StackError(f"{folder} holds no complete backup: there is no {FILE} in it.") from None
        except (ValueError, KeyError, TypeError):
            raise StackError(f"{folder / FILE} is damaged, or of another release.") from None
