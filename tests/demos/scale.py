"""Several servers that are one: a router, a store, Prometheus, listeners who go on whatever dies. `make demo-scale`.

Everything is real: the CPU engine on the embedded models, HAProxy with the configuration of `deploy/compose/`, Valkey,
Prometheus. While eight clients converse, one server is killed, and another one is drained; both are replaced. Nobody
may lose persona or history, and everybody must be taken by another server within three seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "client"))  # also where the client was not installed

from runtime import artifact
from runtime.deployment.models import Renderer
from runtime.text.prompt import Budgets, Message, PromptRenderer
from tests.client.ending import ending
from tests.demos.chain import heading, pipeline
from tests.harness.fleet.haproxy import HAProxy
from tests.harness.fleet.router import samples
from tests.harness.scripted_process import templated
from tests.harness.server import Server, free_port
from tests.harness.stores.session_store import Valkey
from yap_client import Ack, Backoff, Done, Final, Interrupted, Sampling, Talk, Token, connect

# What is run, and the Debian package that has it.
PROGRAMS = {"haproxy": "haproxy", "valkey-server": "valkey-server", "prometheus": "prometheus"}
LISTENERS = 8
GOES_ON_WITHIN_S = 3.0
# A machine that does much else beside makes engines slow, and that is no fault: so long may a word take, or a turn.
PATIENCE_S = 600
# A CPU engine on a small model, with a gibibyte of KV cache.
SERVER_GIB = 3.5
PERSONA = "You are a helpful assistant. Answer in one short sentence. Your name is {name}."
NAMES = ("Anna", "Ben", "Cleo", "Dora", "Emil", "Finn", "Gwen", "Hugo")
QUESTIONS = ("What is the capital of France?", "And of Italy?", "What do people eat there?", "What is the sea like?")
SAMPLING = Sampling(temperature=0, max_tokens=12)
COMPOSE = Path(__file__).parents[2] / "deploy/compose"


class Listener:
    """One client: it talks until it is told to stop, and notes what happened to it.

    Attributes:
        cut: when its connection was lost or told to go, of each loss that it noticed in a turn.
        talking: whether it says anything at the moment; it stays connected.
        away: seconds from such a loss to the acknowledgement of its next turn.
        first_words: seconds from such a loss to the next reply's first word.
        turns: how many were answered whole.
        wrong: turns whose prompt was not the persona and all that had been said, with what was expected and found.
    """

    def __init__(self, url: str, key: str, name: str, renderer: Renderer) -> None:
        self.name = name
        self.persona = PERSONA.format(name=name)
        self._renderer = renderer
        self.talk: Talk = connect(
            url,
            key,
            session=f"demo-{name}",
            persona=self.persona,
            sampling=SAMPLING,
            backoff=Backoff(first=0.05, most=0.5, within=PATIENCE_S),
            silence=PATIENCE_S,
        )
        self.cut: float | None = None
        self.away: list[float] = []
        self.first_words: list[float] = []
        self.turns = 0
        self.wrong: list[str] = []
        self.stopping, self.talking = asyncio.Event(), asyncio.Event()
        self._asked = 0

    async def run(self) -> None:
        """Talk."""
        async with self.talk:
            while not self.stopping.is_set():
                if not self.talking.is_set():  # stays connected, and is silent
                    await asyncio.sleep(0.05)
                    continue
                await self._turn(QUESTIONS[self._asked % len(QUESTIONS)])
                self._asked += 1

    async def _turn(self, utterance: str) -> None:
        """Say something until it is answered whole."""
        while True:
            history = [Message(one.role, one.content) for one in self.talk.history]
            acknowledged, whole = False, False
            began = time.monotonic()
            async for event in self.talk.say(utterance):
                if isinstance(event, Ack) and not acknowledged:
                    acknowledged = True
                    if self.cut is not None:
                        self.away.append(time.monotonic() - self.cut)
                elif isinstance(event, Token) and self.cut is not None:
                    self.first_words.append(time.monotonic() - self.cut)
                    self.cut = None
                elif isinstance(event, Interrupted):
                    self.cut = time.monotonic() if self.cut is None else self.cut
                elif isinstance(event, Done) and event.usage is not None and not event.cancelled:
                    self._check(history, utterance, event.usage.prompt_tokens)
                elif isinstance(event, Final):
                    whole = True
            if whole:
                self.turns += 1
                return
            if time.monotonic() - began < 0.05:
                await asyncio.sleep(0.05)

    def _check(self, history: list[Message], utterance: str, found: int) -> None:
        """Compare what the server made its prompt of with what was really said."""
        prompt = self._renderer.render(persona=self.persona, runtime_text="", history=history, utterance=utterance)
        if len(prompt.token_ids) != found:
            self.wrong.append(f"turn {self.turns}: expected a prompt of {len(prompt.token_ids)} tokens, found {found}")


def install() -> None:
    """Install what is run here and missing, where that can be done; else ask for it."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        programs = [f"{program}:{package}" for program, package in PROGRAMS.items()]
        subprocess.run([str(Path(__file__).parents[2] / ".ci/packages"), *programs], check=False)
    if still := [package for program, package in PROGRAMS.items() if shutil.which(program) is None]:
        sys.exit(f"demo: expected {', '.join(PROGRAMS)}; install the packages {' '.join(still)}")


