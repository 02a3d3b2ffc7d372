"""The typed errors of Emuflow.

Every message says what is wrong, where, and what to do next. A command line prints `str(error)` and exits
with `error.exit_code`; a program catches the class.
"""


class EmuflowError(Exception):
    """Base of every error that Emuflow raises on purpose.

    `what` is the fault, `where` the file, key or step it was found in, `fix` the next thing to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        parts = [what if where is None else f"{where}: {what}"]
        if fix:
            parts.append(f"To do: {fix}")
        super().__init__("\n".join(parts))


class UsageError(EmuflowError):
    """The caller asked for something that cannot be: an unknown setting, a missing file, a wrong flag."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, mistyped or out of its range."""


class DataError(EmuflowError):
    """The data cannot be used: nothing readable, everything dropped, an unsafe archive."""


class UnsafeArchiveError(DataError):
    """An archive member would be written outside its folder (`../`, absolute path, link)."""


class ContractError(DataError):
    """A table breaks the Sample contract; carries the failed expectations."""


class MetricComputationError(EmuflowError):
    """A check could not be computed. This says nothing about the data."""


class EvaluationLeakError(DataError):
    """A sample of the evaluation set, or a near-duplicate of one, stands in the training data."""


class DigestMismatchError(EmuflowError):
    """A file is not the one that was validated, measured or signed."""


class UntrustedFileError(EmuflowError):
    """A pickle, or another format that can run code, where plain data is expected."""


class SignatureError(EmuflowError):
    """A model package is unsigned, altered, or signed by a key that is not trusted."""


class TrainingError(EmuflowError):
    """Training stopped: a non-finite loss, a dead or hung rank."""


class MemoryLackError(TrainingError):
    """Training stopped because memory ran out on one of its machines."""


class QuantizationError(EmuflowError):
    """A layer cannot be quantized; the message names it."""


class ExportError(EmuflowError):
    """A package cannot be built, or the server cannot load it and answer."""


class ServerError(EmuflowError):
    """The Triton server did not start, died, or refused a model."""


class RepositoryError(EmuflowError):
    """A model repository is not what a Triton server needs; the message names the file."""


class GateError(EmuflowError):
    """The evidence is missing or does not match what is to be promoted."""


class PromotionConflictError(EmuflowError):
    """Another promotion came first: the champion is no longer the one that the evidence names."""


class ExperimentConflictError(EmuflowError):
    """An experiment's state was changed by somebody else since it was read."""


class TrackingError(EmuflowError):
    """The tracking server cannot be reached; nothing is promoted without it."""


class PlatformError(EmuflowError):
    """What the run needs of this machine is absent: a container engine, an image."""


class StepFailedError(EmuflowError):
    """A step of the pipeline ended with an error; the message names the step and its log."""


class DiskFullError(EmuflowError):
    """A write ran out of disk; nothing was left under the final name."""
