"""What no source of ours may do: unpickle, open a compressed body without a bound, or let a model run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "edge", "cloud", "simulations")
SOURCES = sorted(path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py"))
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "yaml"}
UNPACKING_HOMES = {"common/compression.py", "common/delta.py"}
"""The only modules that open what a peer compressed; each refuses what a frame declares before it opens it."""


def nodes(path: Path) -> Iterator[ast.AST]:
    yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a call."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> object:
    for item in call.keywords:
        if item.arg == name and isinstance(item.value, ast.Constant):
            return item.value.value
    return None


def findings(path: Path) -> Iterator[str]:
    """What is wrong in a source, with its line."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in FORBIDDEN)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            yield f"{node.lineno}: from {node.module}"
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in ("eval", "exec"):
                yield f"{node.lineno}: {called}"
            if called.endswith("torch.load") and keyword(node, "weights_only") is not True:
                yield f"{node.lineno}: torch.load without weights_only"
            if called in ("np.load", "numpy.load") and keyword(node, "allow_pickle") not in (None, False):
                yield f"{node.lineno}: np.load with pickle"


def test_the_sources_are_here() -> None:
    assert len(SOURCES) > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled(package: str) -> None:
    found = [f"{p.relative_to(REPOSITORY)}:{line}" for p in SOURCES if package in p.parts for line in findings(p)]
    assert found == []


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pickle\nfrom joblib import load\neval('1')\ntorch.load('x')\nnp.load('x', allow_pickle=True)\n"
        "torch.load('x', weights_only=True)\nnp.load('x')\n"
    )
    assert len(list(findings(bad))) == 5


def test_compressed_bodies_are_opened_in_two_places_that_look_at_what_they_declare() -> None:
    homes = set()
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr in ("ZstdDecompressor", "decompressobj", "stream_reader"):
                homes.add(str(path.relative_to(REPOSITORY)))
            if isinstance(node, ast.Call) and name_of(node.func) in (
                "zlib.decompress", "gzip.decompress", "lzma.decompress", "bz2.decompress", "zstandard.decompress",
                "tarfile.open", "zipfile.ZipFile",
            ):  # fmt: skip
                homes.add(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    archives = {home for home in homes if home.startswith("common/archive.py:")}  # read by declared size: next test
    own = {home for home in homes if home.startswith("simulations/bench/fuzz.py:")}  # what it has packed itself
    assert homes - archives - own <= UNPACKING_HOMES
    for home in UNPACKING_HOMES:
        text = (REPOSITORY / home).read_text(encoding="utf-8")
        assert "frame_content_size" in text or "get_frame_parameters" in text
        assert text.count("max_window_size=WINDOW_BYTES_MAX") == text.count("ZstdDecompressor(")
        assert text.count("allow_extra_data=False") == text.count("ZstdDecompressor(")