def affordable(most: int = 3) -> int:
    """Return how many engines the memory that is free can hold."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    return max(2, min(most, int((free - 2) / SERVER_GIB)))


def prometheus_configuration(folder: Path, servers: list[int], router: int) -> Path:
    """Write the configuration of `deploy/compose/` with this machine's ports in it."""
    configuration = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text("utf-8"))
    configuration["rule_files"] = [str(COMPOSE.parent / "observability/alerts.yaml")]
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    yap, inside = configuration["scrape_configs"]
    del yap["dns_sd_configs"], yap["relabel_configs"]
    yap["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in servers]}]
    inside["static_configs"] = [{"targets": [f"127.0.0.1:{router}"]}]
    place = folder / "prometheus.yaml"
    place.write_text(yaml.safe_dump(configuration))
    return place


class Prometheus:
    """A Prometheus that runs; the context manager ends it."""

    def __init__(self, folder: Path, servers: list[int], router: int) -> None:
        self.port = free_port()
        configuration = prometheus_configuration(folder, servers, router)
        self._command = [
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'metrics'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> Prometheus:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def ask(self, query: str) -> dict[str, float]:
        """Return a query's values by what tells them apart; none while nobody answers."""
        address = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError:
            return {}
        return {" ".join(sorted(one["metric"].values())): float(one["value"][1]) for one in result}


class Fleet:
    """Servers on fixed ports, each of which can be killed, drained and started anew on its port."""

    def __init__(self, folder: Path, key: str, number: int, module: str, variables: dict[str, str]) -> None:
        self._artifact, self._key, self._module, self._variables = folder, key, module, variables
        self.ports = [free_port() for _ in range(number)]
        self.running: dict[int, Server] = {}

    def start(self, number: int) -> Server:
        """Start a server on its port."""
        server = Server(self._artifact, api_key=self._key, module=self._module, **self._variables)
        server.port = self.ports[number]
        server.url, server.http = f"ws://127.0.0.1:{server.port}/ws", f"http://127.0.0.1:{server.port}"
        server.environment["PORT"] = str(server.port)
        self.running[number] = server.__enter__()
        return server

    def close(self) -> None:
        """End all that run."""
        for server in self.running.values():
            server.__exit__(None, None, None)


async def scenario(fleet: Fleet, router: HAProxy, prometheus: Prometheus, listeners: list[Listener]) -> bool:
    """Kill one server, drain another, replace both, while everybody talks."""

    async def settled(turns: int) -> None:
        """Wait until everybody has had so many more whole turns."""
        wanted = [one.turns + turns for one in listeners]
        while any(one.turns < enough for one, enough in zip(listeners, wanted, strict=True)):
            failed = [task for task in tasks if task.done()]
            if failed:
                failed[0].result()
            await asyncio.sleep(0.05)

    def talk(wanted: bool) -> None:
        """Let everybody talk, or be silent: while a server loads nobody needs to fill the history's budget."""
        for one in listeners:
            (one.talking.set if wanted else one.talking.clear)()

    talk(True)
    tasks = [asyncio.create_task(one.run()) for one in listeners]
    await settled(1)
    print(f"  {LISTENERS} listeners talk; connections of each server: {connections(router)}", flush=True)

    heading("kill -9 of one server")
    first = fleet.running.pop(0)
    assert first.process is not None
    first.process.kill()
    first.process.wait()
    await settled(2)
    print(f"  everybody goes on; connections: {connections(router)}", flush=True)
    talk(False)
    first.__exit__(None, None, None)
    ready = await asyncio.to_thread(fleet.start(0).wait_ready_while_it_works)
    await asyncio.to_thread(router.wait_up)
    print(f"  a new one in its place is ready after {ready:.0f} s", flush=True)

    heading("drain another (SIGTERM), and replace it")
    talk(True)
    await settled(1)
    second = fleet.running.pop(1)
    status = await asyncio.to_thread(second.stop, 2 * PATIENCE_S)
    second.__exit__(None, None, None)
    print(f"  it let its turns end and exited {status}", flush=True)
    await settled(2)
    print(f"  everybody goes on; connections: {connections(router)}", flush=True)
    talk(False)
    ready = await asyncio.to_thread(fleet.start(1).wait_ready_while_it_works)
    await asyncio.to_thread(router.wait_up)
    talk(True)
    await settled(1)
    print(f"  a new one in its place is ready after {ready:.0f} s", flush=True)
    for one in listeners:
        one.stopping.set()
    await asyncio.gather(*tasks)
    return status == 0 and report(listeners, router, prometheus)


def connections(router: HAProxy) -> str:
    """The router's own figure of each server's connections."""
    text = router.get("/metrics", inside=True)[1]
    found = samples(text, "haproxy_server_current_sessions")
    return ", ".join(f"{value:.0f}" for labels, value in sorted(found.items()) if 'proxy="runtimes"' in labels)


def report(listeners: list[Listener], router: HAProxy, prometheus: Prometheus) -> bool:
    """Print what the listeners, the router and Prometheus say; whether it is as it should be."""
    heading("what the listeners say")
    away = [seconds for one in listeners for seconds in one.away]
    words = [seconds for one in listeners for seconds in one.first_words]
    print(f"  {sum(one.turns for one in listeners)} turns; {len(away)} were cut and said again")
    if away:
        print(f"  taken by another server after {max(away):.2f} s at most (target {GOES_ON_WITHIN_S:g})")
        print(f"  the next reply's first word after {max(words, default=0):.2f} s at most (the engines are slow here)")
    wrong = [f"  {one.name}: {told}" for one in listeners for told in one.wrong]
    print("\n".join(wrong) or "  nobody lost persona or history: every prompt was as long as what had been said")
    heading("what the router says")
    text = router.get("/metrics", inside=True)[1]
    for title, name in (
        ("connections so far", "haproxy_server_sessions_total"),
        ("failed checks", "haproxy_server_check_failures_total"),
    ):
        values = {label: value for label, value in samples(text, name).items() if 'proxy="runtimes"' in label}
        print(f"  {title}: " + ", ".join(f"{value:.0f}" for _, value in sorted(values.items())))
    heading("what Prometheus says")
    up = prometheus.ask("yap_ready")
    for title, query in (
        ("servers that are ready", "sum(yap_ready)"),
        ("turns that ended", "sum by (outcome) (yap_turns_total)"),
        ("asked of the store", "sum by (kind) (yap_session_store_operations_total)"),
        ("first token, p95", "histogram_quantile(0.95, sum by (le) (yap_ttft_seconds_bucket))"),
        ("the fewest servers that were ready in this time", "min_over_time(sum(yap_ready)[10m:1s])"),
    ):
        print(
            f"  {title}: " + ", ".join(f"{label} {value:g}".strip() for label, value in prometheus.ask(query).items())
        )
    held = all(seconds <= GOES_ON_WITHIN_S for seconds in away)
    return held and not wrong and len(up) == len(router.servers) and all(value == 1 for value in up.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--artifact", type=Path, default=Path("artifacts/demo"), help="made as by `make demo` where it is not there"
    )
    parser.add_argument("--servers", type=int, choices=(2, 3), help="by default what the memory holds")
    parser.add_argument(
        "--scripted", action="store_true", help="engines that reply out of a script: seconds instead of minutes"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    install()
    if not arguments.scripted and not (arguments.artifact / "build_metadata.json").exists():
        heading("an artifact: plan, quantize, build, validate")
        log = arguments.artifact.with_name(f"{arguments.artifact.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        pipeline(log, "run", "--cpu", "8bit", "embedded", "embedded", "--out", str(arguments.artifact))
    number = arguments.servers or affordable()
    if not arguments.scripted:
        artifact.read(arguments.artifact)
    key = secrets.token_hex(8)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yap-scale-")))
        password = folder / "store_password"
        password.write_text(secrets.token_hex(16))
        password.chmod(0o400)
        (folder / "store").mkdir()
        store = Valkey(free_port(), folder / "store", ("--requirepass", password.read_text()))
        store.start()
        stack.callback(store.kill)
        heading(f"{number} servers on one machine, each with its own engine, behind HAProxy; sessions in Valkey")
        variables = {
            "DEPLOY_MODE": "chat",
            "SESSION_STORE": store.url,
            "SESSION_STORE_PASSWORD_FILE": str(password),
            "WS_MAX_MESSAGES_PER_WINDOW": "0",
            "CACHE_RESET_INTERVAL_SECONDS": "0",
            "GEN_TIMEOUT_S": str(PATIENCE_S),
            "DRAIN_TIMEOUT_S": str(PATIENCE_S),
        }
        module = "runtime"
        if arguments.scripted:
            module = "tests.harness.scripted_process"
            variables |= {"SCRIPT_TEMPLATE": "1", "SCRIPT_REPLY_SECONDS": "0.3"}
        fleet = Fleet(arguments.artifact, key, number, module, variables)
        stack.callback(fleet.close)
        for index in range(number):
            fleet.start(index)
        for server in fleet.running.values():
            print(f"  ready after {server.wait_ready_while_it_works():.0f} s at {server.url}", flush=True)
        router = HAProxy(fleet.ports)
        stack.enter_context(router)
        router.wait_up()
        prometheus = stack.enter_context(Prometheus(folder, fleet.ports, router.inside))
        print(f"  router at {router.url}, Prometheus at http://127.0.0.1:{prometheus.port}")
        renderer = templated() if arguments.scripted else PromptRenderer(arguments.artifact, Budgets())
        listeners = [Listener(router.url, key, name, renderer) for name in NAMES[:LISTENERS]]
        ok = asyncio.run(scenario(fleet, router, prometheus, listeners))
    print(f"\ndemo {'passed' if ok else 'FAILED'} in {time.monotonic() - began:.0f} s")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    with ending():
        main()
