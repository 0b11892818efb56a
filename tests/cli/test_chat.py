"""The conversation of `hone chat`, with an answer that shows what the model was given."""

import pytest

from hone.choosing import SamplingSettings
from hone.cli.arguments import sampling_settings
from hone.cli.chat import Messages, Tell, converse
from hone.cli.generate import _conversation, _read_prompts
from hone.errors import UserError

pytestmark = pytest.mark.quick


def echo(messages: Messages, turn: int, tell: Tell) -> str:
    """All that was said, and the number of the turn, told in two pieces."""
    text = f"{turn}: " + " | ".join(message["content"] for message in messages)
    tell(text[:5])
    tell(text[5:])
    return text


def talk(*lines: str, system: str | None = None) -> list[str]:
    """What was told beside the answers."""
    told: list[str] = []
    converse(iter(lines), echo, told.append, system)
    return told


def test_the_model_sees_the_whole_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    assert talk("hello\n", "\n", "and now?\n", system="be brief") == []
    assert capsys.readouterr().out.splitlines() == [
        "0: be brief | hello",
        "1: be brief | hello | 0: be brief | hello | and now?",
    ]


def test_reset_forgets_all_but_what_the_model_is_told_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert talk("one", "/reset", "two", system="be brief") == ["the conversation is forgotten"]
    assert capsys.readouterr().out.splitlines() == ["0: be brief | one", "1: be brief | two"]


def test_exit_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    assert talk("/exit", "unheard") == []
    assert capsys.readouterr().out == ""


def test_an_unknown_command_is_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = talk("/rest")
    assert "no command `/rest`" in told
    assert capsys.readouterr().out == ""


def test_prompts_come_from_options_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", iter(["two\n", "three\n"]))
    assert _read_prompts(["one", "-"], "first") == ["one", "two", "three"]
    with pytest.raises(UserError, match="no prompt"):
        _read_prompts([], "first")


def test_a_system_message_makes_a_prompt_a_conversation() -> None:
    assert _conversation("2 + 2 =", None) == "2 + 2 ="
    assert _conversation("hello", "be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


def test_options_become_settings_and_those_without_effect_are_refused() -> None:
    settings = sampling_settings(8, 0.5, 0.9, 40, 0.1, 1.2, ["Q:", r"\n"])
    assert settings == SamplingSettings(8, 0.5, 0.9, 40, 0.1, 1.2, ("Q:", "\n"))
    with pytest.raises(UserError, match="--top-p, --min-p: nothing is drawn at temperature 0"):
        sampling_settings(8, 0.0, 0.9, None, 0.1, 1.0, None)
    with pytest.raises(UserError, match=r"top_p is 0.0; expected above 0"):
        sampling_settings(8, 1.0, 0.0, None, None, 1.0, None)
