"""What runs on this machine, for tests of what is left behind."""

import subprocess


def running() -> dict[int, str]:
    """The whole command line of every process, by its number."""
    command = ["ps", "-e", "-ww", "-o", "pid=,args="]  # without -ww cut off at $COLUMNS
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(None, 1) for line in done.stdout.splitlines()]
    return {int(row[0]): row[1] for row in rows if len(row) == 2}
