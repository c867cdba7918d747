"""The errors that are a person's to mend; everything else is a bug and keeps its traceback."""


class SeganError(ValueError):
    """Something outside the code is wrong: a file, a bucket, a record. Exit code 1.

    The message names the thing, what was expected, what was found and what to do.
    """

    exit_code = 1


class UsageError(SeganError):
    """The command or its configuration is wrong. Exit code 2."""

    exit_code = 2


class StorageError(SeganError):
    """A folder or bucket could not be read or written."""
