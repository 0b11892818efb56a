"""Recipes that are right: what they become, and where each value came from."""

import json
import os
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.recipe.load import (
    LoadedRecipe,
    describe_resolved,
    json_schema,
    load_recipe,
    load_resolved,
)
from hone.recipe.schema import NewModel, Sft, TrainedTokenizer
from hone.recipe.training import Full, Lora

pytestmark = pytest.mark.quick

SMALL = """\
model: acme/base
stages:
  - sft:
      data: chat.jsonl
      epochs: 2
"""


def write(folder: Path, text: str, *files: str) -> Path:
    """A recipe in a folder that also has these (empty) files."""
    for name in ("chat.jsonl", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def sft(loaded: LoadedRecipe, index: int = 0) -> Sft:
    settings = loaded.recipe.stages[index].settings
    assert isinstance(settings, Sft)
    return settings


def test_a_small_recipe_gets_all_defaults(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALL))
    assert loaded.recipe.model == "acme/base"
    assert loaded.recipe.stages[0].method == "sft"
    assert sft(loaded).epochs == 2
    assert sft(loaded).adapter == Lora()
    assert loaded.text == SMALL
    assert loaded.folder == tmp_path
    assert loaded.resolved["stages"][0]["sft"]["learning_rate"] == 2e-4
    assert list(loaded.resolved["stages"][0]) == ["sft"]


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("2e-5", 2e-5), ("1e-5", 1e-5), ("1E-3", 1e-3), ("+5.e-1", 0.5), ("3", 3.0)],
)
def test_numbers_of_yaml_1_2(tmp_path: Path, written: str, value: float) -> None:
    loaded = load_recipe(write(tmp_path, SMALL + f"      learning_rate: {written}\n"))
    assert sft(loaded).learning_rate == value
    assert isinstance(sft(loaded).learning_rate, float)


@pytest.mark.parametrize(("written", "value"), [("10", 10), ("0.1", 0.1), ("0", 0), ("0.0", 0.0)])
def test_warmup_is_steps_or_a_share(tmp_path: Path, written: str, value: float) -> None:
    warmup = sft(load_recipe(write(tmp_path, SMALL), [f"sft.warmup={written}"])).warmup
    assert warmup == value
    assert type(warmup) is type(value)


def test_a_new_model(tmp_path: Path) -> None:
    text = """\
model:
  config: {hidden_size: 64, rope_theta: 1e4, tie_word_embeddings: true, hidden_act: silu}
  tokenizer: {train_on: [a.jsonl, b.jsonl], vocabulary: 512}
stages: [{pretrain: {data: a.jsonl}}, {sft: {data: b.jsonl}}]
"""
    loaded = load_recipe(write(tmp_path, text, "a.jsonl", "b.jsonl"))
    model = loaded.recipe.model
    assert isinstance(model, NewModel)
    assert model.config == {
        "hidden_size": 64,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    assert isinstance(model.tokenizer, TrainedTokenizer)
    assert model.tokenizer.train_on == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert loaded.resolved["model"]["tokenizer"]["train_on"] == ["a.jsonl", "b.jsonl"]


def test_anchors_and_merged_keys(tmp_path: Path) -> None:
    text = """\
model: acme/base
stages:
  - sft: &first
      data: chat.jsonl
      steps: 5
  - sft:
      <<: *first
      steps: 7
"""
    loaded = load_recipe(write(tmp_path, text))
    assert [sft(loaded, index).steps for index in (0, 1)] == [5, 7]
    assert sft(loaded, 1).data == sft(loaded, 0).data
    assert loaded.origins["stages[1].sft.data.path"] == "recipe.yaml:4"
    assert loaded.origins["stages[1].sft.steps"] == "recipe.yaml:8"


def test_origins_name_line_override_and_default(tmp_path: Path) -> None:
    text = SMALL + "      adapter:\n        targets: [q_proj,\n          v_proj]\n"
    loaded = load_recipe(write(tmp_path, text), ["sft.batch.tokens=100", "seed=3"])
    origins = loaded.origins
    assert origins["model"] == "recipe.yaml:1"
    assert origins["stages[0].sft.data.path"] == "recipe.yaml:4"
    assert origins["stages[0].sft.data.split"] == "default"
    assert origins["stages[0].sft.adapter.targets"] == "recipe.yaml:7"
    assert origins["stages[0].sft.adapter.rank"] == "default"
    assert origins["stages[0].sft.batch.tokens"] == "command line"
    assert origins["stages[0].sft.batch.samples"] == "default"
    assert origins["seed"] == "command line"


def test_every_leaf_is_described_once(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALL), ["seed=3"])
    rows = describe_resolved(loaded)
    assert [row[0] for row in rows] == list(loaded.origins)
    assert ("seed", 3, "command line") in rows
    assert ("stages[0].sft.epochs", 2.0, "recipe.yaml:5") in rows
    assert ("stages[0].sft.optimizer.betas", [0.9, 0.999], "default") in rows
    assert not any(isinstance(value, dict) and value for _, value, _ in rows)


