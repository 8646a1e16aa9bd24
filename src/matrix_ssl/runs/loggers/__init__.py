"""Loggers: other programs that receive the numbers of each line of metrics during a run, from the main process only.

Nothing depends on them: if one fails during training, it gets no more lines and the training goes on. A resumed run
continues in the same place, and no step is logged twice. The network is used only if the environment asks for it.
"""

import importlib.util
from collections.abc import Collection, Iterable
from pathlib import Path

from matrix_ssl.errors import ConfigError, MatrixSSLError, MissingExtra, did_you_mean
from matrix_ssl.runs.loggers.base import Line, Logger
from matrix_ssl.runs.loggers.local import CSVLogger, TensorBoardLogger
from matrix_ssl.runs.loggers.tracked import MLflowLogger, WandbLogger

LOGGERS: dict[str, type[Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}


def check_loggers(names: Collection[str]) -> None:
    """Raises ConfigError for a name that is not a logger, and MissingExtra if its package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"There is no logger {name!r}.{did_you_mean(name, LOGGERS)}")
        for package in LOGGERS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(package, name)


def open_loggers(names: Collection[str], run: Path, history: Iterable[Line]) -> list[Logger]:
    """Starts or resumes loggers for a claimed run folder.

    Args:
        names: keys of ``LOGGERS``.
        history: the lines so far, for those that a logger has not seen; can be iterated over repeatedly.

    Raises:
        ConfigError: a logger does not start, for example because its server does not answer.
    """
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        try:
            loggers.append(LOGGERS[name](run, history))
        except Exception as error:
            for logger in loggers:
                logger.close(finished=False)
            if isinstance(error, MatrixSSLError):
                raise
            raise ConfigError(f"The logger {name} does not start: {_reason(error)}. Remove it or set it up.") from error
    return loggers


def failure(logger: Logger, error: Exception) -> str:
    """What to say about a logger that failed during the training."""
    return (
        f"Warning: the logger {logger.name} failed ({_reason(error)}) and gets no more lines; the training goes on. "
        f"When the run is resumed, it gets the lines that it has missed."
    )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
