"""From a run to report.html: one file that needs no network and no other file.

Called by `hone report` and at the end of `hone verify`. Every text is escaped by the template, and
every text passes `finalize`, which puts `${NAME}` back for what the environment has for it. The
page's own policy allows nothing but its own script and styles.
"""

import base64
import json
from hashlib import sha256
from pathlib import Path

from markupsafe import Markup

from hone.concealing import variables_in
from hone.files import write_whole
from hone.report import words
from hone.report.charts import draw, sparkline, whisker
from hone.report.collect import Report, StageReport, collect
from hone.report.curves import column, stage_charts
from hone.report.templates import open_templates
from hone.runs import Run

RESULT = "report.html"
FOLDER = Path(__file__).parent


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write the report of a run, whole or not at all, and return where: `report.html` in the run,
    or `path`. The same files of a run give the same page. Raises UserError for a run whose files
    cannot be read.
    """
    path = path or run.path / RESULT
    variables = variables_in(json.dumps(run.resolved()))
    page = render(collect(run), variables)
    # A text may hold half of a surrogate pair, which no file can.
    write_whole(path, page.encode(errors="replace"))
    return path


def render(report: Report, variables: list[tuple[str, str]]) -> str:
    """The page. variables: (name, value) of what must not be on it."""
    environment = open_templates(FOLDER, variables)
    environment.filters |= {
        "number": words.number,
        "brief": words.brief,
        "count": words.count,
        "duration": words.duration,
        "memory": words.memory,
        "moment": words.moment,
        "value": words.value,
    }
    environment.globals["whisker"] = whisker
    script, style = (_own(name) for name in ("page.js", "page.css"))
    page = environment.get_template("page.html.jinja").render(
        report=report,
        curves={stage.name: _curves(stage) for stage in report.stages if stage.rows},
        sparks={stage.name: _spark(stage) for stage in report.stages},
        script=script,
        style=style,
        policy=policy(script),
    )
    return page


def policy(script: str) -> str:
    """What a browser lets the page do: this script, styles, nothing from anywhere."""
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _own(name: str) -> Markup:
    """A file of ours that becomes part of the page."""
    return Markup((FOLDER / name).read_text())


def _curves(stage: StageReport) -> tuple[list[Markup], list[Markup]]:
    charts, others = stage_charts(stage.method, stage.training, stage.held_out, stage.marks)
    return [draw(chart) for chart in charts], [draw(chart) for chart in others]


def _spark(stage: StageReport) -> Markup:
    """The curve of the stage's headline, in training; of its evaluations where there is none."""
    headline = stage.headline
    if headline is None:
        return Markup("")
    name = headline.label.removeprefix("held-out ")
    return sparkline(*column(stage.training, name)) or sparkline(*column(stage.held_out, name))
