"""The house rules, checked on the tree itself: arrows, import weight, sizes, one public class per plugin."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("rag", "chunkers", "retrievers", "compressors", "app", "eval")
PLUGIN_ROOMS = {"chunkers", "retrievers", "compressors"}
GROUND = {"rag.types", "rag.protocols", "rag.errors", "rag.text", "rag.vectors", "rag.spans"}
HEAVY = {
    "chonkie", "chromadb", "docx", "faiss", "fastapi", "haystack", "langchain_core", "langchain_text_splitters",
    "llama_index", "mcp", "mcp_types", "numpy", "openai", "openpyxl", "pptx", "pydantic", "rich", "selectolax",
    "sentence_transformers", "streamlit", "tokenizers", "torch", "transformers", "yaml",
}  # fmt: skip

# Floors of rag/, lowest first: a module may import its own floor and those below it.
FLOORS = {
    "rag.errors": 0, "rag.types": 0, "rag.answer": 0, "rag.protocols": 0, "rag.text": 0, "rag.vectors": 0,
    "rag.limits": 0, "rag.jobs": 0, "rag.leaks": 0, "rag.telemetry": 0,
    "rag.executors": 3, "rag.duplicates": 3, "rag.twins": 3,
    "rag.upkeep": 6,
    "rag.spans": 1, "rag.replay": 5, "rag.compressed": 5, "rag.tokens": 1, "rag.store": 2, "rag.parsers": 2,
    "rag.embedders": 2, "rag.prompt": 2, "rag.generators": 3,
    "rag.engine": 2, "rag.sample": 0, "rag.files": 3, "rag.registry": 1, "rag.config": 4, "rag.reading": 4,
    "rag.ingest": 4, "rag.planning": 4, "rag.report": 0, "rag.index": 4, "rag.builder": 6, "rag.pipeline": 5,
    "rag.flow": 5, "rag.cli": 7, "rag.server": 7, "rag.interop": 6, "rag.mcp": 7, "rag.__main__": 8, "rag": 8,
}  # fmt: skip


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, imported module, inside TYPE_CHECKING or a function) for every absolute import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy: set[ast.AST] = set()
    for node in ast.walk(tree):
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if late:
            lazy.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            yield node.lineno, name, node in lazy


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
    parts = module.split(".")
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in FLOORS:
            return FLOORS[name]
    raise AssertionError(f"{module} has no floor: add it to FLOORS in {__file__}")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_the_right_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for line, name, _ in imports(path):
        top, two = name.split(".")[0], ".".join(name.split(".")[:2])
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        if room in PLUGIN_ROOMS:
            assert top not in {"eval", "app"} | (PLUGIN_ROOMS - {room}), where
            assert top != "rag" or two in GROUND, where
        elif room == "rag":
            assert top not in PLUGIN_ROOMS | {"eval", "app"}, where
        else:
            assert top not in PLUGIN_ROOMS | ({"eval", "app"} - {room}), where


def test_imports_inside_rag_run_downward() -> None:
    wrong = []
    for path in sorted((ROOT / "rag").rglob("*.py")):
        here = module_name(path)
        for line, name, lazy in imports(path):
            if name.split(".")[0] == "rag" and not lazy and floor(name) > floor(here):
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({here}) imports {name}, which stands higher")
    assert not wrong, "\n".join(wrong)


def test_engine_knows_nothing_else_of_rag() -> None:
    for path in (ROOT / "rag" / "engine").rglob("*.py"):
        for line, name, _ in imports(path):
            assert name.split(".")[0] != "rag" or name.startswith("rag.engine"), f"{path}:{line}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "hard limit: 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name}: {length} lines, hard limit 60"


def test_the_typical_file_and_function_are_small() -> None:
    files, functions = [], []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        files.append(text.count("\n"))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((node.end_lineno or node.lineno) - node.lineno + 1)
    assert median(files) <= 150
    assert sorted(functions)[int(0.9 * len(functions))] <= 30


def test_no_plugin_takes_kwargs_and_each_file_has_one_public_class() -> None:
    from rag.registry import KINDS, catalogue, load

    for kind in KINDS:
        for name, target in catalogue(kind).items():
            load(kind, name)  # raises unless there is exactly one public class
            path = ROOT.joinpath(*target.partition(":")[0].split(".")).with_suffix(".py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    assert node.args.kwarg is None, f"{path.name}: {node.name} takes **{node.args.kwarg}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_rag_is_light() -> None:
    assert not loaded_after("import rag") & HEAVY


def test_importing_the_command_is_light() -> None:
    assert not loaded_after("import rag.cli.main") & (HEAVY - {"yaml"})


def test_importing_every_plugin_is_light() -> None:
    statement = (
        "from rag.registry import KINDS, catalogue, load\n"
        "[load(kind, name) for kind in KINDS for name in catalogue(kind)]"
    )
    assert not loaded_after(statement) & (HEAVY - {"numpy", "yaml", "pydantic"})


def test_dangerous_calls_are_absent() -> None:
    banned = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "torch.load", "os.system"}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in banned, f"{path.relative_to(ROOT)}:{node.lineno} calls {called}"
                assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords)
