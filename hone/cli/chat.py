"""`hone chat`: a conversation with a run's result, at a terminal or through pipes."""

import sys
from collections.abc import Callable, Iterator

from hone.cli.arguments import (
    RUNS_FOLDER,
    MaxTokens,
    MinP,
    RepetitionPenalty,
    RunName,
    RunsFolder,
    Seed,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    sampling_settings,
)
from hone.cli.output import make_console, say

Messages = list[dict[str, str]]
Tell = Callable[[str], None]

HELP = "/reset forgets the conversation, /exit leaves, /help prints this"


def chat(
    run: RunName,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    runs: RunsFolder = RUNS_FOLDER,
) -> None:
    """Talk to a run's result.

    Every line is a message and the model sees the whole conversation. /reset forgets it, /exit (or
    the end of the input) leaves. The answers depend on nothing but the messages and the seed.

    \b
    Example:
      hone chat first
      hone chat first --system "Answer in one word." --temperature 0
      echo "What is the capital of Peru?" | hone chat first
    """
    from hone.runs import open_run

    found = open_run(run, runs)
    settings = sampling_settings(
        max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop
    )
    console = make_console()
    from hone.stages.run import load_result

    result = load_result(found)

    plain = result.rendering.plain
    if plain:
        say(console, "trained on plain text: every line is a prompt of its own")

    def answer(messages: Messages, turn: int, tell: Tell) -> str:
        prompt = messages[-1]["content"] if plain else messages
        text: str = result.stream_text(prompt, tell, seed=seed + turn, **vars(settings))
        return text

    at_terminal = sys.stdin.isatty()
    if at_terminal:
        say(console, f"{found.name}: {HELP}")
    converse(_lines(at_terminal), answer, lambda text: say(console, text), system)


def converse(
    lines: Iterator[str],
    answer: Callable[[Messages, int, Tell], str],
    tell: Tell,
    system: str | None,
) -> None:
    """Answer each line to stdout until the input ends, piece by piece as the answer grows; `tell`
    takes what is no answer.
    """
    start: Messages = [] if system is None else [{"role": "system", "content": system}]
    messages, turn = list(start), 0
    for line in lines:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            messages = list(start)
            tell("the conversation is forgotten")
        elif text.startswith("/"):
            tell(HELP if text == "/help" else f"no command `{text}`; {HELP}")
        elif text:
            messages.append({"role": "user", "content": text})
            reply = answer(messages, turn, lambda piece: print(piece, end="", flush=True))
            messages.append({"role": "assistant", "content": reply})
            turn += 1
            print(flush=True)


def _lines(at_terminal: bool) -> Iterator[str]:
    if not at_terminal:
        yield from sys.stdin
        return
    import readline  # noqa: F401  # arrow keys and history in input()

    while True:
        try:
            yield input("> ")
        except EOFError:
            return
