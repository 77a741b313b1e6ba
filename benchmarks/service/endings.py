"""Rows about the end of the service, and about what a stranger's tool finds in its OpenAPI."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.faults.outcome import Outcome
from benchmarks.service.client import Answer, Server, ask, request, serving, upload

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def drain(run: Path, pictures: list[bytes], folder: Path, rounds: int = 20, flight: int = 16) -> Outcome:
    """SIGTERM while so many are being read, wait or are described: all of them answered, the process gone, and nothing left of it."""
    answered, left, slowest, codes = 0, 0, 0.0, set()
    for number in range(rounds):
        contents = [upload(pictures[(number + index) % len(pictures)], "?beam_size=8&max_length=50") for index in range(flight)]
        with serving(run, folder, "--batch", str(1 + number % 8)) as server:
            answers, seconds = asyncio.run(ended_in_flight(server, contents))
            codes.add(server.process.wait(30))
        answered += sum(its.status == 200 for its in answers)
        slowest = max(slowest, seconds)
        left += len(of_group(server.process.pid))
    passed = answered if left == 0 and codes == {0} else 0
    note = f"ended within {slowest:.1f} s, exit codes {sorted(codes)}, {left} processes left"
    return Outcome(f"SIGTERM with {flight} in flight, {rounds} times", rounds * flight, passed, note)


async def ended_in_flight(server: Server, contents: list[bytes]) -> tuple[list[Answer], float]:
    asked = [asyncio.create_task(ask(server.port, content)) for content in contents]
    taken = 0.0
    while taken < len(contents) - sum(its.done() for its in asked):
        text = (await ask(server.port, request("GET", "/metrics"))).body.decode()
        taken = float(re.search(r"^captioning_pictures_inside ([\d.]+)", text, re.M)[1])  # type: ignore[index]
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    answers = await asyncio.gather(*asked)
    await asyncio.to_thread(server.process.wait, 30)
    return answers, time.monotonic() - began


def of_group(parent: int) -> list[int]:
    """Processes whose parent or session this was."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if str(parent) in (fields[1], path.parent.name) and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def schema(run: Path, pictures: list[bytes], folder: Path, examples: int = 50) -> Outcome:
    """schemathesis against our OpenAPI: no 5xx, and no answer that the schema does not have."""
    with serving(run, folder) as server:
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{server.port}/openapi.json"]
        command += ["--max-examples", str(examples), "--checks", CHECKS, "--seed", "1"]
        said = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900, env=os.environ | {"NO_COLOR": "1"})
        ready = server.get("/readyz").status == 200
    lines = [line.strip() for line in said.stdout.splitlines() if line.strip()]
    cases = next((line for line in lines if "generated" in line), lines[-1] if lines else said.stderr[-200:])
    return Outcome("schemathesis on our OpenAPI", 1, int(said.returncode == 0 and ready), cases)
