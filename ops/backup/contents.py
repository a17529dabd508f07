"""What a backup's folder holds.

backup.json     what follows from when it was made, and a hash of every other file
home/           passwords, keys and certificates: without them nobody opens the data
postgres/       all databases at one moment, as pg_basebackup writes them
archive/        every event that was published, in the archive's format
dead_letters/   the dead letters, in the same format
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ops.errors import StackError

FILE = "backup.json"
HOME, POSTGRES, ARCHIVE, DEAD_LETTERS = "home", "postgres", "archive", "dead_letters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """How far the events had come when the databases were about to be copied."""

    began_at: datetime
    stream: str  # the id of the stream of events
    stream_bytes: int  # how large it may grow
    last: int  # the last event in it; the databases know it
    handled: dict[str, int]  # consumer → it had handled all of its events up to this one
    pages_in: str  # where My page's pages were

    def write(self, folder: Path) -> None:
        """Completes a backup."""
        file = folder / FILE
        file.touch(mode=0o600)
        kept = {**asdict(self), "began_at": self.began_at.isoformat(), "files": _hashes(folder)}
        file.write_text(json.dumps(kept, indent=1))

    @staticmethod
    def read(folder: Path) -> "Contents":
        """Raises StackError if the folder holds no complete backup, or if one of its files is missing or damaged."""
        try:
            found = json.loads((folder / FILE).read_text())
            files = found.pop("files")
            contents = Contents(**{**found, "began_at": datetime.fromisoformat(found["began_at"])})
        except (FileNotFoundError, NotADirectoryError):
            raise StackError(f"{folder} holds no complete backup: there is no {FILE} in it.") from None
        except (ValueError, KeyError, TypeError):
            raise StackError(f"{folder / FILE} is damaged, or of another release.") from None
        there = _hashes(folder)
        wrong = sorted(name for name in files if there.get(name) != files[name])
        if wrong:
            raise StackError(f"The backup in {folder} is damaged: {', '.join(wrong)} missing or changed.")
        return contents


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a backup, by its path."""
    hashes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != FILE:
            with file.open("rb") as content:
                hashes[str(file.relative_to(folder))] = hashlib.file_digest(content, "sha256").hexdigest()
    return hashes
