#!/usr/bin/env python3
"""Set-up and start, with nothing but Python 3.11 and git: `python3 run.py demo`, `python3 run.py test`.

Makes `.venv` beside this file, installs Headframe into it once (again when pyproject.toml changes), and runs.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed-from"
USAGE = """usage: python3 run.py COMMAND [ARGUMENTS]

  demo [...]        set up, then run the whole loop on this machine (headframe demo)
  test [...]        set up, then run every check: format, lint, types, imports, tests
  setup             set up only
  headframe [...]   set up, then run any headframe command
"""
MISSING = "from simulations.rtsp import PACKAGES, why_no_server; print(*(PACKAGES if why_no_server() else ()))"
CHECKS = (
    ("format", ("ruff", "format", "--check", "--quiet", ".")),
    ("lint", ("ruff", "check", "--quiet", ".")),
    ("types", ("mypy",)),
    ("imports", ("lint-imports", "--no-cache")),
)


def main() -> int:
    """Run one command; returns the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036  an older Python must hear why
        return say(f"Headframe needs Python 3.11 or later; this is {sys.version.split()[0]}.", 2)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        return say(USAGE, 0 if len(sys.argv) > 1 else 2)
    command, arguments = sys.argv[1], sys.argv[2:]
    if command not in ("demo", "test", "setup", "headframe"):
        return say(f"unknown command {command!r}\n\n{USAGE}", 2)
    set_up()
    if command == "test":
        return run_checks(arguments)
    if command == "setup":
        return say(f"ready: {VENV / 'bin' / 'headframe'}", 0)
    prefix = ("demo",) if command == "demo" else ()
    return subprocess.call([str(VENV / "bin" / "headframe"), *prefix, *arguments])


def set_up() -> None:
    """Make the environment; a set-up that was cut short is done again, two at once wait for each other."""
    wanted = hashlib.sha256((HERE / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    with (HERE / ".setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists():
            return
        say("setting up .venv (once; a few minutes) …", 0)
        try:
            venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(VENV)
        except (subprocess.CalledProcessError, ImportError):
            say("Python's venv module cannot make an environment. On Debian or Ubuntu: apt install python3-venv", 2)
            raise SystemExit(2) from None
        pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = os.environ.get("HEADFRAME_TORCH")
        if torch:
            check([*pip, torch], "installing torch from HEADFRAME_TORCH")
        check([*pip, "--editable", f"{HERE}[all]"], "installing Headframe and what it needs")
        STAMP.write_text(wanted)


def run_checks(arguments: list[str]) -> int:
    """Every check in turn, then the tests; goes on after a failed check, so that one run shows all."""
    install_for_tests()
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    failed = []
    for name, line in CHECKS:
        say(f"— {name}", 0)
        if subprocess.call([str(VENV / "bin" / line[0]), *line[1:]], cwd=HERE, env=environment):
            failed.append(name)
    say("— tests", 0)
    tests = [str(PYTHON), "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *arguments]
    if subprocess.call(tests, cwd=HERE, env=environment):
        failed.append("tests")
    return say(f"failed: {', '.join(failed)}", 1) if failed else say("all checks passed", 0)


def install_for_tests() -> None:
    """The console is tested in a real browser, cameras over a real RTSP server, the fleet on a real mosquitto, ingest
    on a real PostgreSQL, installs under strace: Debian's are installed where we may, else those tests are skipped."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    wanted = [] if shutil.which("chromium") else ["chromium"]
    wanted += [] if shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin") else ["mosquitto"]
    wanted += [] if shutil.which("strace") else ["strace"]
    wanted += [] if Path("/usr/lib/postgresql").is_dir() else ["postgresql"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    rtsp = subprocess.run([str(PYTHON), "-c", MISSING], cwd=HERE, capture_output=True, text=True, check=False)
    wanted += rtsp.stdout.split()
    if not wanted:
        return
    say(f"— installing {' '.join(wanted)} for the tests", 0)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for line in (("update", "-q"), ("install", "-y", "-q", "--no-install-recommends", *wanted)):
        if subprocess.call(["apt-get", *line], env=environment, **quiet):
            say(f"apt-get {line[0]} failed; the tests that need it will be skipped", 0)
            return


def check(line: list[str], what: str) -> None:
    """Run a step of the set-up or end with what failed."""
    say(f"  {what}", 0)
    if subprocess.call(line, cwd=HERE):
        say(f"{what} failed; run the same command again when the cause is mended", 1)
        raise SystemExit(1)


def say(text: str, status: int) -> int:
    """Print and hand the status through."""
    print(text, file=sys.stderr if status else sys.stdout, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
