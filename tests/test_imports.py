"""The order of the files, and that nothing above the line imports torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1] / "hone"

# A file imports only from files above it, its own family aside. A new file takes its place here.
ABOVE_THE_LINE = [
    "errors",
    "extras",
    "signals",
    "files",
    "recipe",
    "model_files",
    "hub",
    "records",
    "own_code",
    "credit",
    "seeds",
    "intervals",
    "locks",
    "concealing",
    "runs",
    "metrics",
    "recorded",
    "trackers",
    "removal",
    "quarantine",
    "data",
    "environments",
    "rewards",
    "provenance",
    "changes",
    "comparison",
    "reproduction",
    "report",
]
BELOW_THE_LINE = [
    "forest",
    "device",
    "memory",
    "attention",
    "logprobs",
    "targets",
    "quantisation",
    "stacking",
    "vocabulary",
    "architecture",
    "models",
    "adapters",
    "losses",
    "optim",
    "checkpoints",
    "training",
    "cutting",
    "annotate",
    "early_stopping",
    "forecast",
    "fit",
    "choosing",
    "decoding",
    "groups",
    "plain_sampler",
    "sampler",
    "frozen_start",
    "rollouts",
    "sampling",
    "stages",
    "doctor",
    "evaluation",
    "estimate",
    "verify",
    "rehearsal",
    "plots",
    "side_by_side",
    "quickstart",
    "cli",
    "__main__",
]
LAYERS = ABOVE_THE_LINE + BELOW_THE_LINE
HEAVY = {
    "torch",
    "huggingface_hub",
    "transformers",
    "datasets",
    "pyarrow",
    "peft",
    "accelerate",
    "matplotlib",
    "bitsandbytes",
    "tensorboard",
    "wandb",
    "mlflow",
    "jsonschema",
}


def test_every_file_has_its_place() -> None:
    assert {layer_of(path) for path in sources()} <= set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_files_import_only_from_above(layer: str) -> None:
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    wrong = [
        f"{path.relative_to(ROOT)} imports hone.{name}"
        for path in sources()
        if layer_of(path) == layer
        for name in own_imports(ast.parse(path.read_text()))
        if name not in allowed
    ]
    assert wrong == []


def test_imports_are_seen_wherever_they_stand() -> None:
    tree = ast.parse("def late():\n    from hone.cli import main\nimport hone.fit\nimport torch")
    assert set(own_imports(tree)) == {"cli", "fit"}
    assert list(top_level_imports(tree)) == ["hone", "torch"]


def test_nothing_heavy_is_imported_above_the_line() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in light_sources()
        for name in top_level_imports(ast.parse(path.read_text()))
        if name in HEAVY
    ]
    assert wrong == []


def test_torch_is_not_loaded_above_the_line() -> None:
    modules = [module_of(path) for path in light_sources()]
    assert "hone.recipe.load" in modules
    loaded = loaded_after("; ".join(f"import {module}" for module in modules))
    assert "hone.recipe.load" in loaded
    assert loaded & HEAVY == set()


def test_loading_torch_would_be_seen() -> None:
    assert "matplotlib" in loaded_after("import matplotlib") & HEAVY


def loaded_after(statement: str) -> set[str]:
    """The names of all modules in a fresh process after a statement."""
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def sources() -> list[Path]:
    """All files of the package but its own `__init__`."""
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def light_sources() -> list[Path]:
    """The files above the line, and what `hone --help` imports."""
    top = [path for path in sources() if path == ROOT / "cli" / "__init__.py"]
    return [path for path in sources() if layer_of(path) in ABOVE_THE_LINE] + top


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def own_imports(tree: ast.Module) -> Iterator[str]:
    """The layers that a file imports from, at the top and inside of functions."""
    for name in imported(ast.walk(tree)):
        parts = name.split(".")
        if parts[0] == "hone" and len(parts) > 1 and not parts[1].startswith("__"):
            yield parts[1]


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    """The packages that a file imports when it is imported itself."""
    for name in imported(iter(tree.body)):
        yield name.split(".")[0]


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
