"""The run that all tests of the report look at; it is trained once."""

import pytest

from hone.runs import Run
from hone.verify.answers import write_answers
from hone.verify.subject import Subject
from tests.report.ground import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = train(tmp_path_factory.mktemp("report"))
    write_answers(Subject(run))
    return run
