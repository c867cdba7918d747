"""Errors that the user can fix; any other exception is a bug and keeps its traceback."""


class SeganError(ValueError):
    """Base class: something outside the code is wrong, such as a file or a bucket. Exit code 1.

    The message names the thing, what was expected, what was found and what to do.
    """

    exit_code = 1


class UsageError(SeganError):
    """The command or its configuration is wrong. Exit code 2."""

    exit_code = 2


class StorageError(SeganError):
    """A folder or bucket cannot be read or written."""


class NotFoundError(StorageError):
    """The file does not exist."""


class TransientError(StorageError):
    """This attempt failed; retrying may help."""


class LeaseLostError(SeganError):
    """Another process has taken over what this one was writing."""


class CorruptedError(StorageError):
    """A stored file differs from what was written."""


class RejectedError(SeganError):
    """An image or mask that cannot be used; the message goes into the table of rejects."""


class NonFiniteError(SeganError):
    """A loss or gradient is NaN or infinite; retrying will not help."""


class StoppedError(SeganError):
    """The run stopped on request, after saving a checkpoint to resume from.

    The exit code is 128 plus the signal's number, as in a shell; SIGTERM's by default.
    """

    exit_code = 143
