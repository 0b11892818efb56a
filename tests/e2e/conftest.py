"""The report of a tier: what each test ran, how long it took, and on what machine.

Written to the file that HONE_E2E_REPORT names, as the make targets do; without it nothing is
written.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hone.runs import installed_versions
from tests.e2e.person import Person

STARTED = datetime.now(UTC)
FOUND: dict[str, dict[str, Any]] = {}


@pytest.fixture
def person(tmp_path: Path, record_property: Any) -> Iterator[Person]:
    """Somebody with an empty folder, whose commands are part of the report."""
    one = Person(tmp_path)
    yield one
    record_property("commands", one.commands)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep what came of each phase of a test: the worst outcome, all seconds, the facts."""
    report = yield
    kept = FOUND.setdefault(item.nodeid, {"name": item.name, "outcome": "passed", "seconds": 0.0})
    kept["seconds"] = round(kept["seconds"] + report.duration, 2)
    if report.outcome != "passed":
        kept["outcome"] = report.outcome
        kept["reason"] = str(report.longrepr)[-2000:]
    kept["facts"] = dict(report.user_properties)
    return report


def pytest_sessionfinish(exitstatus: int) -> None:
    """Write the report, whole, whatever the tests came to."""
    path = os.environ.get("HONE_E2E_REPORT")
    if not path or not FOUND:
        return
    report = {
        "schema": 1,
        "tier": Path(path).stem,
        "passed": int(exitstatus) == 0,
        "exit_code": int(exitstatus),
        "started_at": STARTED.isoformat(timespec="seconds"),
        "seconds": round(time.time() - STARTED.timestamp(), 2),
        "environment": describe_environment(),
        "tests": list(FOUND.values()),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(report, indent=2) + "\n")


def describe_environment() -> dict[str, Any]:
    """Machine and versions."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": installed_versions(),
    }
