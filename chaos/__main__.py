"""`make chaos`: runs the scenarios one after the other, and prints a result for each."""

import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from typing import Annotated

import typer

from chaos import scenarios  # noqa: F401 - registers them
from chaos.load import UNKNOWN
from chaos.nemesis import NoHarmDone, NotAsItMust
from chaos.rig import Rig
from chaos.scenario import SCENARIOS, Scenario
from chaos.target import Target, running
from chaos.verdict import Verdict, judge
from ops import console

HOLDS, VOID, FAILS = "holds", "void", "FAILS"
HEAD = ("scenario", "faults", "requests", "errors", "unknown", "lost", "doubled", "stuck", "recovered", "verdict")
ROW = "{:<24} {:>6} {:>8} {:>6} {:>7} {:>4} {:>7} {:>5} {:>9} {:>8}"


def main(
    scenario: Annotated[str, typer.Option(help="Numbers or names, with commas; all if left out.")] = "",
    seed: Annotated[int | None, typer.Option(help="Of everything that is left to chance.")] = None,
    seconds: Annotated[float | None, typer.Option(help="How long faults last, where that is free.")] = None,
    replicas: Annotated[
        int, typer.Option(min=1, max=4, help="Processes of each service; a fault hits all of them.")
    ] = 1,
) -> None:
    """Injects faults into a stack under load and checks the result. Fails if one scenario does not hold."""
    chosen = _chosen(scenario)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the stack too, as Ctrl-C does
    try:
        seed = random.randrange(10**6) if seed is None else seed
        held = run(chosen, seed=seed, seconds=seconds, replicas=replicas)
    except KeyboardInterrupt:
        sys.exit("chaos: interrupted; its stack is down.")
    if not held:
        sys.exit(1)


def run(chosen: list[Scenario], *, seed: int, seconds: float | None = None, replicas: int = 1) -> bool:
    """Runs scenarios and prints a line for each; returns True if all hold.

    After a failure the next one gets a new stack. After a void one it does not: its books were checked.
    """
    print(f"SEED={seed}", flush=True)
    print(ROW.format(*HEAD), flush=True)
    began = time.monotonic()
    held = True
    left = list(chosen)
    with console.progress("scenarios", len(chosen)) as advance:
        while left:
            with running(replicas=replicas) as target:
                while left:
                    found = asyncio.run(_run_one(target, left.pop(0), seed=seed, seconds=seconds))
                    advance(1)
                    held = held and found == HOLDS
                    if found == FAILS:
                        break
    print(f"{len(chosen)} scenarios in {time.monotonic() - began:.0f} s", flush=True)
    return held


def _chosen(text: str) -> list[Scenario]:
    if not text:
        return [SCENARIOS[number] for number in sorted(SCENARIOS)]
    by_name = {name: each for each in SCENARIOS.values() for name in (each.name, str(each.number))}
    unknown = [name for name in text.split(",") if name not in by_name]
    if unknown:
        sys.exit(f"chaos: there is no scenario {unknown[0]!r}; there are 1 to {max(SCENARIOS)}: {', '.join(by_name)}")
    return [by_name[name] for name in text.split(",")]


async def _run_one(target: Target, scenario: Scenario, *, seed: int, seconds: float | None) -> str:
    rig, stack = Rig(target, name=scenario.name, seed=seed, seconds=seconds), target.stack
    problems: list[str] = []
    pids = _pids(target)
    try:
        await rig.open_rooms()
        if scenario.load:
            rig.load.start()
        await scenario.run(rig)
    except NoHarmDone as error:
        problems.append(f"{VOID}: {error}")
    except NotAsItMust as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001 - the edge of scenarios: one that breaks ends no other
        problems.append(f"{error!r}\n{traceback.format_exc()}")
    finally:
        await rig.load.stop()
        await rig.close()
    failed = [call for call in rig.history if call.outcome == UNKNOWN and call.kind != "probe"]
    if scenario.one_retry_helps and failed:
        problems.append(f"{len(failed)} calls failed after one retry too, e.g. {failed[0]}")
    if not rig.nemesis.faults and not problems:
        problems.append(f"{VOID}: no fault was injected")
    harmed = {fault.target for fault in rig.nemesis.faults if fault.kind in ("kill", "restart", "stop")}
    ended = [name for name, running_now in _pids(target).items() if running_now != pids[name] and name not in harmed]
    problems += [f"{name} has ended by itself: what recovers must recover without a restart" for name in ended]
    verdict = await judge(stack, rig.history)
    problems += verdict.sentences()
    _print(scenario, rig, verdict, problems)
    if problems:
        kept = tempfile.mkdtemp(prefix=f"gotohotel-chaos-{scenario.name}-{seed}-")
        shutil.copytree(stack.home / "log", kept, dirs_exist_ok=True)
        print(f"    the logs are in {kept}", flush=True)
    return _word(problems)


def _pids(target: Target) -> dict[str, list[int]]:
    return {name: [pid, *target.replicas.pids(name)] for name, _, pid, _ in target.stack.status()}


def _print(scenario: Scenario, rig: Rig, verdict: Verdict, problems: list[str]) -> None:
    failed = [operation for operation in rig.history if operation.first_outcome == UNKNOWN]
    print(
        ROW.format(
            f"{scenario.number} {scenario.name}",
            len(rig.nemesis.faults),
            len(rig.history),
            len(failed),
            sum(operation.outcome == UNKNOWN for operation in failed),
            len(verdict.lost),
            len(verdict.doubled),
            sum(verdict.stuck.values()),
            f"{_recovered(rig):.1f} s",
            _word(problems),
        )
    )
    for line in (*rig.notes, *(f"!! {problem}" for problem in problems[:20])):
        print(f"    {line}")
    reasons = Counter(error for operation in failed for error in operation.errors)
    if problems and reasons:
        print(f"    errors: {dict(reasons.most_common(5))}")
    sys.stdout.flush()


def _word(problems: list[str]) -> str:
    if not problems:
        return HOLDS
    return VOID if all(problem.startswith(VOID) for problem in problems) else FAILS


def _recovered(rig: Rig) -> float:
    """The longest time from a fault's end to the last attempt that failed because of it."""
    longest = 0.0
    faults = rig.nemesis.faults
    for fault, following in zip(faults, [*faults[1:], None], strict=False):
        ends = following.began if following else float("inf")
        failed = [at for operation in rig.history for at in operation.failed_at if fault.began <= at < ends]
        longest = max([longest, *(at - fault.ended for at in failed)])
    return longest


if __name__ == "__main__":
    typer.run(main)
