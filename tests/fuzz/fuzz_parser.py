"""Coverage-guided fuzzing of one parser with atheris: python tests/fuzz/fuzz_parser.py NAME [-max_total_time=60]

For the parsers in pure Python; what native readers do is for tests/property/test_parser_fuzz.py, which runs them in a
child process. Needs `pip install atheris` (Linux and macOS). A finding is written to ./crash-*.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["rag.parsers", "markdown_it"]):
    import markdown_it  # noqa: F401  (its readers load it late)

    from rag.errors import InputError
    from rag.limits import Limits
    from rag.parsers._choose import make_parser
    from tests.contracts.test_parser import check_laws, source_for

NAME = sys.argv.pop(1)
PARSER = make_parser(NAME, Limits(max_file_bytes=100_000))


def one_input(data: bytes) -> None:
    """The law of parsers; anything but a document or an InputError ends the run."""
    try:
        document = PARSER.parse(data, source=source_for(NAME))
    except InputError:
        return
    check_laws(document, loose_rows=NAME == "json")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
