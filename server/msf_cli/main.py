"""The `msf` command: one file for each subcommand, imported when it is called."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "serve": "serve images over HTTP: server, workers and, unless MSF_REDIS_URL is set, a Valkey",
    "worker": "run one worker against a Redis",
    "generate": "make images into a file, here or at a server's address",
    "reproduce": "make an image again from what its file tells, and compare",
    "train": "train a model of one's own on a folder of images",
    "models": "list the models of the repository",
    "jobs": "list failed jobs, look at one, cancel it, or queue it again",
    "keys": "make an API key, or check the file of them",
    "load": "send a load to a server and report its latencies",
    "plan": "how many workers for so many images per second at which latency",
    "health": "exit with 0 if an address answers, for containers",
    "compile": "build the plans of the repository's models ahead of time",
    "plans": "show the compiled plans: error against the reference, where that was verified, size",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"msf_cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="msf-serve", prog_name="msf")
def main() -> None:
    """Serve two-stage latent diffusion models.

    Settings come from MSF_* environment variables; `msf serve --help` lists them.
    """


if __name__ == "__main__":
    main()
