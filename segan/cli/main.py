"""The command `segan`. Jobs run on a Ray cluster, or in this process with --local.

Messages go to stderr and results to stdout.
"""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from segan.cli.commands import (
    ablation,
    bench,
    data,
    doctor,
    download,
    evaluate,
    models,
    report,
    runs,
    serve,
    training,
)
from segan.cli.console import preserve_stdout, show_log_messages
from segan.errors import SeganError, UsageError
from segan.utils.extras import missing_module_error
from segan.utils.text import escape_controls

NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
EXIT_INTERRUPTED = 130  # after Ctrl-C, or a `ray job stop` that could not save a checkpoint in time

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="SegAN: skin lesion segmentation by adversarial training, on Ray.",
    epilog=(
        "Exit codes: 0 success; 1 failure; 2 wrong usage; 130 interrupted; 143 a training was "
        "stopped by SIGTERM and saved a checkpoint."
    ),
)
for group in (
    download,
    data,
    training,
    ablation,
    evaluate,
    models,
    report,
    serve,
    runs,
    doctor,
    bench,
):
    app.add_typer(group.app)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"segan {version('segan')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(
    argv: Sequence[str] | None = None, commands: typer.Typer = app, name: str = "segan"
) -> int:
    """Runs a command and returns its exit code; an error is reported in one line on stderr.

    Args:
        commands: that the words of `argv` choose from.
        name: that the help shows.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    show_log_messages()
    try:
        with preserve_stdout():
            code = commands(args, standalone_mode=False, prog_name=name)
        if code == EXIT_INTERRUPTED:  # typer handles KeyboardInterrupt itself
            return _report_error("interrupted", EXIT_INTERRUPTED)
        return code if isinstance(code, int) else 0
    except typer.Exit as exit_:
        return exit_.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _report_error("interrupted", EXIT_INTERRUPTED)
    except SeganError as error:
        return _report_error(str(error), error.exit_code, debug)
    except OSError as error:
        if error.errno not in NO_SPACE_ERRORS:
            return _report_error(_describe_internal_error(error, debug), 1, debug)
        place = error.filename or f"a temporary file in {tempfile.gettempdir()}"
        advice = "free some space there, or set TMPDIR to another folder"
        return _report_error(f"{place}: {error.strerror}; {advice}", 1, debug)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (
            missing := missing_module_error("this command", error.name or "")
        ):
            return _report_error(str(missing), missing.exit_code, debug)
        if not hasattr(error, "format_message"):  # not wrong usage, which typer has found
            return _report_error(_describe_internal_error(error, debug), 1, debug)
        message = error.format_message()
        return _report_error(message, UsageError.exit_code) if message else UsageError.exit_code


def _report_error(message: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"segan: {escape_controls(message)}", file=sys.stderr)
    return code


def _describe_internal_error(error: Exception, debug: bool) -> str:
    """One line for an error that segan does not expect, with the file that has its traceback."""
    lines = str(error).strip().splitlines() or ["no message"]
    message = lines.pop(0)
    while message.endswith(":") and lines:  # Ray names the cause on the next line
        message += f" {lines.pop(0).strip()}"
    line = f"internal error: {type(error).__name__}: {message}"
    if debug:
        return line
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="segan-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(traceback.format_exc())
    except OSError:
        return f"{line}; run again with --debug for the traceback"
    return f"{line}; traceback in {log.name}; run again with --debug to see it"
