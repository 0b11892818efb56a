"""A run verified in a process of its own, as `hone run` and the quickstart end."""

import subprocess
import sys
from signal import Signals

from rich.console import Console

from hone.errors import UserError
from hone.runs import Run
from hone.signals import StopRequested

STDERR = 2  # where the verdicts are printed: the command that asks for them has its own stdout
NOT_VERIFIED = 3  # the exit code of a command that has trained well


def verify_command(run: Run) -> str:
    """What a person types to verify a run."""
    return f"hone verify {run.reference}"


def verify_in_fresh_process(run: Run, console: Console) -> bool:
    """Verify a finished run and print its verdicts; True where no check failed.

    Raises UserError where that could not be done, and StopRequested after it was said how to do it
    later.
    """
    words = [sys.executable, "-m", "hone", "verify", str(run.path)]
    try:
        code = subprocess.run(words, stdout=STDERR).returncode
    except StopRequested as stop:
        text = f"{stop}; the run is finished, not yet verified: {verify_command(run)}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
        raise
    if code and run.lacks_verdicts():
        how = f"by {Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise UserError(
            f"the run `{run.name}` is finished, but could not be verified: that ended {how}",
            hint=verify_command(run),
            exit_code=NOT_VERIFIED,
        )
    return code == 0
