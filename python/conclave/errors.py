"""What this package raises when it is used wrongly. Every message says what is wrong, its value, the reason and the remedy."""

from __future__ import annotations


class ConclaveError(RuntimeError):
    """The base of all errors below."""


class ConfigError(ConclaveError, ValueError):
    """A key or a value of a configuration or of a job file cannot be used."""


class LayoutError(ConfigError):
    """The degrees do not divide the ranks or the model's experts."""


class ProcessGroupError(ConclaveError):
    """torch.distributed is not initialized, or conclave.init was not called, or the ranks do not hold the same weights."""


class OrderError(ConclaveError):
    """A call came too early, too late or twice."""


class UnsupportedModelError(ConclaveError, TypeError):
    """The model cannot be given expert parallelism."""


class UnsupportedError(ConclaveError):
    """A known option that this front end cannot honour; the message says why."""


class NotMaterializedError(ConclaveError):
    """Parameters or buffers are still on the meta device."""


class CheckpointError(ConclaveError):
    """A checkpoint does not hold what the model needs, or cannot be written."""


class TorchVersionError(ConclaveError, ImportError):
    """The installed torch is not the one that Conclave was built for."""


class JobError(ConclaveError):
    """The `conclave` program ended with an error.

    Attributes:
        exit_code: of the program; docs/errors.md lists them.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
