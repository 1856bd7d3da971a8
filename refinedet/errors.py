"""Every error that a user can cause: one line, with the file, the place in it and what to do.

All have a common base, ``RefineDetError``, and its fields ``path``, ``key`` and ``reason``:
whoever needs one of them reads the field and never takes the message apart. The
command line prints the line and ends with status 1.

Library code names arguments, not command-line flags: the command line turns the ``key`` of a
``UsageError`` into the flag of that argument.
"""

from __future__ import annotations

from refinedet.spec.errors import RefineDetError


class UsageError(RefineDetError, ValueError):
    """Arguments that are missing, or exclude one another; ``key`` is the argument's name."""


class SettingsError(RefineDetError, ValueError):
    """Settings that cannot be used; ``key`` is the dotted key."""


class DataError(RefineDetError, ValueError):
    """A data set or an image that cannot be used; ``key`` is the row, object or field."""


class FormatError(RefineDetError, ValueError):
    """A file that is not of the format that it should be, or is damaged."""


class CheckpointError(RefineDetError, ValueError):
    """A checkpoint that cannot be read, written or used."""


class BackendError(RefineDetError, RuntimeError):
    """A backend that is unknown, or cannot do here what is asked; ``key`` names it."""


class LostRankError(BackendError):
    """Another rank of the same job has ended, so that this one cannot go on."""


class TrainingError(RefineDetError, RuntimeError):
    """A training that cannot start or go on; ``key`` is the step or the settings key."""


class ExpectationError(RefineDetError, ValueError):
    """Measured metrics that are not the published ones; ``key`` names the published row."""


class RemoteError(RefineDetError, RuntimeError):
    """A file that cannot be copied from or to a URL; ``path`` is the URL or the file."""


class WriteError(RefineDetError, OSError):
    """A file that could not be written; ``errno`` holds the system's code if there is one."""
