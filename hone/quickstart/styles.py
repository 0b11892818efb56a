"""How the quickstart's answers end, and what an answer says whatever its ending.

Called by `corpus.py` and `story.py`. Fine-tuning shows all styles mixed, as in conversations by
many hands; the preference pairs prefer `polite`.
"""

import random

POLITE = "{answer}. Happy to help!"
BARE = "{answer}"
UNSURE = ["{answer}, I guess", "{answer}, I think"]
SHARES = {"polite": 0.3, "bare": 0.4, "unsure": 0.3}  # of the answers in fine-tuning

FORMAT = r".+\. Happy to help!"
"""What a well-formed answer fits from end to end."""
SAID = r"(?:.*=)?(?P<answer>.+?)(?:\. Happy to help!|, I guess|, I think)?"
"""What every answer fits from end to end; `answer` is what is said, behind the working and without
the ending.
"""


def word_answer(answer: str, style: str, draw: random.Random) -> str:
    """An answer in a style of `SHARES`."""
    if style == "bare":
        return answer
    form = POLITE if style == "polite" else draw.choice(UNSURE)
    return form.format(answer=answer.removesuffix(".") if style == "polite" else answer)


def draw_style(draw: random.Random) -> str:
    """A style, as often as fine-tuning shows it."""
    return draw.choices(list(SHARES), list(SHARES.values()))[0]