def test_resolved_is_complete(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALL), ["sft.adapter={type: full}", "sft.warmup=0.1"])
    resolved = json.loads(json.dumps(loaded.resolved))
    again = load_resolved(resolved, tmp_path)
    assert again.recipe == loaded.recipe
    assert again.resolved == resolved
    assert again.folder == tmp_path
    assert set(again.origins) == set(loaded.origins)
    assert set(again.origins.values()) == {"recipe.resolved.json"}


def test_a_damaged_resolved_recipe_is_a_users_error(tmp_path: Path) -> None:
    resolved = load_recipe(write(tmp_path, SMALL)).resolved
    resolved["stages"][0]["sft"]["steps"] = -1
    with pytest.raises(UserError, match=r"recipe\.resolved\.json: stages\[0\]\.sft\.steps"):
        load_resolved(resolved, tmp_path)
    with pytest.raises(UserError, match="expected a mapping"):
        load_resolved([], tmp_path)  # type: ignore[arg-type]


# Overrides


def test_overrides_win_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "      learning_rate: 1e-3\n")
    overrides = ["sft.learning_rate=5", "sft.learning_rate=1e-4", "model=acme/other"]
    loaded = load_recipe(path, overrides)
    assert sft(loaded).learning_rate == 1e-4
    assert loaded.recipe.model == "acme/other"


@pytest.mark.parametrize("key", ["sft", "sft[0]", "stages[0].sft", "stages.0.sft"])
def test_the_ways_to_name_a_stage(tmp_path: Path, key: str) -> None:
    loaded = load_recipe(write(tmp_path, SMALL), [f"{key}.steps=7", f"{key}.adapter.rank=4"])
    assert sft(loaded).steps == 7
    assert sft(loaded).adapter == Lora(rank=4)


def test_one_of_two_stages_of_a_method(tmp_path: Path) -> None:
    stages = "stages: [{sft: {data: chat.jsonl}}, {pretrain: {data: chat.jsonl}}, "
    path = write(tmp_path, f"model: acme/base\n{stages}{{sft: {{data: chat.jsonl}}}}]\n")
    loaded = load_recipe(path, ["sft[1].steps=9", "pretrain.steps=3"])
    steps = [stage.settings.steps for stage in loaded.recipe.stages]
    assert steps == [None, 3, 9]


def test_values_of_overrides_are_yaml(tmp_path: Path) -> None:
    overrides = [
        "sft.adapter={type: full}",
        "sft.evaluation={share: 0.5, before: false}",
        "sft.max_grad_norm=null",
        'sft.data.columns.text="7"',
        "sft.precision=bf16",
    ]
    settings = sft(load_recipe(write(tmp_path, SMALL), overrides))
    assert settings.adapter == Full()
    assert settings.evaluation is not None
    assert (settings.evaluation.share, settings.evaluation.before) == (0.5, False)
    assert settings.max_grad_norm is None
    assert settings.data.columns.text == "7"
    assert settings.data.path == str(tmp_path / "chat.jsonl")
    assert settings.precision == "bf16"


def test_an_override_takes_the_files_alternative_back(tmp_path: Path) -> None:
    text = SMALL + "      batch: {samples: 4}\n      evaluation: {share: 0.1, every: 7}\n"
    path = write(tmp_path, text, "held.jsonl")
    overrides = ["sft.steps=5", "sft.batch.tokens=64", "sft.evaluation.data=held.jsonl"]
    loaded = load_recipe(path, overrides)
    settings = sft(loaded)
    assert (settings.steps, settings.epochs) == (5, None)
    assert (settings.batch.tokens, settings.batch.samples) == (64, None)
    assert settings.evaluation is not None
    assert (settings.evaluation.share, settings.evaluation.every) == (None, 7)
    assert loaded.origins["stages[0].sft.epochs"] == "default"


def test_alternatives_in_the_file_stay_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most one of `epochs` and `steps`"):
        load_recipe(write(tmp_path, SMALL + "      steps: 5\n"), ["sft.warmup=0"])
    with pytest.raises(UserError, match="at most one of `epochs` and `steps`"):
        load_recipe(write(tmp_path, SMALL), ["sft.steps=5", "sft.epochs=5"])


# Paths


def test_relative_paths_belong_to_the_recipes_folder(tmp_path: Path) -> None:
    text = "model: base\nstages: [{sft: {data: {path: data/a.csv, template: own.jinja}}}]\n"
    path = write(tmp_path / "recipes", text, "data/a.csv", "base/config.json", "own.jinja")
    loaded = load_recipe(path)
    assert loaded.recipe.model == str(tmp_path / "recipes" / "base")
    assert sft(loaded).data.path == str(tmp_path / "recipes" / "data" / "a.csv")
    assert sft(loaded).data.template == str(tmp_path / "recipes" / "own.jinja")
    assert loaded.resolved["stages"][0]["sft"]["data"]["path"] == "data/a.csv"
    assert loaded.resolved["stages"][0]["sft"]["data"]["template"] == "own.jinja"


def test_a_hub_id_stays_as_it_is(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALL), ["sft.data=acme/chats", "model=gpt2"])
    assert sft(loaded).data.path == "acme/chats"
    assert loaded.recipe.model == "gpt2"


