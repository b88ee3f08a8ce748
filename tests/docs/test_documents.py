"""Documents that a reader trusts: links lead somewhere, commands exist, tables are what the code says."""

import re
import shlex
from pathlib import Path

import click
import pytest
from typer.main import get_command

from cloud.settings import CloudSettings
from common.settings_table import markdown_rows, markdown_table
from common.topics import DOWN_KINDS, UP_KINDS
from edge.settings import EdgeSettings
from simulations.cli import app
from simulations.fleet.scenario import list_keys

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


def commands() -> list[str]:
    """Lines of code blocks and inline code that begin with `headframe` or `python3 run.py headframe`."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        inline = re.findall(r"`((?:python3 run\.py )?headframe [^`]+)`", text)
        block = re.findall(r"^(?: {4}|\$ )((?:python3 run\.py )?headframe .+)$", text, re.MULTILINE)
        found += [line.split("  #")[0].removeprefix("python3 run.py ").strip() for line in inline + block]
    return sorted(set(found))


def test_there_are_documents_and_commands() -> None:
    assert len(DOCUMENTS) > 10
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_documents_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.replace("[", "").replace("]", "").replace("…", ""))[1:]
    command: click.Command = get_command(app)
    context = click.Context(command, info_name="headframe")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{line!r}: there is no command {name!r}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word in {*options, "--help"}, f"{line!r}: {word} is no option of {command.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} points to {target}"


def test_files_that_code_and_documents_name_exist() -> None:
    sources = [*DOCUMENTS, *REPOSITORY.glob("pyproject.toml")]
    sources += [
        path for name in ("common", "edge", "cloud", "simulations") for path in (REPOSITORY / name).rglob("*.py")
    ]
    for source in sources:
        text = source.read_text(encoding="utf-8")
        for target in re.findall(r"\b((?:docs|deploy|tests)/[\w./-]*\w)", text):
            matches = list(REPOSITORY.glob(f"{target}*"))
            assert matches, f"{source.relative_to(REPOSITORY)} names {target}"


def test_the_settings_document_is_what_the_models_say() -> None:
    text = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    for model in (EdgeSettings, CloudSettings):
        assert markdown_table(model) in text, "make it anew: see its first line"


def test_the_keys_of_scenario_files_are_documented() -> None:
    text = (REPOSITORY / "docs" / "federation.md").read_text(encoding="utf-8")
    assert markdown_rows(list_keys()) in text, "make them anew: `headframe sim keys --markdown`"


def test_the_wire_document_lists_every_topic() -> None:
    text = (REPOSITORY / "docs" / "wire.md").read_text(encoding="utf-8")
    for kind in UP_KINDS:
        assert f"headframe/up/<shard>/<gateway>/{kind}`" in text, kind
    for kind in DOWN_KINDS:
        assert f"headframe/down/<gateway>/{kind}`" in text, kind


def test_the_two_readmes_name_the_same_commands() -> None:
    english, chinese = (
        set(re.findall(r"python3 run\.py [a-z]+[^\n`#]*", (REPOSITORY / name).read_text(encoding="utf-8")))
        for name in ("README.md", "README.zh.md")
    )
    assert {line.strip() for line in english} == {line.strip() for line in chinese}


def test_the_makefile_has_at_most_eight_targets() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert 0 < len(re.findall(r"^[a-z]+[a-z ]*:", text, re.MULTILINE)) <= 8
