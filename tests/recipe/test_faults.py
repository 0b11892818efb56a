"""Recipes that are wrong: all faults at once, each with its line, the value, what was expected."""

import traceback
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.recipe.load import load_recipe
from hone.recipe.schema import STAGES
from tests.recipe.test_load import SMALL, write

pytestmark = pytest.mark.quick


def faults(path: Path, *overrides: str) -> list[str]:
    """The lines of the one error, without the folder."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value.message.replace(f"{path.parent}/", "").splitlines()


def fault(folder: Path, override: str) -> str:
    """The single fault of a small recipe with one override, without its origin."""
    (line,) = faults(write(folder, SMALL), override)
    assert line.startswith("command line: ")
    return line.removeprefix("command line: ")


def test_all_faults_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = """\
model: acme/base
sed: 3
stages:
  - sft:
      data: chat.jsonk
      learning_rat: 1e-4
      epochs: 1
      steps: 2
      batch: {samples: 3.5}
      warmup: 1.5
      evaluation: {share: 0.5, data: chat.jsonl}
      adapter:
        type: full
        rank: 8
      data: other.jsonl
      optimizer: {weight_deca: 1, betas: [0.9]}
  - distil: {}
  - pretrain:
"""
    found = faults(write(tmp_path, text), "sft.precision=bf61", "sff.steps=3")
    starts = [
        'recipe.yaml:2: sed: unknown key "sed"; did you mean "seed"?',
        "recipe.yaml:4: stages[0].sft: expected at most one of `epochs` and `steps`",
        'recipe.yaml:5: stages[0].sft.data.path: "chat.jsonk" does not exist',
        'recipe.yaml:6: stages[0].sft.learning_rat: unknown key "learning_rat"; '
        'did you mean "learning_rate"?',
        'recipe.yaml:9: stages[0].sft.batch.samples: expected a whole number above 0, found "3.5"',
        "recipe.yaml:10: stages[0].sft.warmup: expected a whole number of at least 0, a number "
        "of at least 0 and below 1 or a mapping with the keys steps, at_most, found "
        '"1.5"',
        "recipe.yaml:11: stages[0].sft.evaluation: expected exactly one of `share` and `data`",
        'recipe.yaml:14: stages[0].sft.adapter.rank: unknown key "rank" with type "full"; '
        'it belongs to type "lora"',
        'recipe.yaml:15: stages[0].sft.data: the key "data" is given twice (first on line 5)',
        "recipe.yaml:16: stages[0].sft.optimizer.betas: expected a list of 2 values, each a "
        "number of at least 0 and below 1, found a list of 1",
        'recipe.yaml:16: stages[0].sft.optimizer.weight_deca: unknown key "weight_deca"; '
        'did you mean "weight_decay"?',
        'recipe.yaml:17: stages[1].distil: unknown key "distil"; expected one of '
        f"{', '.join(STAGES)}",
        "recipe.yaml:18: stages[2].pretrain.data: is missing; expected a file, folder or data set",
        'command line: stages[0].sft.precision: expected "auto", "fp32" or "bf16", found "bf61"; '
        'did you mean "bf16"?',
        'command line: "sff.steps=3": unknown key "sff"; did you mean "sft"?',
    ]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.steps=true", 'sft.steps: expected a whole number above 0, found "true"'),
        ("sft.steps=1e3", 'sft.steps: expected a whole number above 0, found "1000.0"'),
        (
            'sft.steps="5"',
            'sft.steps: expected a whole number above 0, found the text "5"; '
            "without quotes it is a number",
        ),
        ("sft.steps=many", 'sft.steps: expected a whole number above 0, found "many"'),
        ("sft.steps=0", 'sft.steps: expected a whole number above 0, found "0"'),
        (
            "sft.warmup=true",
            "sft.warmup: expected a whole number of at least 0, a number of at least 0 "
            'and below 1 or a mapping with the keys steps, at_most, found "true"',
        ),
        ("sft.learning_rate=.inf", 'expected a number of at least 0, found "Infinity"'),
        ("sft.learning_rate=.nan", 'expected a number of at least 0, found "NaN"'),
        ("sft.learning_rate=", "expected a number of at least 0, found nothing"),
        ("sft.learning_rate=[1]", "expected a number of at least 0, found a list of 1"),
        ("sft.max_grad_norm=no", 'expected a number above 0 or null, found "no"'),
        (
            "sft.gradient_checkpointing=yes",
            'expected true or false, found "yes"; did you mean "true"?',
        ),
        ("sft.gradient_checkpointing=1", 'expected true or false, found "1"'),
        (
            "sft.schedule=Cosine",
            'expected "cosine", "linear" or "constant", found "Cosine"; did you mean "cosine"?',
        ),
        (
            "sft.adapter.type=loara",
            'sft.adapter.type: expected "lora", "qlora" or "full", found "loara"; '
            'did you mean "lora"?',
        ),
        (
            "trackers=[tensorbord]",
            'trackers[0].type: expected "tensorboard", "wandb" or "mlflow", found "tensorbord"; '
            'did you mean "tensorboard"?',
        ),
        (
            "trackers=mlflow",
            'trackers: expected a list of tensorboard, wandb, mlflow, found "mlflow"',
        ),
        (
            "trackers=[{type: wandb, projct: x}]",
            'trackers[0].projct: unknown key "projct"; did you mean "project"?',
        ),
        (
            "trackers=[mlflow, {type: mlflow, uri: x}]",
            'trackers: expected each tracker once, found "mlflow" more than once',
        ),
        ("sft.adapter=lorra", 'found "lorra"; did you mean "lora"?'),
        ("sft.adapter=3", 'expected "lora", "qlora", "full" or a mapping with a `type`, found'),
        ("sft.adapter.targets=[a, 3]", 'sft.adapter.targets[1]: expected text, found "3"'),
        ("sft.adapter.targets=[]", 'expected a list of text or "all", found an empty list'),
        (
            "sft.adapter.targets=al",
            'expected a list of text or "all", found "al"; did you mean "all"?',
        ),
        ("sft.data=3", "sft.data: expected a file, folder or data set id, or a mapping with"),
        ("sft.data=", "sft.data: expected a file, folder or data set id, or a mapping with"),
        ("sft.batch.samples=-1", 'sft.batch.samples: expected a whole number above 0, found "-1"'),
        ("sft.batch={}", "sft.batch: expected exactly one of `samples` and `tokens`, found none"),
        ("sft.batch={sampls: 3}", 'unknown key "sampls"; did you mean "samples"?'),
        ("sft.lr=1e-4", 'sft.lr: unknown key "lr"; did you mean "learning_rate"?'),
        ("sft.rank=8", 'sft.rank: unknown key "rank"; did you mean "adapter.rank"?'),
        ("sft.seed=8", 'unknown key "seed"; "seed" belongs to the top level of the recipe'),
        ("seed=4294967296", "seed: expected a whole number of at least 0 and below 4294967296"),
        ("model=", "model: expected a folder or Hub id or a mapping with the keys architecture"),
        ("model={}", "model.tokenizer: is missing; expected a folder or Hub id or a mapping"),
        (
            "model={tokenizer: {train_on: chat.jsonl, vocabulary: 3}}",
            'model.tokenizer.vocabulary: expected a whole number of at least 300, found "3"',
        ),
        (
            "model={tokenizer: {train_on: [chat.jsonl, 3]}}",
            'model.tokenizer.train_on[1]: expected text, found "3"',
        ),
        (
            "model={tokenizer: t, config: {type: [1]}}",
            "model.config.type: expected a whole number, a number, true or false or text, "
            "found a list",
        ),
        (
            "model={tokenizer: {train_on: chat.jsonl, vocabulary: 1000000000000000000}}",
            "model.tokenizer.vocabulary: expected at most 1048576",
        ),
        (
            "model={tokenizer: t, config: {num_hidden_layers: 1000000000}}",
            "model.config: `num_hidden_layers`: expected at most 10000 layers",
        ),
        ("sft.epochs=1e300", "sft.epochs: expected at most 10000"),
        ("sft.steps=2147483648", "sft.steps: expected at most 2147483647"),
        ("sft.adapter.rank=100000", "sft.adapter.rank: expected at most 65536"),
        ("threads=1000000", "threads: expected at most 4096"),
        ("stages={}", 'stages: expected a list, each item a mapping after "- " with one of'),
        ("stages=[]", f"with one of {', '.join(STAGES)}, found an empty list"),
        ("stages=[3]", f"stages[0]: expected a mapping with the keys {', '.join(STAGES)}, found"),
        (
            "stages=[{}]",
            f"stages[0]: expected exactly one of `{'` and `'.join(STAGES)}`, found none",
        ),
        ("sft={data: chat.jsonl, steps: 5, warmup: 5}", "`warmup` is 5 steps and the stage has 5"),
        ("sft.evaluation={every: 3}", "sft.evaluation: expected exactly one of `share` and `data`"),
    ],
)
def test_messages(tmp_path: Path, override: str, message: str) -> None:
    assert message in fault(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", '"seed": expected KEY=VALUE, for example sft.steps=200'),
        ("=3", '"=3": expected KEY=VALUE'),
        ("a b=3", '"a b=3": expected KEY=VALUE'),
        ("--seed=3", '"--seed=3": expected KEY=VALUE'),
        ("sed=3", 'unknown key "sed"; did you mean "seed"?'),
        ("steps=3", 'unknown key "steps"; did you mean "sft.steps"?'),
        (
            "xyz=3",
            'unknown key "xyz"; expected one of model, seed, device, threads, memory, trust, '
            "stages",
        ),
        ("pretrain.steps=3", 'there is no stage "pretrain"; the recipe has sft'),
        ("sft[1].steps=3", "there is no sft[1]; the recipe has sft"),
        ("stages[1].sft.steps=3", '"stages" has 1 items, from 0'),
        ("stages.sft.steps=3", '"stages" is a list, which has no "sft"'),
        ("seed.x=3", '"seed" is "3", which has no "x"'),
        ("sft.stps=3", 'stages[0].sft.stps: unknown key "stps"; did you mean "steps"?'),
        ("sft.adaptr.rank=3", 'unknown key "adaptr"; did you mean "adapter"?'),
        ("seed=[1", "seed: not valid YAML: column 3: expected ',' or ']', but got the end"),
        ("seed=!!python/name:os.system", "tag:yaml.org,2002:python/name:os.system"),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path: Path, override: str, message: str) -> None:
    found = faults(write(tmp_path, "seed: 3\n" + SMALL), override)
    assert message in found[0]
    assert [line for line in found if not line.startswith(" ")] == found[:1]


def test_an_ambiguous_stage_is_a_fault(tmp_path: Path) -> None:
    text = SMALL + "  - sft: {data: chat.jsonl}\n"
    (line,) = faults(write(tmp_path, text), "sft.steps=3")
    assert line.endswith('"sft" may be one of several; the recipe has sft[0], sft[1]')


# Paths


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.data=caht.jsonl", '"caht.jsonl" in {folder}; did you mean "chat.jsonl"?'),
        ("sft.data=chat.jsnl", 'did you mean "chat.jsonl"?'),
        ("sft.data=zebra.jsonl", "which holds chat.jsonl, recipe.yaml"),
        ("sft.data=./chat", 'nothing named "chat" in {folder}; did you mean "chat.jsonl"?'),
        ("sft.data=sub/x.csv.gz", '"sub/x.csv.gz" does not exist: nothing named "sub" in {folder}'),
        ("sft.data=/nowhere/x.csv", 'nothing named "nowhere" in /'),
        ("sft.data=a/b/c", '"a/b/c" neither exists nor is a Hub id; expected a path or OWNER/NAME'),
        ('sft.data=""', '"" neither exists nor is a Hub id'),
        ("model=../base", '"../base" does not exist'),
        ("model=chat.jsonl", '"chat.jsonl" is a file; expected a model\'s folder or a Hub id'),
        ("sft.data.template=chatlm", '"chatlm" does not exist'),
        ("sft.data.template=.", '"." is a folder; expected a Jinja file'),
    ],
)
def test_paths_that_do_not_exist(tmp_path: Path, override: str, message: str) -> None:
    assert message.format(folder=tmp_path) in fault(tmp_path, override)


def test_a_misspelt_template_offers_the_built_in_one(tmp_path: Path) -> None:
    assert fault(tmp_path, "sft.data.template=chatlm").endswith('did you mean "chatml"?')


# The environment


def test_a_missing_variable_is_a_fault(tmp_path: Path) -> None:
    line = fault(tmp_path, "sft.data.split=${HONE_TEST_UNSET}")
    assert line == (
        'stages[0].sft.data.split: "${HONE_TEST_UNSET}" needs the environment variable '
        "HONE_TEST_UNSET, which is not set"
    )


@pytest.mark.parametrize("text", ["${", "${}", "${A-B}", "${A:-b}", "a ${1}"])
def test_a_malformed_variable_is_a_fault(tmp_path: Path, text: str) -> None:
    assert 'expected "${NAME}"' in fault(tmp_path, f"sft.data.split='{text}'")


@pytest.mark.parametrize(
    "override",
    [
        "sft.data=${HONE_TEST_SECRET}.jsonl",
        "sft.data=./${HONE_TEST_SECRET}",
        "sft.data=${HONE_TEST_SECRET}/a/b",
        "model=/${HONE_TEST_SECRET}",
        "sft.data.template=${HONE_TEST_SECRET}",
        "sft.precision=${HONE_TEST_SECRET}",
        "sft.adapter.type=${HONE_TEST_SECRET}",
        "sft.steps=${HONE_TEST_SECRET}",
        "sft.adapter.targets=${HONE_TEST_SECRET}",
        "sft.batch=${HONE_TEST_SECRET}",
        "sft=${HONE_TEST_SECRET}",
        "stages=${HONE_TEST_SECRET}",
        "sft.unknown=${HONE_TEST_SECRET}",
    ],
)
def test_a_fault_never_shows_what_a_variable_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setenv("HONE_TEST_SECRET", "sesame")
    (tmp_path / "sesame2.jsonl").touch()
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, SMALL), [override])
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.hint)
    assert "sesame" not in shown
    assert "HONE_TEST_SECRET" in shown or "sft.unknown" in shown


# The file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml: the recipe is empty; expected a mapping with model and stages"),
        ("# nothing\n---\n", "recipe.yaml: the recipe is empty"),
        ("- a", "recipe.yaml: expected a mapping with model and stages, found a list"),
        ("5", 'recipe.yaml: expected a mapping with model and stages, found "5"'),
        ("a: 1\nb: c: d\n", "recipe.yaml:2: not valid YAML: column 5: a key cannot begin here"),
        ("a:\n\t- x\n", "recipe.yaml:2: not valid YAML: column 1: found a tab; expected spaces"),
        (
            "a: [1\n",
            "recipe.yaml:2: not valid YAML: column 1: expected ',' or ']', but got the",
        ),
        ("a: 'x\n", "a quote is not closed"),
        ("a: 1\n---\nb: 2\n", 'found a second document after "---"; expected one'),
        ("a: *x\n", "recipe.yaml:1: not valid YAML: column 4: found undefined alias 'x'"),
        ("a: \x00\n", "recipe.yaml:1: not valid YAML: column 4 holds the character U+0000"),
        ('a: "\\Uffffffff"', "recipe.yaml: not valid YAML"),
        ("a: &a [*a]", "an alias (*) stands inside of its own anchor (&)"),
        ("a: &a {<<: *a}", '"<<" names the mapping it stands in'),
        ("<<: 3", '"<<" names a single value; expected a mapping'),
        ("? [a]\n: 1", "recipe.yaml:1: not a recipe: a key is a list; expected text"),
        ("a: " + "[" * 1000, "nested too deeply"),
        ("model: !!int x", 'recipe.yaml:1: model: found "x", which is no whole number'),
        (
            '{"a": 1}\n{"a": 2}\n',
            "recipe.yaml:2: not valid YAML: column 1: found more after the end",
        ),
        ("a: 1\n" * 1000, "and 901 more"),
        ("model: !mine x", 'the tag "!mine" is not known'),
        ("model: !!set {a}", "the tag"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert message in "\n".join(faults(path))


def test_aliases_of_aliases_end_soon(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    assert "more than 20000 values" in faults(path)[0]
    lines = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60)
    ]
    path.write_text("\n".join(lines))
    assert "more than 20000 values" in faults(path)[0]


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"model: a\nseed: \xff\n")
    assert faults(path) == ["recipe.yaml:2: not UTF-8 text: column 7 holds the byte 0xFF"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    with pytest.raises(UserError, match=r'recip\.yaml" does not exist') as caught:
        load_recipe(tmp_path / "recip.yaml")
    assert str(path) in str(caught.value.hint)
    with pytest.raises(UserError, match="nor does its folder"):
        load_recipe(tmp_path / "none" / "recipe.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(UserError, match="larger than 200,000 bytes"):
        (tmp_path / "data.jsonl").write_bytes(b"x" * 200_001)
        load_recipe(tmp_path / "data.jsonl")
