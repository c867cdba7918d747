"""The command `segan`. Jobs run on a Ray cluster, or in this process with --local.

Lines for people go to stderr and results to stdout. Exit codes: 0 done, 1 failed, 2 wrong use,
130 interrupted, and 143 where a training was told to stop and did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from segan.cli.commands import (
    ablation,
    bench,
    data,
    doctor,
    download,
    models,
    report,
    runs,
    serve,
    training,
)
from segan.cli.console import preserve_stdout, show_log_messages
from segan.errors import SeganError, UsageError

EXIT_INTERRUPTED = 130  # of a Ctrl-C, and of a `ray job stop` that nothing could follow in time

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="SegAN: skin lesion segmentation by adversarial training, on Ray.",
)
for group in (
    download,
    data,
    training,
    ablation,
    models,
    report,
    serve,
    runs,
    doctor,
    bench,
):
    app.add_typer(group.app)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; a person's mistake is one line on stderr, and `--debug` adds the traceback."""
    args = list(sys.argv[1:] if argv is None else argv)
    show_log_messages()
    try:
        with preserve_stdout():
            code = app(args, standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # typer takes the exception for itself
            return _report_error("interrupted", EXIT_INTERRUPTED, False)
        return code if isinstance(code, int) else 0
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return _report_error("interrupted", EXIT_INTERRUPTED, False)
    except SeganError as error:
        return _report_error(str(error), error.exit_code, "--debug" in args)
    except KeyboardInterrupt:
        return _report_error("interrupted", EXIT_INTERRUPTED, False)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong use, as the command-line library says it
            message = error.format_message()
            return (
                _report_error(message, UsageError.exit_code, False)
                if message
                else UsageError.exit_code
            )
        raise


def _report_error(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"segan: {text}", file=sys.stderr)
    return code
