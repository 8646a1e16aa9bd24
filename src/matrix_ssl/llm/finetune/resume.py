"""The checkpoint from which a fine-tuning run resumes: intact, of the step it names, and with a warning of any gaps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from matrix_ssl import distributed
from matrix_ssl.errors import CheckpointError, MatrixSSLError, RunFolderError, is_out_of_memory
from matrix_ssl.llm.finetune.arguments import one_sentence
from matrix_ssl.llm.finetune.trainer import Recorder
from matrix_ssl.runs.digests import DIGESTS, check_digests
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_object
from matrix_ssl.runs.folder import CHECKPOINTS

_STATE = "trainer_state.json"  # the Trainer writes it last


def newest_checkpoint(out: Path, say: Callable[[str], None]) -> tuple[int, str | None]:
    """The step and the folder of the newest intact checkpoint; 0 and None if there is none.

    Raises:
        CheckpointError: there are checkpoints and all of them are damaged.
    """
    complete = [state.parent for state in (out / CHECKPOINTS).glob(f"checkpoint-*/{_STATE}")]
    by_step = {int(number): path for path in complete if (number := path.name.rpartition("-")[2]).isdecimal()}
    recorded = {step: path for step, path in by_step.items() if (path / DIGESTS).exists()}
    problems: list[str] = []
    for step, path in sorted((recorded or by_step).items(), reverse=True):
        try:
            if recorded:  # those of earlier versions have no digests
                check_digests(path, out)
            _check_state(path / _STATE, step)
            return step, str(path)
        except CheckpointError as error:
            problems.append(str(error))
            say(f"Warning: {error} Resuming from the checkpoint before it.")
    if problems:
        raise CheckpointError(f"No checkpoint can be read: {' '.join(problems)} Use --fresh to start over.")
    return 0, None


@contextmanager
def resuming(place: str | None, recorder: Recorder) -> Iterator[None]:
    """Turns errors of all kinds from libraries that read a checkpoint into a CheckpointError that names it."""
    try:
        yield
    except MatrixSSLError:
        raise
    except Exception as error:
        if place is None or recorder.has_begun or is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{place} cannot be resumed: {one_sentence(error).partition('. ')[0].rstrip('.')}. Remove that folder to "
            f"resume from the checkpoint before it, or use --fresh to start over."
        ) from error


def warn_of_missing_state(checkpoint: Path, display: Display) -> None:
    """Warns about state that a checkpoint lacks and that starts anew, so that the run continues differently."""
    if any(checkpoint.glob("global_step*")):
        return  # DeepSpeed's, which has all of it
    processes = distributed.world_size()
    randomness = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
    lacks = [name for name in randomness if not (checkpoint / name).exists()]
    if not any(checkpoint.glob("*optim*")):
        what = "has no state of the optimizer (save_only_model=true), which starts anew"
    elif not (checkpoint / "scheduler.pt").exists():
        what = "has no scheduler.pt, so the optimizer and the learning rate start anew"
    elif lacks:
        what = f"has no {lacks[0]}, or is of a different number of processes, so random numbers start anew"
    else:
        return
    display.say(f"{checkpoint.name} {what}: the weights will differ from those of a run that was not interrupted.")


def _check_state(path: Path, step: int) -> None:
    """Raises CheckpointError if the state of the training is not that of the step in the name of its folder."""
    try:
        state = read_object(path, "global_step", "train_batch_size")
    except RunFolderError as error:
        raise CheckpointError(str(error)) from error
    if state["global_step"] != step or not isinstance(state["train_batch_size"], int):
        raise CheckpointError(f"{path} is not the state of a training after step {step}.")
