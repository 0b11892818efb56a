"""`hone track`: send a run's trackers what they do not have yet."""

from typing import TYPE_CHECKING, Any

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunName, RunsFolder
from hone.cli.output import print_json
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.recipe.trackers import Tracker
    from hone.runs import Run


def track(run: RunName, runs: RunsFolder = RUNS_FOLDER, as_json: AsJson = False) -> int:
    """Send a run's trackers what they do not have yet.

    For rows that could not be sent while the run was worked on: nothing is sent twice. Exit code 1
    where a tracker fails or does not answer.

    \b
    Example:
      hone track first
      hone track first --json
    """
    from hone.runs import open_run
    from hone.trackers import check_trackers

    found = open_run(run, runs)
    trackers = found.loaded_recipe().recipe.trackers
    if not trackers:
        hint = "a recipe names them: trackers: [tensorboard]"
        raise UserError(f"the recipe of `{found.name}` names no trackers", hint=hint, exit_code=2)
    check_trackers(trackers)
    with found.lock():  # whoever works on the run sends its rows
        told = [_send(found, settings) for settings in trackers]
    if as_json:
        print_json(told)
    else:
        for line in told:
            print(f"{line['tracker']}: {line['problem'] or 'everything is sent'}")
            for key, value in line["remote"].items():
                print(f"  {key} {value}")
    return 1 if any(line["problem"] for line in told) else 0


def _send(run: "Run", settings: "Tracker") -> dict[str, Any]:
    """Let one tracker's process do it, however long it takes as long as it answers."""
    from hone.files import read_json
    from hone.trackers.follow import everything_sent, progress_path
    from hone.trackers.supervise import Follower

    problems: list[str] = []
    state = run.status()["state"]
    state = "crashed" if state == "running" else state  # it is this process that holds the lock
    if not everything_sent(run, settings.type, state):
        follower = Follower(run, settings, problems.append)
        follower.ask_to_finish(state)
        follower.wait()
    kept = read_json(progress_path(run, settings.type)) or {}
    return {
        "tracker": settings.type,
        "problem": run.conceal(problems[0]) if problems else None,
        "remote": kept.get("remote", {}),
    }