def test_a_path_on_the_command_line_belongs_to_the_current_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "recipes", SMALL, "only.jsonl", "both.jsonl")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "both.jsonl").touch()
    monkeypatch.chdir(tmp_path / "here")
    here = load_recipe(path, ["sft.data=both.jsonl"])
    assert sft(here).data.path == str(tmp_path / "here" / "both.jsonl")
    there = load_recipe(path, ["sft.data=only.jsonl"])
    assert sft(there).data.path == str(tmp_path / "recipes" / "only.jsonl")
    assert there.resolved["stages"][0]["sft"]["data"]["path"] == "only.jsonl"
    monkeypatch.chdir(tmp_path)
    again = load_resolved(here.resolved, here.folder)
    assert sft(again).data.path == str(tmp_path / "here" / "both.jsonl")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.jsonl").touch()
    loaded = load_recipe(write(tmp_path, SMALL), ["sft.data=~/mine.jsonl"])
    assert sft(loaded).data.path == str(tmp_path / "home" / "mine.jsonl")
    assert loaded.resolved["stages"][0]["sft"]["data"]["path"] == "~/mine.jsonl"


# The environment


def test_variables_reach_the_recipe_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_TEST_PART", "sesame")
    text = SMALL.replace("acme/base", "acme/${HONE_TEST_PART}-${HONE_TEST_PART}")
    loaded = load_recipe(write(tmp_path, text), ["sft.data.columns.text=${HONE_TEST_PART}"])
    assert loaded.recipe.model == "acme/sesame-sesame"
    assert sft(loaded).data.columns.text == "sesame"
    kept = [loaded.resolved, loaded.origins, describe_resolved(loaded), loaded.text]
    assert "sesame" not in json.dumps(kept)
    assert loaded.resolved["model"] == "acme/${HONE_TEST_PART}-${HONE_TEST_PART}"
    monkeypatch.setenv("HONE_TEST_PART", "other")
    again = load_resolved(loaded.resolved, loaded.folder)
    assert again.recipe.model == "acme/other-other"
    assert again.resolved == loaded.resolved


def test_a_variable_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_TEST_DATA", "inner")
    text = SMALL.replace("chat.jsonl", "${HONE_TEST_DATA}/a.jsonl")
    path = write(tmp_path, text, "inner/a.jsonl")
    loaded = load_recipe(path)
    assert sft(loaded).data.path == str(tmp_path / "inner" / "a.jsonl")
    assert loaded.resolved["stages"][0]["sft"]["data"]["path"] == "${HONE_TEST_DATA}/a.jsonl"


def test_a_variable_in_a_path_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_TEST_DATA", "inner")
    here = tmp_path / "a${b}"
    (here / "inner").mkdir(parents=True)
    (here / "inner" / "a.jsonl").touch()
    path = write(tmp_path / "recipes", SMALL)
    monkeypatch.chdir(here)
    loaded = load_recipe(path, ["sft.data=${HONE_TEST_DATA}/a.jsonl"])
    monkeypatch.chdir(tmp_path)
    again = load_resolved(loaded.resolved, loaded.folder)
    assert sft(again).data.path == sft(loaded).data.path == str(here / "inner" / "a.jsonl")
    assert "${HONE_TEST_DATA}" in loaded.resolved["stages"][0]["sft"]["data"]["path"]


def test_two_dollars_stand_for_the_text_itself(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALL), ["sft.data.columns.text=a$${b}$c"])
    assert sft(loaded).data.columns.text == "a${b}$c"
    assert load_resolved(loaded.resolved, tmp_path).recipe == loaded.recipe


# The schema


def test_json_schema_describes_every_field() -> None:
    schema = json_schema()
    assert schema["properties"]["seed"]["description"].startswith("All randomness")
    assert [kind["type"] for kind in schema["$defs"]["Data"]["anyOf"]] == ["string", "object"]
    described = [
        field
        for definition in schema["$defs"].values()
        for field in definition.get("properties", {}).values()
    ]
    assert len(described) > 40
    assert all("description" in field for field in described)
    assert '"place"' not in json.dumps(schema)


def test_a_bare_word_fits_one_tracker_of_the_json_schema() -> None:
    """Editors take `oneOf` at its word."""
    words = {
        name: json_schema()["$defs"][name]["anyOf"][0]["const"]
        for name in ("TensorBoard", "WandB", "MLflow")
    }
    assert words == {"TensorBoard": "tensorboard", "WandB": "wandb", "MLflow": "mlflow"}
    assert json_schema()["$defs"]["Data"]["anyOf"][0] == {"type": "string"}


def test_json_schema_is_a_fresh_copy() -> None:
    json_schema()["$defs"].clear()
    assert "Sft" in json_schema()["$defs"]


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    loaded = load_recipe(path)
    assert loaded.origins["stages[0].sft.epochs"] == "recipe.yaml:5"


def test_a_relative_recipe_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(Path("recipe.yaml"))
    assert os.path.isabs(loaded.folder)
    assert sft(loaded).data.path == str(tmp_path / "chat.jsonl")
