"""Profiles and adapters that go on: who wins over whom, and that a run never reads them again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from hone.errors import UserError
from hone.recipe.load import LoadedRecipe, load_recipe, load_resolved
from hone.recipe.preference import Dpo
from hone.recipe.profiles import FOLDER, apply_profiles, open_profile, profile_names
from hone.recipe.training import AdamW, BatchSize, Full, Lora, WarmUp
from tests.recipe.test_faults import faults
from tests.recipe.test_load import SMALL, sft, write

pytestmark = pytest.mark.quick

BARE = "model: acme/base\nstages:\n  - sft: {data: chat.jsonl}\n"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def load(folder: Path, *overrides: str, recipe: str = BARE, **files: str) -> LoadedRecipe:
    """The recipe with overrides, beside files of these names (without suffix)."""
    path = write(folder, recipe)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return load_recipe(path, overrides)


# What comes with Hone


def test_the_built_in_profiles_say_what_they_should(tmp_path: Path) -> None:
    found = {name: sft(load(tmp_path, f"sft.profile={name}")) for name in profile_names()}
    assert {name: settings.data.template for name, settings in found.items()} == {
        "chat": "chatml",
        "code": "alpaca",
        "instruction": "alpaca",
    }
    assert {name: settings.adapter for name, settings in found.items()} == {
        "chat": Lora(rank=8, alpha=16.0, dropout=0.1, targets=ATTENTION),
        "code": Lora(rank=32, alpha=64.0, dropout=0.05, targets="all"),
        "instruction": Lora(rank=16, alpha=32.0, dropout=0.05, targets=ATTENTION),
    }
    rows = {
        name: (
            settings.max_tokens,
            settings.learning_rate,
            settings.batch.samples,
            settings.epochs,
            settings.warmup,
            settings.schedule,
            settings.optimizer,
        )
        for name, settings in found.items()
    }
    assert rows == {
        "chat": (2048, 2e-4, 2, 3.0, WarmUp(steps=100, at_most=0.1), "cosine", AdamW()),
        "code": (
            *(4096, 1e-4, 2, 5.0, WarmUp(steps=500, at_most=0.1), "cosine"),
            AdamW(weight_decay=0.01),
        ),
        "instruction": (2048, 3e-4, 4, 3.0, WarmUp(steps=200, at_most=0.1), "linear", AdamW()),
    }


@pytest.mark.parametrize("name", profile_names())
def test_a_built_in_profile_has_no_faults_and_says_what_it_is_for(name: str) -> None:
    profile = open_profile(name)
    assert profile.faults == []
    assert len(profile.summary) > 10
    assert YAML(typ="safe", pure=True).load(profile.text) == profile.settings


def test_a_built_in_profile_is_the_same_written_out(tmp_path: Path) -> None:
    """Against the file's text itself, pasted into the recipe."""
    for name in profile_names():
        text = (FOLDER / f"{name}.yaml").read_text()
        lines = "".join(f"      {line}\n" for line in text.splitlines())
        pasted = BARE.replace("{data: chat.jsonl}", "\n" + lines)
        written = load(tmp_path, "sft.data.path=chat.jsonl", recipe=pasted)
        merged = sft(load(tmp_path, f"sft.profile={name}"))
        assert merged.model_copy(update={"profile": None}) == sft(written)


# Who wins


