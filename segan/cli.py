"""The command `segan`. Jobs run on a Ray cluster, or in this process with --local.

Lines for people go to stderr and results to stdout. Exit codes: 0 done, 1 failed, 2 wrong use,
130 interrupted, and 143 where a training was told to stop and did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from segan.commands import (
    ablation,
    bench,
    data,
    doctor,
    fetch,
    models,
    report,
    retrieval,
    serve,
    training,
)
from segan.errors import SeganError, UsageError
from segan.terminal import stdout_for_results

INTERRUPTED = 130  # of a Ctrl-C, and of a `ray job stop` that nothing could follow in time

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="SegAN: skin lesion segmentation by adversarial training, on Ray.",
)
for group in (
    fetch,
    data,
    training,
    ablation,
    models,
    report,
    serve,
    retrieval,
    doctor,
    bench,
):
    app.add_typer(group.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a person's mistake is one line on stderr, and `--debug` adds the traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stdout_for_results():
            code = app(words, standalone_mode=False)
        if code == INTERRUPTED:  # typer takes the exception for itself
            return _fail("interrupted", INTERRUPTED, False)
        return code if isinstance(code, int) else 0
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return _fail("interrupted", INTERRUPTED, False)
    except SeganError as error:
        return _fail(str(error), error.exit_code, "--debug" in words)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, False)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong use, as the command-line library says it
            message = error.format_message()
            return _fail(message, UsageError.exit_code, False) if message else UsageError.exit_code
        raise


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"segan: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
