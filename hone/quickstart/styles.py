"""How the quickstart's answers are worded, and what an answer says whatever its wording.

Called by `corpus.py` and `story.py`. Fine-tuning shows all styles mixed, as in conversations by
many hands; the preference pairs prefer `sentence`; the environment's marker asks for it.
"""

import random

MARKER = "The answer is"
SENTENCE = MARKER + " {answer}."
BARE = "{answer}"
UNSURE = ["Maybe {answer}", "I think it is {answer}"]
SHARES = {"sentence": 0.3, "bare": 0.4, "unsure": 0.3}  # of the answers in fine-tuning

FORMAT = rf"(.*\. )?{MARKER} .+\."
"""What a well-formed answer fits from end to end."""
SAID = r"(?:.*(?: is |Maybe |=))?(?P<answer>.+?)\.?"
"""What every answer fits from end to end; `answer` is what is said behind the words around it."""


def word_answer(answer: str, style: str, draw: random.Random, working: str | None = None) -> str:
    """An answer in a style of `SHARES`, behind its working where that is shown."""
    if style == "bare":
        return working or answer
    form = SENTENCE if style == "sentence" else draw.choice(UNSURE)
    worded = (f"{working}. " if working else "") + form.format(answer=answer)
    return worded.removesuffix(".") if worded.endswith("..") else worded  # Washington, D.C.


def draw_style(draw: random.Random) -> str:
    """A style, as often as fine-tuning shows it."""
    return draw.choices(list(SHARES), list(SHARES.values()))[0]
