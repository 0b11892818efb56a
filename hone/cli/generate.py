"""`hone generate`: a run's result answers prompts, reproducibly."""

import sys
from typing import Annotated, Any

import typer

from hone.cli.arguments import (
    RUNS_FOLDER,
    AsJson,
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
from hone.cli.output import print_json
from hone.errors import UserError


def generate(
    run: RunName,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="A prompt; - reads one from each line of stdin."
        ),
    ] = None,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS_FOLDER,
) -> None:
    """Let a run's result answer prompts.

    All prompts are answered together; one alone prints nothing but its answer.

    \b
    Example:
      hone generate first --prompt "What is the capital of Peru?"
      hone generate first --prompt "2 + 3 =" --prompt "4 + 5 =" --json
      hone generate first --prompt "Once" --temperature 1 --top-p 0.9 --stop "Q:"
      hone generate first --prompt - --temperature 0.8 --seed 1 < prompts.txt
    """
    from hone.runs import open_run

    found = open_run(run, runs)
    prompts = _read_prompts(prompt or [], found.reference)
    settings = sampling_settings(
        max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop
    )
    from hone.stages.run import load_result

    result = load_result(found)
    answers: list[str] = result.generate_text(
        [_conversation(text, system) for text in prompts],
        seed=seed,
        **vars(settings),
    )
    pairs = list(zip(prompts, answers, strict=True))
    if as_json:
        print_json([{"prompt": text, "completion": answer} for text, answer in pairs])
    elif len(pairs) == 1:
        print(answers[0])
    else:
        print("\n\n".join(f"> {text}\n{answer}" for text, answer in pairs))


def _read_prompts(given: list[str], reference: str) -> list[str]:
    """The prompts in order, stdin's lines in the place of `-`. Raises UserError where there is
    none.
    """
    prompts: list[str] = []
    for text in given:
        prompts += [line.rstrip("\n") for line in sys.stdin] if text == "-" else [text]
    if not prompts:
        hint = f'hone generate {reference} --prompt "What is the capital of Peru?"'
        raise UserError("no prompt was given", hint=hint, exit_code=2)
    return prompts


def _conversation(text: str, system: str | None) -> str | list[dict[str, Any]]:
    """A bare prompt, which the result renders as it was trained; with `system`, a conversation."""
    if system is None:
        return text
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]