def test_a_given_value_wins_deep_inside(tmp_path: Path) -> None:
    recipe = BARE.replace(
        "{data: chat.jsonl}",
        "{profile: code, data: {path: chat.jsonl, template: chatml}, adapter: {rank: 4}, "
        "optimizer: {betas: [0.8, 0.9]}, warmup: {at_most: 0.2}}",
    )
    loaded = load(tmp_path, "sft.learning_rate=5e-5", recipe=recipe)
    settings = sft(loaded)
    assert settings.adapter == Lora(rank=4, alpha=64.0, dropout=0.05, targets="all")
    assert settings.optimizer == AdamW(betas=(0.8, 0.9), weight_decay=0.01)
    assert settings.warmup == WarmUp(steps=500, at_most=0.2)
    assert (settings.learning_rate, settings.data.template) == (5e-5, "chatml")
    origins = loaded.origins
    assert origins["stages[0].sft.adapter.rank"] == "recipe.yaml:3"
    assert origins["stages[0].sft.adapter.alpha"] == "profile code"
    assert origins["stages[0].sft.optimizer.weight_decay"] == "profile code"
    assert origins["stages[0].sft.optimizer.epsilon"] == "default"
    assert origins["stages[0].sft.learning_rate"] == "command line"
    assert origins["stages[0].sft.profile"] == "recipe.yaml:3"


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("sft.adapter={type: full}", "adapter", Full()),
        ("sft.batch.tokens=64", "batch", BatchSize(tokens=64)),
        ("sft.batch={tokens: 64}", "batch", BatchSize(tokens=64)),
        ("sft.steps=9", "epochs", None),
        ("sft.epochs=null", "epochs", None),
        ("sft.warmup=0", "warmup", 0),
        ("sft.warmup=0.5", "warmup", 0.5),
        ("sft.optimizer={type: sgd}", "optimizer", {"type": "sgd", "weight_decay": 0.0}),
        ("sft.optimizer={momentum: 0.5}", "optimizer", {"type": "sgd"}),
        ("sft.adapter.targets=[up_proj]", "adapter", {"rank": 32, "targets": ["up_proj"]}),
    ],
)
def test_what_a_given_value_excludes_is_taken_back(
    tmp_path: Path, override: str, field: str, value: Any
) -> None:
    """The second rule by the message: `momentum` belongs to another type than the profile's."""
    if "momentum" in override:
        found = faults(write(tmp_path, BARE), "sft.profile=code", override)
        assert 'unknown key "momentum" with type "adamw"; it belongs to type "sgd"' in found[0]
        return
    settings = getattr(sft(load(tmp_path, "sft.profile=code", override)), field)
    if isinstance(value, dict):
        assert settings.model_dump().items() >= value.items()
    else:
        assert settings == value


def test_a_mapping_without_a_type_is_of_the_profiles_one_where_its_keys_fit(tmp_path: Path) -> None:
    own = "adapter: {type: full}\noptimizer: {type: sgd, momentum: 0.5}\n"
    overrides = ["sft.profile=own.yaml", "sft.adapter={rank: 3}", "sft.optimizer.weight_decay=0.1"]
    settings = sft(load(tmp_path, *overrides, own=own))
    assert settings.adapter == Lora(rank=3)
    assert settings.optimizer.model_dump() == {"type": "sgd", "momentum": 0.5, "weight_decay": 0.1}


def test_a_profile_may_come_from_the_command_line_and_be_taken_back(tmp_path: Path) -> None:
    recipe = BARE.replace("{data", "{profile: chat, data")
    assert sft(load(tmp_path, "sft.profile=code", recipe=recipe)).max_tokens == 4096
    taken_back = load(tmp_path, "sft.profile=null", recipe=recipe)
    assert sft(taken_back) == sft(load(tmp_path))


def test_evaluation_of_the_profile_gives_way_to_data_of_its_own(tmp_path: Path) -> None:
    own = "evaluation: {share: 0.1, every: 7}\n"
    load(tmp_path, own=own)
    settings = sft(load(tmp_path, "sft.profile=own.yaml", "sft.evaluation.data=chat.jsonl"))
    assert settings.evaluation is not None
    assert (settings.evaluation.share, settings.evaluation.every) == (None, 7)
    assert sft(load(tmp_path, "sft.profile=own.yaml", "sft.evaluation=null")).evaluation is None


def test_a_profiles_data_reach_every_data_set_of_a_list(tmp_path: Path) -> None:
    """On plain values: what a list of data sets may hold is the schema's business."""
    sets = [{"path": "a"}, {"path": "b", "template": "auto"}]
    recipe = {"stages": [{"sft": {"profile": "chat", "data": copy.deepcopy(sets)}}]}
    origins = load_origins()
    assert apply_profiles(recipe, origins, tmp_path / "recipe.yaml") == []
    assert recipe["stages"][0]["sft"]["data"] == [
        {"path": "a", "template": "chatml"},
        {"path": "b", "template": "auto"},
    ]
    assert origins["stages", 0, "sft", "data", 0, "template"].name == "profile chat"
    assert ("stages", 0, "sft", "data", 1, "template") not in origins


