"""Mutation testing of the specification: do its tests notice each small change of it?

    python tests/mutation/run.py [MODULE ...] [--jobs 2] [--keep FOLDER [--again]]

cosmic-ray changes one place of a copy of the installed ``refinedet.spec``; the tests of the
module's name run first, then the rest of ``tests/spec``. The slow tests of the network run for
it and the architecture alone, which can only leave more survivors. The run fails if fewer than
``mutation.least`` of all mutants are killed, if a survivor is not in ``survivors.toml``,
or if a mutant listed there is killed or no longer exists. That the listed lines are still in
the code is checked first.
"""

import argparse
import ast
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import toml
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, WorkerOutcome, WorkResult

import refinedet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = ROOT / "tests" / "spec"
BIN = Path(sys.executable).parent
SERVER = HERE / "server.py"
SLOW = "network"  # its tests are the slowest, and run for these alone:
TESTED_BY_SLOW = (SLOW, "architecture")


class Mutant(NamedTuple):
    """What identifies a mutant in ``survivors.toml``."""

    module: str
    where: str
    line: str
    mutant: str


def annotated(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations are: start and end, each row and column."""
    nodes = [
        getattr(node, name, None)
        for node in ast.walk(ast.parse(source))
        for name in ("annotation", "returns")
    ]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n]


def changed(source: str, spec: MutationSpec) -> str | None:
    """The mutant's source; None if it is no other program, or none at all."""
    if any(a <= spec.start_pos and spec.end_pos <= b for a, b in annotated(source)):
        return None
    row, column = spec.start_pos
    if source.split("\n")[row - 1][column:].startswith("*, "):  # before keywords: no product
        return None
    mutated = mutate_code(source, get_operator(spec.operator_name)(), spec.occurrence)
    try:
        compile(mutated, "mutant", "exec")
    except SyntaxError:
        return None
    return mutated


def name_of(module: str, source: str, mutated: str, spec: MutationSpec) -> Mutant:
    """The lines that differ, and the function or class that they are in."""
    before, after = source.split("\n"), mutated.split("\n")
    rows = [r for r, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    first, extra = rows[0], len(after) - len(before)
    last = rows[0] + 1 if extra else rows[-1] + 1
    line = " ".join(x.strip() for x in before[first : last - min(extra, 0)])
    other = " ".join(x.strip() for x in after[first : last + max(extra, 0)])
    return Mutant(module, spec.definition_name or "", line, other)


def verdicts_of(module: str, site: Path, settings: dict) -> dict[Mutant, list[bool]]:
    """All mutants of one module in this copy: for each, whether it is killed."""
    path = site / "refinedet" / "spec" / f"{module}.py"
    source = path.read_text()
    config, session, address = site / "run.toml", site / "run.sqlite", site / "server"
    options = {**settings["cosmic-ray"], "module-path": str(path), "excluded-modules": []}
    options["test-command"] = f"{sys.executable} -I -S {SERVER} ask {address}"
    config.write_text(toml.dumps({"cosmic-ray": options}))
    if not session.exists():
        fresh = site / "fresh.sqlite"
        tool("cosmic-ray", "init", config, fresh)
        tool("cr-filter-operators", fresh, config)
        with use_db(fresh) as database:
            for item in database.pending_work_items:
                if changed(source, item.mutations[0]) is None:
                    database.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED))
        fresh.rename(session)
    own, slow = [TESTS / f"test_{module}.py"], sorted(TESTS.glob(f"test_{SLOW}*.py"))
    wide = TESTS / "test_modelzoo.py"  # about all modules, so it comes next
    skipped = {*own, wide, *slow}
    if module in TESTED_BY_SLOW:
        own = list(dict.fromkeys([*own, *slow]))
    others = [wide, *(p for p in sorted(TESTS.glob("test_*.py")) if p not in skipped)]
    seconds = options["timeout"] * 0.8  # the server stops a test before cosmic-ray does
    with served(site, address, seconds, own, others):
        tool("cosmic-ray", "exec", config, session)
    assert path.read_text() == source
    verdicts: dict[Mutant, list[bool]] = {}
    with use_db(session, WorkDB.Mode.open) as database:
        for item, result in database.completed_work_items:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                continue
            answer = (result.output or "").strip()
            # Without an answer of the server a mutant would pass for killed.
            assert answer in ("killed", "survived", "timeout"), (module, answer)
            spec = item.mutations[0]
            mutant = name_of(module, source, changed(source, spec), spec)
            verdicts.setdefault(mutant, []).append(result.is_killed)
    return verdicts


def tool(name: str, *arguments: object) -> None:
    subprocess.run([str(BIN / name), *map(str, arguments)], check=True, cwd=ROOT)


@contextmanager
def served(
    site: Path, address: Path, seconds: float, *groups: list[Path], keep_compiled: bool = False
) -> Iterator[None]:
    """A server of tests that import the package from ``site``."""
    tests = [" ".join(map(str, group)) for group in groups]
    command = [sys.executable, str(SERVER), "serve", str(address), str(int(seconds)), *tests]
    env = {"PYTHONPATH": str(site), "OPENBLAS_NUM_THREADS": "1"}
    env["PYTHONDONTWRITEBYTECODE"] = "" if keep_compiled else "1"
    address.unlink(missing_ok=True)  # of a run that was killed
    with (site / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=log, stderr=log
        )
        try:
            while not address.exists():
                assert server.poll() is None, (site / "log").read_text()
                time.sleep(0.1)
            time.sleep(0.1)
            yield
            assert server.poll() is None, (site / "log").read_text()
        finally:
            server.kill()
            server.wait()
            address.unlink(missing_ok=True)


