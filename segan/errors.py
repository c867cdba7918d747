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


class NotFoundError(StorageError):
    """There is no file of this name."""


class TransientError(StorageError):
    """This attempt failed, and the next may not."""


class CorruptedError(StorageError):
    """What is stored is not what was written."""


class NonFiniteError(SeganError):
    """A number of a training is not finite: the same again will not mend it."""


class StoppedError(SeganError):
    """A run was told to stop and did, with a checkpoint to go on from.

    The exit code is a shell's for an end by a signal, 128 and its number: SIGTERM's until it is
    known better.
    """

    exit_code = 143