def load_origins() -> dict[Any, Any]:
    from hone.recipe.faults import Origin

    return {(): Origin("recipe.yaml", 1)}


# Files of one's own


def test_a_profile_of_ones_own_belongs_to_the_recipes_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "own.yaml").write_text("\ndata: {template: mine.jinja}\nmax_tokens: 64\n")
    (shared / "mine.jinja").touch()
    recipe = BARE.replace("{data", "{profile: ../shared/own.yaml, data")
    loaded = load(tmp_path / "recipes", recipe=recipe)
    assert sft(loaded).max_tokens == 64
    assert sft(loaded).data.template == str(shared / "mine.jinja")
    assert loaded.resolved["stages"][0]["sft"]["data"]["template"] == "../shared/mine.jinja"
    assert loaded.origins["stages[0].sft.max_tokens"] == "profile own.yaml:3"


def test_a_profile_on_the_command_line_belongs_to_the_current_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own.yaml").write_text("max_tokens: 11\n")
    monkeypatch.chdir(tmp_path / "here")
    loaded = load(tmp_path / "recipes", "sft.profile=own.yaml", own="max_tokens: 22\n")
    assert sft(loaded).max_tokens == 11
    assert sft(loaded).profile == str(tmp_path / "here" / "own.yaml")
    monkeypatch.chdir(tmp_path)
    assert sft(load(tmp_path / "recipes", "sft.profile=own.yaml")).max_tokens == 22


def test_variables_in_the_name_and_the_values_of_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_TEST_PART", "own")
    own = "data: {columns: {text: '${HONE_TEST_PART}'}}\n"
    loaded = load(tmp_path, "sft.profile=${HONE_TEST_PART}.yaml", own=own)
    assert sft(loaded).data.columns.text == "own"
    columns = loaded.resolved["stages"][0]["sft"]["data"]["columns"]
    assert columns["text"] == "${HONE_TEST_PART}"
    monkeypatch.setenv("HONE_TEST_PART", "sesame")
    found = faults(write(tmp_path, BARE), "sft.profile=${HONE_TEST_PART}.yaml")
    assert "sesame" not in "".join(found)
    (tmp_path / "sesame.yaml").write_bytes(b"a: 1\nb: \xff\n")
    found = faults(write(tmp_path, BARE), "sft.profile=${HONE_TEST_PART}.yaml")
    assert "${HONE_TEST_PART}.yaml:2: not UTF-8 text" in found[0]
    assert "sesame" not in "".join(found)
    monkeypatch.delenv("HONE_TEST_PART")
    found = faults(write(tmp_path, BARE), "sft.profile=${HONE_TEST_PART}.yaml")
    assert "needs the environment variable HONE_TEST_PART" in found[0]
    found = faults(write(tmp_path, BARE), "sft.profile=own.yaml")
    assert found == [
        'own.yaml:1: data.columns.text: "${HONE_TEST_PART}" needs the environment variable '
        "HONE_TEST_PART, which is not set"
    ]


def test_a_run_keeps_the_merged_values_when_the_profile_changes(tmp_path: Path) -> None:
    loaded = load(tmp_path, "sft.profile=own.yaml", own="max_tokens: 64\nadapter: {rank: 3}\n")
    (tmp_path / "own.yaml").write_text("max_tokens: 65\nnonsense: 3\n")
    again = load_resolved(json.loads(json.dumps(loaded.resolved)), tmp_path)
    assert again.recipe == loaded.recipe
    assert again.resolved == loaded.resolved
    (tmp_path / "own.yaml").unlink()
    assert load_resolved(loaded.resolved, tmp_path).recipe == loaded.recipe


# What is wrong with a profile


