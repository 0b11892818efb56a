"""An evaluation that is kept as it goes, and goes on where it was stopped.

Called by `hone evaluate`. What is written ends in the same bytes, however often it was stopped.
"""

from collections.abc import Sequence

from rich.console import Console

from hone.choosing import SamplingSettings
from hone.device import make_deterministic
from hone.evaluation.answered import Answered, Evaluated
from hone.evaluation.evaluate import Wanted, evaluate
from hone.evaluation.examples import Question
from hone.evaluation.opened import Model
from hone.evaluation.stored import Place, What, read_evaluation
from hone.signals import StopRequested
from hone.stages.progress import StageProgress


def evaluate_into(
    place: Place,
    what: What,
    model: Model,
    questions: Sequence[Question],
    wanted: Wanted,
    settings: SamplingSettings,
    console: Console,
    *,
    anew: bool = False,
) -> Evaluated:
    """Ask what has no answer yet in a place that is free or holds this evaluation; whoever calls
    has its lock. anew: write over what is there.

    `what` has the batch, the seed and the columns to measure by in its settings.
    """
    if place.finished and not anew:
        console.print("evaluated before; --anew asks again", highlight=False)
        return read_evaluation(place.lines).evaluated
    if anew or not place.is_taken:
        place.begin(what)
    batch, seed, by = (what["settings"][key] for key in ("batch", "seed", "by"))
    done = place.take_up(batch, len(questions))
    total = len(questions)
    if done:
        console.print(f"going on behind {len(done):,} of {total:,} answers", highlight=False)
    make_deterministic(model.device)
    artifact = model.load()
    with StageProgress(console, None, "questions", total) as bar:
        count = len(done)
        bar.advance_to(count)

        def keep(rows: list[Answered]) -> None:
            nonlocal count
            place.keep(rows)
            count += len(rows)
            bar.advance_to(count)

        try:
            found = evaluate(
                artifact,
                questions,
                wanted,
                settings,
                seed=seed,
                batch=batch,
                by=by,
                done=done,
                keep=keep,
            )
        except StopRequested as stop:
            said = f"{stop} after {count:,} of {total:,} answers; the same command goes on"
            console.print(said, highlight=False, soft_wrap=True)
            raise
    place.finish(what, found)
    return found
