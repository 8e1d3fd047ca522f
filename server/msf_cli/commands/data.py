"""`msf data`: repair the data of the embedded Valkey."""

from __future__ import annotations

import fcntl
from pathlib import Path

import click

from msf_cli.settings import read_settings
from msf_cli.setup_checks import IncompleteSetup
from msf_scheduler import aof
from msf_scheduler.embedded_valkey import OWNER, SERVER_LOCK, backup_folder, find_server
from msf_scheduler.errors import QueueUnavailable


@click.group()
def command() -> None:
    """Repair the embedded Valkey's data in MSF_DATA_DIR."""


@command.command()
@click.option("--yes", is_flag=True, help="Do not ask before jobs are lost.")
def repair(yes: bool) -> None:
    """Make data that a power failure or a full disk has damaged loadable again.

    What precedes the damage is kept; what is cut is stored in a folder damaged-TIME of MSF_DATA_DIR first.
    """
    data_dir = read_settings().data_dir
    try:
        with (data_dir / OWNER).open("a") as owner, (data_dir / SERVER_LOCK).open("a") as server:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(server, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _repair(data_dir, yes)
    except BlockingIOError as error:
        raise IncompleteSetup(f"A service runs on MSF_DATA_DIR={str(data_dir)!r}. Stop it first.") from error
    except OSError as error:
        raise IncompleteSetup(f"MSF_DATA_DIR={str(data_dir)!r}: {error.strerror}") from error
    except (aof.DataDamaged, QueueUnavailable) as error:
        raise IncompleteSetup(str(error)) from error


def _repair(data_dir: Path, yes: bool) -> None:
    backup = backup_folder(data_dir)
    is_sound = True
    try:
        aof.check_manifest(data_dir)
    except aof.DataDamaged:
        is_sound = False
        aof.rebuild_manifest(data_dir, backup)
        click.echo(f"Rebuilt {data_dir / aof.FOLDER / aof.MANIFEST} from the files that are there.")
    tail = aof.find_tail(data_dir, find_server())
    if tail is not None:
        is_sound = False
        num_cut = tail.num_bytes - tail.num_valid_bytes
        click.echo(f"{tail.file} can be read up to byte {tail.num_valid_bytes} of {tail.num_bytes}.")
        if not tail.is_empty() and not yes:
            click.confirm(f"Cut the last {num_cut} bytes? What was accepted in them is lost", abort=True)
        tail.cut(backup)
        click.echo(f"Cut {num_cut} bytes; they are kept in {backup}.")
    if is_sound:
        click.echo("No damage found.")