def test_all_faults_of_a_profile_at_once_with_those_of_the_recipe(tmp_path: Path) -> None:
    own = """\
learning_rat: 1e-3
adapter: {rank: 0, rnk: 3}
steps: 3
epochs: 2
model: acme/other
profile: chat
schedule: ${HONE_TEST_UNSET}
data: chat.jsonl
data: {}
"""
    recipe = BARE.replace("{data", "{max_tokns: 3, profile: own.yaml, data")
    path = write(tmp_path, recipe + "  - sft: {data: chat.jsonl, profile: own.yaml}\n")
    (tmp_path / "own.yaml").write_text(own)
    assert faults(path) == [
        'recipe.yaml:3: stages[0].sft.max_tokns: unknown key "max_tokns"; '
        'did you mean "max_tokens"?',
        'own.yaml:1: learning_rat: unknown key "learning_rat"; did you mean "learning_rate"?',
        "own.yaml:1: expected at most one of `epochs` and `steps`, found both",
        'own.yaml:2: adapter.rank: expected a whole number above 0, found "0"',
        'own.yaml:2: adapter.rnk: unknown key "rnk"; did you mean "rank"?',
        'own.yaml:5: model: unknown key "model"; "model" belongs to the top level of the recipe',
        "own.yaml:6: profile: a profile names no other profile",
        'own.yaml:7: schedule: "${HONE_TEST_UNSET}" needs the environment variable '
        "HONE_TEST_UNSET, which is not set",
        'own.yaml:9: data: the key "data" is given twice (first on line 8); expected once',
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("caht", 'there is no profile "caht"; did you mean "chat"?'),
        ("zebra", 'there is no profile "zebra"; expected chat, code, instruction or a YAML file'),
        ("owm.yaml", 'there is no profile "owm.yaml"; did you mean "own.yaml"?'),
        ("sub/own.yaml", 'there is no profile "sub/own.yaml"; expected chat'),
        ("..", 'there is no profile ".."; expected chat'),
        ('""', 'there is no profile ""; expected chat'),
        ("3", 'stages[0].sft.profile: expected text, found "3"'),
        ("empty.yaml", 'the profile "empty.yaml" holds no keys of a stage: it is empty'),
        ("list.yaml", 'the profile "list.yaml" holds no keys of a stage: found'),
        ("broken.yaml", "broken.yaml:2: not valid YAML"),
    ],
)
def test_names_that_are_no_profile(tmp_path: Path, name: str, message: str) -> None:
    files = {"own": "max_tokens: 3", "empty": "# x", "list": "- 1", "broken": "a: 1\nb: c: d\n"}
    for stem, text in files.items():
        (tmp_path / f"{stem}.yaml").write_text(text)
    found = [
        line
        for line in faults(write(tmp_path, BARE), f"sft.profile={name}")
        if not line.startswith(" ")
    ]
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize("name", ["chat", "own.yaml"])
def test_a_profile_with_keys_that_the_method_does_not_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "own.yaml").write_text("adapter: {rank: 2}\nmax_tokens: 7\n")
    recipe = "model: acme/base\nstages:\n  - pretrain:\n      data: chat.jsonl\n"
    found = faults(write(tmp_path, recipe + f"      profile: {name}\n"))
    assert found == [
        f'recipe.yaml:5: stages[0].pretrain.profile: the profile "{name}" has `adapter`, '
        "which a stage of the method pretrain does not have"
    ]


def test_a_pretrain_stage_takes_a_profile_that_fits_it(tmp_path: Path) -> None:
    recipe = "model: acme/base\nstages: [{pretrain: {data: chat.jsonl, profile: own.yaml}}]\n"
    loaded = load(tmp_path, recipe=recipe, own="max_tokens: 7\n")
    assert loaded.recipe.stages[0].settings.max_tokens == 7


def test_a_template_that_a_profile_names_and_that_is_not_there(tmp_path: Path) -> None:
    own = "max_tokens: 7\ndata: {template: gone.jinja, paht: x}\n"
    (tmp_path / "own.yaml").write_text(own)
    found = faults(write(tmp_path, BARE), "sft.profile=own.yaml")
    assert [line.partition(": nothing")[0] for line in found] == [
        'own.yaml:2: data.paht: unknown key "paht"; did you mean "path"?',
        'own.yaml:2: stages[0].sft.data.template: "gone.jinja" does not exist',
    ]


# Adapters that go on