def copy_of_the_package(package: Path, folder: Path) -> Path:
    """A folder with a copy to change, which ``PYTHONPATH`` puts before the installed package."""
    shutil.copytree(package, folder / "refinedet", dirs_exist_ok=True)
    return folder


def check_the_list(survivors: Iterable[Mutant]) -> None:
    """Every listed line is in its module, and its function or class exists."""
    for mutant in survivors:
        source = (ROOT / "spec" / f"{mutant.module}.py").read_text()
        names = {getattr(node, "name", None) for node in ast.walk(ast.parse(source))}
        assert mutant.where in names or not mutant.where, f"not there any more: {show(mutant)}"
        text = " ".join(line.strip() for line in source.split("\n"))
        assert mutant.line in text, f"not there any more: {show(mutant)}"


def check_the_same(package: Path, copy: Path) -> None:
    """Results that were kept are those of the package that is installed."""
    for path in (package / "spec").glob("*.py"):
        same = path.read_text() == (copy / "spec" / path.name).read_text()
        assert same, f"{copy} has another {path.name}: begin anew"


def check_the_start(site: Path) -> None:
    """The copy is what the tests import, and as it is they pass.

    This compiles it, too. What is changed later has another time than what is compiled.
    """
    env = {**os.environ, "PYTHONPATH": str(site)}
    look = [sys.executable, "-c", "import refinedet.spec as s; print(s.__file__)"]
    used = subprocess.run(look, env=env, cwd=site, check=True, capture_output=True, text=True)
    assert Path(used.stdout.strip()).is_relative_to(site), used.stdout
    address = site / "server"
    with served(site, address, 600, sorted(TESTS.glob("test_*.py")), keep_compiled=True):
        ask = [sys.executable, "-I", "-S", str(SERVER), "ask", str(address)]
        assert subprocess.run(ask).returncode == 0, (site / "log").read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="as `boxes`; all, if none is given")
    parser.add_argument("--jobs", type=int, default=1, help="modules at a time")
    parser.add_argument("--keep", type=Path, help="a folder to work in, and to go on with")
    parser.add_argument(
        "--again", action="store_true", help="test the survivors of the kept folder once more"
    )
    options = parser.parse_args()
    settings = toml.loads((HERE / "mutation.toml").read_text())
    listed = toml.loads((HERE / "survivors.toml").read_text()).get("survivor", [])
    reasons = {Mutant(**{k: s[k] for k in Mutant._fields}): s["reason"] for s in listed}
    check_the_list(reasons)

    spec = (Path(refinedet.__file__).parent / "spec").glob("[a-z]*.py")
    # The slowest first, then the small ones.
    by_size = sorted(spec, key=lambda p: (p.stem != SLOW, p.stat().st_size))
    modules = options.modules or [p.stem for p in by_size]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        package, start = Path(refinedet.__file__).parent, folder / "start"
        if start.exists():
            check_the_same(package, start / "refinedet")
        else:
            copy_of_the_package(package, start)
        check_the_start(start)

        def work(module: str) -> dict[Mutant, list[bool]]:
            begun = time.monotonic()
            site = copy_of_the_package(start / "refinedet", folder / module)
            if options.again and (site / "run.sqlite").exists():
                with closing(sqlite3.connect(site / "run.sqlite")) as database, database:
                    database.execute("DELETE FROM work_results WHERE test_outcome = 'SURVIVED'")
            verdicts = verdicts_of(module, site, settings)
            killed = [k for ks in verdicts.values() for k in ks]
            seconds = time.monotonic() - begun
            print(f"{module:10} {sum(killed)} of {len(killed)}, {seconds:.0f} s", flush=True)
            return verdicts

        with ThreadPoolExecutor(options.jobs) as pool:
            verdicts = {m: ks for part in pool.map(work, modules) for m, ks in part.items()}
    return report(verdicts, modules, reasons, settings["mutation"]["least"])


def report(
    verdicts: dict[Mutant, list[bool]],
    modules: list[str],
    reasons: dict[Mutant, str],
    least: float,
) -> int:
    """Print how many were killed, and every fault; 0 if there is none."""
    total, killed = Counter[str](), Counter[str]()
    for mutant, ks in verdicts.items():
        total[mutant.module] += len(ks)
        killed[mutant.module] += sum(ks)
    for module in sorted(total):
        survived = total[module] - killed[module]
        print(
            f"{module:10} {total[module]:5} mutants {killed[module]:5} killed {survived:4} survived"
        )
    share = killed.total() / max(1, total.total())
    print(f"{killed.total()} of {total.total()} mutants are killed: {share:.2%}")

    faults = [] if share >= least else [f"less than {least:.0%} are killed"]
    survivors = {m for m, ks in verdicts.items() if not all(ks)}
    faults += [
        f"survives, but is not listed: {show(m)}" for m in sorted(survivors - reasons.keys())
    ]
    stale = {m for m in reasons if m.module in modules} - survivors
    faults += [f"is listed, but is killed or no longer exists: {show(m)}" for m in sorted(stale)]
    print("\n".join(faults))
    return bool(faults)


def show(mutant: Mutant) -> str:
    place = f"{mutant.module}, {mutant.where}" if mutant.where else mutant.module
    return f"{place}\n    - {mutant.line}\n    + {mutant.mutant}"


if __name__ == "__main__":
    sys.exit(main())
