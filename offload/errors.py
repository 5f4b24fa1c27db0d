"""Every expected failure of finemoe, in one tree.

An error says in one line what is wrong, and in ``hint`` what to do about it. Whoever shows errors decides
how; the engine never prints.

::

    FinemoeError
    ├── ConfigError            an option or a settings file has a value that cannot be used
    │   └── ContextOverflow    the prompt does not fit into the context window
    ├── NotFound               something that was named does not exist
    │   ├── ModelNotFound
    │   ├── ProfileNotFound
    │   └── SessionNotFound
    ├── DoesNotFit             the memory budget, the model and the machine do not go together
    │   ├── BudgetTooSmall     the budget cannot hold the model's fixed parts
    │   └── BudgetTooLarge     the machine has less memory than the budget promises
    ├── ModelError             the model folder exists and cannot be used
    │   ├── UnsupportedModel   an architecture, a data type or a file format that finemoe does not run
    │   └── CorruptCheckpoint  truncated, missing or contradictory files
    ├── PullError              a model could not be fetched or built
    │   └── ChecksumMismatch
    ├── StorageError           the disk is full, or a folder cannot be written
    │   └── DamagedFile        a file of finemoe's own is not what was written
    ├── ExpertReadError        an expert's bytes could not be read while generating
    ├── BoardError             the counters of a running engine cannot be read
    ├── TraceError             a recorded trace cannot be used
    ├── KnowledgeError         what was learnt about a model cannot be used
    └── EngineBroken           the engine was closed, or met an error that it cannot go on after
"""

from __future__ import annotations


class FinemoeError(Exception):
    """Base of all expected failures.

    Args:
        message: One line, without a full stop at the end, that says what is wrong.
        hint: One line that says what to do about it; empty if there is nothing to do.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(FinemoeError):
    """An option or a settings file has a value that cannot be used."""


class ContextOverflow(ConfigError):
    """The prompt does not fit into the context window."""


class NotFound(FinemoeError):
    """Something that was named does not exist."""


class ModelNotFound(NotFound):
    """No model of that name or at that path."""


class ProfileNotFound(NotFound):
    """No profile of that name."""


class SessionNotFound(NotFound):
    """No session or message of that id or title."""


class DoesNotFit(FinemoeError):
    """The memory budget, the model and the machine do not go together."""


class BudgetTooLarge(DoesNotFit):
    """The machine has less memory than the budget promises."""


class BudgetTooSmall(DoesNotFit):
    """The memory budget cannot hold the parts of the model that must always be there.

    Attributes:
        smallest_bytes: The smallest budget that would work with the same settings.
    """

    def __init__(self, message: str, hint: str = "", *, smallest_bytes: int) -> None:
        super().__init__(message, hint)
        self.smallest_bytes = smallest_bytes


class ModelError(FinemoeError):
    """The model folder exists and cannot be used."""


class UnsupportedModel(ModelError):
    """An architecture, a data type or a file format that finemoe does not run."""


class CorruptCheckpoint(ModelError):
    """Truncated, missing or contradictory checkpoint files."""


class PullError(FinemoeError):
    """A model could not be fetched or built."""


class ChecksumMismatch(PullError):
    """A fetched file is not the file that was expected."""


class StorageError(FinemoeError):
    """The disk is full, or a folder cannot be written."""


class DamagedFile(StorageError):
    """A file of finemoe's own is not what was written; it is left as it is."""


class ExpertReadError(FinemoeError):
    """An expert's bytes could not be read while generating; the request failed, the engine goes on."""


class BoardError(FinemoeError):
    """The counters of a running engine cannot be read: no board, a damaged one, or one of another version."""


class TraceError(FinemoeError):
    """A recorded trace cannot be used: no trace, a damaged one, one of a newer version or of another model."""


class KnowledgeError(FinemoeError):
    """What was learnt about a model cannot be used: a damaged file, one of a newer version or of another model."""


class EngineBroken(FinemoeError):
    """The engine was closed, or met an error that it cannot go on after."""
