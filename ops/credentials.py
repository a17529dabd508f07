"""Passwords and keys: a stack's own, made at its first start (those of a new service are added later), or a folder."""

import json
import secrets
from pathlib import Path

from ops.errors import StackError
from ops.services import ORDER_SIGNING, SERVICES, secrets_needed, secrets_of


class Credentials:
    """The contents of a stack's secrets.json."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = home / "secrets.json"
        self._loaded: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self.all()[name]

    def all(self) -> dict[str, str]:
        """Passwords and keys by name. Raises StackError before the first start, or if the file is gone or damaged."""
        if self._loaded is None:
            self._loaded = self._read()
            if not self._loaded:
                raise StackError("There are no secrets yet: run `make up` first.")
        return self._loaded

    def mint(self) -> None:
        """Creates all at the first start, and those of a new service later on.

        Raises StackError if the file is gone or damaged, or if a secret is missing that existing data depends on: a new
        one would not open it.
        """
        made = self._read()
        missing = [name for name in secrets_needed() if name not in made]
        if not missing:
            return
        new = {
            name for service in SERVICES if not made.keys() & set(secrets_of(service)) for name in secrets_of(service)
        }
        if not (self._home / "tls").exists():  # of a release that did not sign yet
            new.add(ORDER_SIGNING)
        if made and (lost := [name for name in missing if name not in new]):
            raise StackError(f"{self._file} lacks {', '.join(lost)}: restore it from a copy; a new one would not do.")
        fresh = self._home / "secrets.new"  # renamed when it is complete
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps({**made, **{name: secrets.token_hex(24) for name in missing}}))
        fresh.rename(self._file)
        self._loaded = None

    def _read(self) -> dict[str, str]:
        """What the file holds; nothing before the first start."""
        try:
            made: dict[str, str] = json.loads(self._file.read_text())
        except FileNotFoundError:
            if (self._home / "postgres").exists():
                raise StackError(f"{self._file} is gone, but the data that its passwords open is there.") from None
            return {}
        except ValueError:
            raise StackError(f"{self._file} is damaged: restore it from a copy.") from None
        return made


class MountedCredentials(Credentials):
    """Passwords and keys in a folder, a file for each, as Kubernetes mounts a Secret. Others make them."""

    def mint(self) -> None:
        """Raises StackError if one is missing that this release needs."""
        if missing := [name for name in secrets_needed() if name not in {"postgres", *self.all()}]:
            raise StackError(f"{self._home} lacks {', '.join(missing)}.")

    def _read(self) -> dict[str, str]:
        try:
            return {file.name: file.read_text().strip() for file in self._home.iterdir() if file.is_file()}
        except OSError as error:
            raise StackError(f"The passwords and keys in {self._home} can't be read: {error.strerror}.") from None
