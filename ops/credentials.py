"""The passwords and keys of a stack, made at its first start; those of a new service are added later."""

import json
import secrets
from pathlib import Path

from ops.errors import StackError
from ops.services import secrets_needed


class Credentials:
    """The contents of a stack's secrets.json."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = home / "secrets.json"
        self._read: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self.all()[name]

    def all(self) -> dict[str, str]:
        """Passwords and keys by name. Raises StackError before the first start."""
        if self._read is None:
            try:
                self._read = json.loads(self._file.read_text())
            except FileNotFoundError:
                raise StackError("There are no secrets yet: run `make up` first.") from None
        return self._read

    def mint(self) -> None:
        """Creates missing ones: all at the first start, a new service's later on.

        Raises StackError if the file is gone although the data that its passwords open exists.
        """
        if not self._file.exists() and (self._home / "postgres").exists():
            raise StackError(f"{self._file} is gone, but the data that its passwords open is there.")
        made: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}
        if not set(secrets_needed()) <= set(made):
            fresh = self._home / "secrets.new"  # renamed when it is complete
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps({**{name: secrets.token_hex(24) for name in secrets_needed()}, **made}))
            fresh.rename(self._file)
        self._read = None