STAGES = """\
model: acme/base
stages:
  - sft: {data: chat.jsonl, adapter: {rank: 4, alpha: 8}}
  - pretrain: {data: chat.jsonl}
  - sft: {data: chat.jsonl}
  - sft: {data: chat.jsonl}
"""


def test_adapter_settings_go_on_past_stages_without_adapters(tmp_path: Path) -> None:
    loaded = load(tmp_path, recipe=STAGES)
    assert [sft(loaded, index).adapter for index in (0, 2, 3)] == [Lora(rank=4, alpha=8.0)] * 3
    assert loaded.origins["stages[0].sft.adapter.rank"] == "recipe.yaml:3"
    assert loaded.origins["stages[2].sft.adapter.rank"] == "stage 1"
    assert loaded.origins["stages[3].sft.adapter.rank"] == "stage 1"
    assert loaded.origins["stages[3].sft.adapter.dropout"] == "default"
    again = load_resolved(json.loads(json.dumps(loaded.resolved)), tmp_path)
    assert again.recipe == loaded.recipe


def test_a_preference_stage_takes_adapter_and_profile_as_others_do(tmp_path: Path) -> None:
    """The profile wins over what is carried, key by key; its own losses are no concern of sft."""
    recipe = STAGES.replace("  - sft: {data: chat.jsonl}\n", "  - dpo: {data: chat.jsonl}\n", 1)
    settings = load(tmp_path, recipe=recipe).recipe.stages[2].settings
    assert settings.trains == Lora(rank=4, alpha=8.0)
    assert settings.learning_rate == 5e-5
    own = "adapter: {alpha: 99}\nmax_tokens: 77\nloss: ipo\nbeta: 0.3\n"
    settings = (
        load(tmp_path, "dpo.profile=own.yaml", recipe=recipe, own=own).recipe.stages[2].settings
    )
    assert isinstance(settings, Dpo)
    assert settings.trains == Lora(rank=4, alpha=99.0) and settings.max_tokens == 77
    assert settings.parameters_of("ipo") == {"beta": 0.3}
    message = "which a stage of the method sft does not have"
    (fault,) = faults(write(tmp_path, recipe), "sft[0].profile=own.yaml")
    assert "`loss`, `beta`" in fault and message in fault
    for name in profile_names():
        assert load(tmp_path, f"dpo.profile={name}", recipe=recipe).recipe.stages[2].dpo is not None


def test_given_beats_profile_beats_carried_beats_default(tmp_path: Path) -> None:
    overrides = ["sft[1].adapter.dropout=0.5", "sft[1].profile=own.yaml"]
    loaded = load(tmp_path, *overrides, recipe=STAGES, own="adapter: {alpha: 99}\n")
    assert sft(loaded, 2).adapter == Lora(rank=4, alpha=99.0, dropout=0.5, targets="all")
    names = ["dropout", "alpha", "rank", "targets"]
    assert [loaded.origins[f"stages[2].sft.adapter.{name}"] for name in names] == [
        "command line",
        "profile own.yaml:1",
        "stage 1",
        "default",
    ]
    assert sft(loaded, 3).adapter == sft(loaded, 2).adapter
    origins = [loaded.origins[f"stages[3].sft.adapter.{name}"] for name in names]
    assert origins == ["stage 3", "stage 3", "stage 1", "default"]


def test_an_adapter_of_another_type_takes_nothing_over(tmp_path: Path) -> None:
    full = load(tmp_path, "sft[1].adapter={type: full}", recipe=STAGES)
    assert [sft(full, index).adapter for index in (2, 3)] == [Full(), Full()]
    back = load(tmp_path, "sft[0].adapter={type: full}", "sft[1].adapter.rank=2", recipe=STAGES)
    assert [sft(back, index).adapter for index in (2, 3)] == [Lora(rank=2), Lora(rank=2)]


def test_what_is_done_with_the_adapter_before_is_not_carried_over(tmp_path: Path) -> None:
    """Only the stage that says it does it; a schema without the field refuses it in that stage."""
    recipe = STAGES.replace("alpha: 8", "before: merge")
    path = write(tmp_path, recipe)
    try:
        loaded = load_recipe(path)
    except UserError as error:
        assert error.message.count("before") == error.message.count("stages[0].sft.adapter") * 2
        assert "stages[2]" not in error.message
    else:
        later = loaded.resolved["stages"][2]["sft"]["adapter"]
        assert later["rank"] == 4
        assert loaded.origins["stages[2].sft.adapter.before"] == "default"


