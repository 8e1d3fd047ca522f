"""The `msf` command: one module per subcommand, imported when it is called."""

from __future__ import annotations

import errno
import importlib
from typing import Any

import click

from msf_cli.setup_checks import EXIT_INTERRUPTED, missing_package

_COMMANDS = {
    "serve": "Serve images over HTTP: a server, its workers and, unless MSF_REDIS_URL is set, a Valkey",
    "worker": "Run one worker against a Redis",
    "generate": "Generate images of one class into a file, here or on a server",
    "reproduce": "Regenerate an image from the metadata in its PNG, and compare",
    "train": "Train a model on a folder of images",
    "distill": "Turn a model into one that needs few steps",
    "import": "Turn a public DiT or SiT checkpoint into a model of the repository",
    "export": "Write a model in the layout of diffusers, or as ONNX",
    "models": "List, pull, quantize or alias the models of the repository",
    "data": "Repair the embedded Valkey's data",
    "jobs": "List, show, cancel or requeue jobs",
    "keys": "Create API keys, or check the file of them",
    "load": "Send a load to a server and report its latencies",
    "plan": "Estimate the workers a load needs, from step costs measured on this machine",
    "health": "Check that a URL answers, for containers",
    "compile": "Compile the plans of the repository's models ahead of time",
    "plans": "List the compiled plans: error against the reference, where verified, size",
}


_MODULES = {"import": "import_model"}  # commands whose name cannot be a module's


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        try:
            command: click.Command = importlib.import_module(
                f"msf_cli.commands.{_MODULES.get(cmd_name, cmd_name)}"
            ).command
        except ModuleNotFoundError as error:
            raise missing_package(cmd_name, str(error.name)) from error
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise missing_package(str(ctx.invoked_subcommand), str(error.name)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads the output any more; click ends without a word
                raise
            raise click.ClickException(str(error)) from error

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
