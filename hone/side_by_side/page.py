"""The comparison of two runs as one HTML file that needs no network.

Styles, script and charts are those of `hone/report/`. Every text is escaped by the template and
passes `finalize`, which puts `${NAME}` back for what the environment has for it.
"""

import json
from pathlib import Path

import numpy as np
from markupsafe import Markup

from hone.concealing import variables_in
from hone.files import write_whole
from hone.report import words
from hone.report.charts import Chart, Series, draw, smoothed
from hone.report.curves import column
from hone.report.templates import open_templates
from hone.report.write import FOLDER as REPORT
from hone.report.write import policy
from hone.side_by_side.compare import SideBySide
from hone.side_by_side.curves import StageCurves, stage_curves
from hone.side_by_side.paired import Paired, PairedRow, is_better

FOLDER = Path(__file__).parent
MOST_ROWS = 40  # of each kind (better, worse, even) that a page shows
LONGEST_PROMPT = 2000


def write_page(found: SideBySide, path: Path) -> None:
    """Write the page, whole or not at all."""
    write_whole(path, render(found).encode(errors="replace"))


def render(found: SideBySide) -> str:
    """The page as text."""
    runs = found.first, found.second
    variables = [pair for run in runs for pair in variables_in(json.dumps(run.resolved()))]
    environment = open_templates(FOLDER, variables)
    environment.filters |= {"number": words.number, "value": words.value}
    environment.globals |= {"asked": asked, "said": said, "verdict": verdict, "strip": strip}
    script, style = (Markup((REPORT / name).read_text()) for name in ("page.js", "page.css"))
    own = Markup((FOLDER / "page.css").read_text())
    names = [run.name for run in runs]
    charts = [(stage.name, stage_charts(stage, names)) for stage in stage_curves(*runs)]
    return environment.get_template("page.html.jinja").render(
        found=found,
        names=names,
        charts=charts,
        most=MOST_ROWS,
        script=script,
        style=style + own,
        policy=policy(script),
    )


def asked(row: PairedRow) -> str:
    """The prompt as text; of a conversation its turns, of plain text where it stands."""
    prompt = row.question.prompt
    if prompt is None:
        return row.question.place
    if isinstance(prompt, str):
        return words.shortened(prompt, LONGEST_PROMPT)
    turns = [f"{turn.get('role')}: {turn.get('content')}" for turn in prompt]
    return words.shortened("\n".join(turns), LONGEST_PROMPT)


def said(text: str | None) -> str:
    """An answer, as it can be shown."""
    return words.NONE if text is None else words.shortened(text)


def verdict(name: str, paired: Paired) -> str:
    """The class of a difference: up, down, or nothing where the interval holds zero."""
    better = is_better(name, paired.difference)
    return "" if better is None else "up" if better else "down"


def strip(paired: Paired) -> Markup:
    """The interval of a difference as a line around zero, with the mean as a dot."""
    found = paired.difference
    reach = max(abs(found.low), abs(found.high), 1e-12) * 1.05
    low, mean, high = (500 + 500 * value / reach for value in (found.low, found.mean, found.high))
    return Markup(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="grid" d="M500 0V1000"/><path class="line" d="M{:.0f} 500L{:.0f} 500"/>'
        '<path class="dots" d="M{:.0f} 500h0"/></svg>'
    ).format(low, high, mean)


def stage_charts(stage: StageCurves, names: list[str]) -> list[Markup]:
    """In training, and on held-out samples: a line for each run."""
    drawn = []
    for title, split in (("in training", "training"), ("held out", "held_out")):
        series = []
        for line in stage.lines:
            steps, values = column(getattr(line, split), stage.column)
            if len(values) and np.isfinite(values).any():
                means = smoothed(values)[0] if split == "training" else values
                series.append(Series(names[line.run], steps, means, f"c{line.run}"))
        if series:
            drawn.append(draw(Chart(f"{stage.column.capitalize()} {title}", "", series)))
    return drawn
