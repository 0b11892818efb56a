"""The process of one tracker: `python -m hone.trackers NAME RUN PID`, started by `supervise.py`.

Standard input brings the run's final state as one line; its end, or the end of process PID, ends
this process at once. Standard output carries signs of life: "alive", "failed ..." or "done". What
libraries print goes nowhere; the traceback of a failure goes to `trackers/NAME.log`. Ctrl-C is for
the run alone.
"""

import os
import re
import select
import signal
import sys
import threading
import traceback
from pathlib import Path

from hone.concealing import SHORTEST_CONCEALED
from hone.files import append_line
from hone.runs import Run

POLL_S = 1.0
SECRET = re.compile(r"(WANDB|MLFLOW|AWS|DATABRICKS)_.*(KEY|TOKEN|PASSWORD|SECRET).*")


class Parent:
    """The process that works on the run: what it says, and that it lives."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.final: str | None = None
        self.has_spoken = threading.Event()
        self._input, self._output = os.dup(0), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # also those of the libraries' own processes
            os.dup2(nowhere, descriptor)
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, line: str) -> None:
        """Say one line."""
        os.write(self._output, f"{line}\n".encode())

    def _listen(self) -> None:
        """The end of the input alone is not enough: a forked worker may hold the other end."""
        heard = b""
        while os.getppid() == self.pid:
            if not select.select([self._input], [], [], POLL_S)[0]:
                continue
            piece = os.read(self._input, 64)
            if not piece:
                break
            heard += piece
            if b"\n" in heard and self.final is None:
                self.final = heard.decode().partition("\n")[0]
                self.has_spoken.set()
        os._exit(1)


def main(name: str, folder: str, pid: str) -> int:
    """Follow a run until its final state is known and sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, run = Parent(int(pid)), Run(Path(folder))
    try:
        follow(run, name, parent)
    except Exception as error:
        log = run.path / "trackers" / f"{name}.log"
        words = next(iter(str(error).splitlines()), "")
        parent.tell(f"failed {conceal(run, f'{type(error).__name__}: {words}')}")
        append_line(log, conceal(run, "".join(traceback.format_exception(error))))
        return 1
    parent.tell("done")
    return 0


def conceal(run: Run, text: str) -> str:
    """`text` without the recipe's variables and without keys that a library's message may quote."""
    text = run.conceal(text)
    for name, value in os.environ.items():
        if SECRET.fullmatch(name) and len(value) >= SHORTEST_CONCEALED:
            text = text.replace(value, f"${{{name}}}")
    return text


def follow(run: Run, name: str, parent: Parent) -> None:
    """Send what there is, again and again; once more when the run has ended."""
    from hone.trackers import connect
    from hone.trackers.follow import Following

    recipe = run.loaded_recipe()
    settings = next(tracker for tracker in recipe.recipe.trackers if tracker.type == name)
    if recipe.folder.is_dir():
        os.chdir(recipe.folder)  # relative places in a store's address belong there
    following = Following(run, name, lambda about: connect(settings, about))
    while True:
        parent.tell("alive")
        final = parent.final  # before the rows: what was written until then is sent
        for _ in following.send_new():
            parent.tell("alive")
        if final is not None:
            following.close(final)
            return
        parent.has_spoken.wait(POLL_S)


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # what libraries still have to say is of no interest