def test_a_fault_in_an_adapter_that_goes_on_is_told_once(tmp_path: Path) -> None:
    (line,) = faults(write(tmp_path, STAGES.replace("rank: 4", "rank: 0")))
    assert line.startswith("recipe.yaml:3: stages[0].sft.adapter.rank: expected")


# Properties

KEYS = {
    "learning_rate": st.sampled_from([1e-3, 0.5, 0]),
    "epochs": st.sampled_from([1, 2.5, None]),
    "steps": st.sampled_from([700, None]),
    "warmup": st.sampled_from([0, 5, 0.25, {"steps": 3}, {"steps": 3, "at_most": 0.5}]),
    "batch": st.sampled_from([{"samples": 3}, {"tokens": 99}]),
    "adapter": st.sampled_from(
        [{"type": "full"}, {"rank": 3}, {"type": "lora", "dropout": 0.2}, {"targets": ["x"]}]
    ),
    "optimizer": st.sampled_from([{"type": "sgd", "momentum": 0.1}, {"weight_decay": 0.3}]),
    "evaluation": st.sampled_from([None, {"share": 0.5}, {"data": "chat.jsonl", "every": 3}]),
    "data": st.sampled_from(["chat.jsonl", {"path": "chat.jsonl", "template": "auto"}]),
    "max_grad_norm": st.sampled_from([None, 2.0]),
}
SETTINGS = st.fixed_dictionaries({}, optional=KEYS).filter(
    lambda settings: settings.get("epochs") is None or settings.get("steps") is None
)


def covers(resolved: Any, given: Any) -> bool:
    """True where all that was given stands in the resolved value."""
    if isinstance(given, dict) and isinstance(resolved, dict):
        return all(covers(resolved.get(key), value) for key, value in given.items())
    return bool(resolved == given or (isinstance(resolved, dict) and resolved["path"] == given))


@given(st.lists(SETTINGS, min_size=1, max_size=3), SETTINGS, st.sampled_from([None, "chat", "own"]))
def test_the_given_always_wins_and_a_resolved_recipe_is_stable(
    tmp_path_factory: pytest.TempPathFactory,
    stages: list[dict[str, Any]],
    own: dict[str, Any],
    name: str | None,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "properties"
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text(json.dumps(own | {"max_tokens": 77}))
    profile = "own.yaml" if name == "own" else name
    listed = [
        {"sft": {"data": "chat.jsonl", **({"profile": profile} if profile else {}), **stage}}
        for stage in stages
    ]
    loaded = load_recipe(write(folder, json.dumps({"model": "acme/base", "stages": listed})))
    for index, stage in enumerate(listed):
        resolved = loaded.resolved["stages"][index]["sft"]
        assert covers(resolved, stage["sft"])
        given_leaves = [key for key in stage["sft"] if not isinstance(stage["sft"][key], dict)]
        for key in given_leaves:
            place = f"stages[{index}].sft.{key}" + (".path" if key == "data" else "")
            assert loaded.origins[place].startswith("recipe.yaml")
    again = load_resolved(json.loads(json.dumps(loaded.resolved)), folder)
    assert (again.recipe, again.resolved) == (loaded.recipe, loaded.resolved)
    # As a recipe of its own it says everything itself: nothing comes from elsewhere.
    as_recipe = load_recipe(write(folder, json.dumps(loaded.resolved)))
    assert as_recipe.recipe == loaded.recipe
    assert set(as_recipe.origins.values()) <= {"recipe.yaml:1"}


@given(st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_a_profile(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-profile"
    folder.mkdir(exist_ok=True)
    path = write(folder, SMALL)
    (folder / "own.yaml").write_bytes(content)
    try:
        load_recipe(path, ["sft.profile=own.yaml"])
    except UserError as error:
        assert error.exit_code == 2
        assert error.message.strip()
