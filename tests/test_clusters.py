"""docs/clusters.md and docs/launch: the arithmetic, the batch script run for real, the manifest.

After a change to a network's size, `python tests/test_clusters.py` writes the tables again.
"""

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from pvdm_cli.config import load_config
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.cost import BACKWARD, training_flops
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.planning import FLOAT, num_parameters

DOCS = Path(__file__).parents[1] / "docs"
PAGE, SBATCH, KUBERNETES = (
    DOCS / name for name in ("clusters.md", "launch/slurm.sbatch", "launch/kubernetes.yaml")
)
TABLES = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(?=<!-- end of table -->)", re.DOTALL)

PEAK, UTILISATION = 989e12, 0.4  # H100 SXM, bf16 without sparsity; share reached, assumed
FP32 = 67e12 * 0.7  # its fp32 units; assumed share
NVLINK, LINK, ACHIEVED = 370e9, 50e9, 0.8  # bytes/s: measured ring; 400 Gb/s nominal; assumed share
MEMORY = 3.35e12  # bytes/s
NODE = 8  # GPUs
SHARES = (1, 2, 4, 8, 16, 32, 64)


class Network(NamedTuple):
    """What a step of one network costs: parameters, operations per clip, clips per step."""

    parameters: int
    flops: int
    clips: int


class Step(NamedTuple):
    """Seconds of one training step on one GPU."""

    forward: float
    backward: float
    reduce: float
    update: float

    @property
    def uncovered(self) -> float:
        return max(0.0, self.reduce - self.backward)

    @property
    def whole(self) -> float:
        return self.forward + self.backward + self.uncovered + self.update


@lru_cache
def network(preset: str) -> Network:
    config = load_config(preset)
    with torch.device("meta"):
        built = (Denoiser if config.denoiser else Autoencoder)(config.model())
    clips = config.training.clips_per_step
    assert clips
    return Network(num_parameters(built), training_flops(config), clips)


def bus(gpus: int, links: float = NODE * LINK) -> float:
    """Bus bandwidth of a ring all-reduce, bytes/s: NVLink's, or that of a node's network links."""
    return NVLINK if gpus <= NODE else min(NVLINK, ACHIEVED * links)


def all_reduce(net: Network, gpus: int, rate: float) -> float:
    """Seconds: each GPU sends 2 (N - 1) / N of the gradients."""
    return 2 * (gpus - 1) / gpus * FLOAT * net.parameters / rate


def step(net: Network, gpus: int, share: int, rate: float | None = None) -> Step:
    compute = net.flops * share / (UTILISATION * PEAK)
    moved = 7 * FLOAT * net.parameters  # AdamW reads four tensors and writes three
    return Step(
        compute / (1 + BACKWARD),
        compute * BACKWARD / (1 + BACKWARD),
        all_reduce(net, gpus, rate or bus(gpus)) if gpus > 1 else 0.0,
        moved / MEMORY,
    )


def hides_from(net: Network, gpus: int, rate: float, speed: float = UTILISATION * PEAK) -> int:
    """The smallest number of clips per GPU whose backward pass is as long as the all-reduce."""
    backward = net.flops * BACKWARD / (1 + BACKWARD) / speed
    return math.ceil(all_reduce(net, gpus, rate) / backward)


def ms(seconds: float) -> str:
    milli = 1e3 * seconds
    return f"{milli:.0f}" if milli >= 100 else f"{milli:.1f}"


def rows(head: str, lines: list[list[str]]) -> str:
    columns = head.count("|") + 1
    body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *body])


def by_share(gpus: int) -> str:
    net, lines = network("ucf101/diffusion-l"), []
    for share in SHARES:
        cost = step(net, gpus, share)
        parts = (cost.forward + cost.backward, cost.reduce, cost.uncovered, cost.whole)
        part = f"{cost.uncovered / cost.whole:.0%}"
        rate = f"{gpus * share / cost.whole:,.0f}"
        lines.append([str(share), *map(ms, parts), part, rate])
    head = "clips per GPU | forward and backward | all-reduce | not covered | step | not covered"
    return rows(f"{head} | clips/s", lines)


def published_step() -> str:
    net, lines = network("ucf101/diffusion-l"), []
    alone = step(net, 1, net.clips).whole
    for gpus in SHARES:
        whole = step(net, gpus, net.clips // gpus).whole
        gain = alone / whole
        hours = f"{whole * load_config('ucf101/diffusion-l').training.steps / 3600:.1f}"
        line = [str(gpus), str(net.clips // gpus), ms(whole), f"{gain:.1f}", f"{gain / gpus:.0%}"]
        lines.append([*line, hours])
    return rows("GPUs | clips per GPU | step | times faster | efficiency | hours", lines)


def networks_between_nodes() -> str:
    net, lines, gpus = network("ucf101/diffusion-l"), [], 64
    for name, links in (
        ("400 Gb/s for each GPU (NDR InfiniBand)", NODE * LINK),
        ("one link of 400 Gb/s", LINK),
        ("one link of 100 Gb/s (Ethernet)", LINK / 4),
    ):
        rate = bus(gpus, links)
        time_taken, share = all_reduce(net, gpus, rate), hides_from(net, gpus, rate)
        lines.append([name, f"{rate / 1e9:.0f}", ms(time_taken), str(share), f"{gpus * share:,}"])
    return rows(
        "network of a node | bus bandwidth, GB/s | all-reduce | hides from clips per GPU"
        " | clips per step",
        lines,
    )


def three_networks() -> str:
    lines = []
    for name, preset in (
        ("PVDM-L", "ucf101/diffusion-l"),
        ("PVDM-S", "ucf101/diffusion-s"),
        ("autoencoder", "ucf101/autoencoder"),
    ):
        net = network(preset)
        hides = [str(hides_from(net, gpus, bus(gpus))) for gpus in (8, 64)]
        sizes = [f"{FLOAT * net.parameters / 1e9:.2f}", f"{net.flops / 1e12:.2f}"]
        one, eight = step(net, 1, net.clips).whole, step(net, 8, net.clips // 8).whole
        lines.append([name, *sizes, *hides, str(net.clips), f"{one / eight:.1f}"])
    return rows(
        "network | gradients, GB | TFLOP per clip | hides from, 8 GPUs | 64 GPUs"
        " | clips of the published step | 8 GPUs are faster",
        lines,
    )


MADE = {
    "eight": lambda: by_share(8),
    "sixtyfour": lambda: by_share(64),
    "published": published_step,
    "between": networks_between_nodes,
    "networks": three_networks,
}


def test_the_tables_are_what_the_formula_gives() -> None:
    found = {name: body.strip() for _, name, body in TABLES.findall(PAGE.read_text())}
    assert found == {name: make() for name, make in MADE.items()}, "run tests/test_clusters.py"


def test_the_numbers_in_the_text_are_those_of_the_networks() -> None:
    text = " ".join(PAGE.read_text().split())
    large, small = network("ucf101/diffusion-l"), network("ucf101/autoencoder")
    checkpoint = FLOAT * (4 * large.parameters + small.parameters)  # weights, average, two moments
    clip = 2 * load_config("ucf101/diffusion-l").latent.flat * 4
    frames, videos = 1_788_425, 9_537
    sky = 35_392 * 2
    for told in (
        f"{large.parameters / 1e6:.1f} M parameters",
        f"{FLOAT * large.parameters / 1e9:.2f} GB of gradients",
        f"{large.flops / 1e9:.0f} GFLOP",
        f"{checkpoint / 1e9:.1f} GB",
        f"{checkpoint / 120 / 1e6:.0f} MB/s",
        f"{checkpoint / 30 / 1e6:.0f} MB/s",
        f"{clip:,} bytes",
        f"{frames // 16:,} clips, {frames // 16 * clip / 1e9:.2f} GB",
        f"{frames - 15 * videos:,} clips, {(frames - 15 * videos) * clip / 1e9:.1f} GB",
        f"{sky:,} clips, {sky * clip / 1e9:.2f} GB",
        f"from {hides_from(large, 8, bus(8), FP32)} clip per GPU",
        f"and {hides_from(large, 64, bus(64), FP32)} on 64",
    ):
        assert told in text, told


def test_one_node_is_the_end_for_the_published_step() -> None:
    net = network("ucf101/diffusion-l")
    whole = {gpus: step(net, gpus, net.clips // gpus).whole for gpus in SHARES}
    assert whole[1] > 6 * whole[8]
    assert whole[8] < 1.1 * whole[64]


SHIM = """#!/bin/bash
echo "{name} $*" >> "$LOG"
"""
SRUN = """
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """
if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; fi
"""
PVDM = """
if [ "$1" = cache ]; then exit "${VERIFIED:-0}"; fi
trap 'sleep 0.3; echo saved >> "$LOG"; exit 143' TERM
echo started >> "$LOG"
if [ -n "${ENDS:-}" ]; then exit "$ENDS"; fi
while :; do sleep 0.05; done
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A stand-in for a cluster of one node: the environment of a batch script, shims on its PATH."""
    for name, body in {"srun": SRUN, "scontrol": SCONTROL, "pvdm": PVDM, "rsync": ""}.items():
        path = tmp_path / name
        path.write_text(SHIM.format(name=name) + body)
        path.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "TMPDIR": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node-[a-b]",
    }


def submit(cluster: dict[str, str], *words: str, signals: int = 0) -> tuple[int, list[str]]:
    """Run the script as slurmd would; return its exit code and what the shims noted."""
    log = Path(cluster["LOG"])
    log.touch()
    with subprocess.Popen(["bash", SBATCH, *words], env=cluster, stdout=subprocess.DEVNULL) as job:
        if signals:
            wait_for(log, "started")
        for _ in range(signals):
            job.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        code = job.wait(timeout=20)
    return code, log.read_text().splitlines()


def wait_for(log: Path, word: str) -> None:
    end = time.monotonic() + 10
    while word not in log.read_text().splitlines():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


TRAIN = ("train", "ucf101/diffusion-l", "--out", "runs/l")
REQUEUE = "scontrol requeue 4711"


def test_the_batch_script_is_sound_bash() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    told = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SBATCH.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert {"requeue", "exclusive"} <= set(told)
    assert told["open-mode"] == "append"
    assert told["ntasks-per-node"] == "1"
    grace = re.fullmatch(r"B:TERM@(\d+)", told["signal"])
    patience = re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", SBATCH.read_text())
    assert grace
    assert patience
    assert 120 <= int(patience[1]) < int(grace[1])


@pytest.mark.parametrize(("ends", "code"), [("0", 0), ("3", 0), ("1", 1)])
def test_a_job_that_ends_is_not_queued_again(ends: str, code: int, cluster: dict[str, str]) -> None:
    found, noted = submit(cluster | {"ENDS": ends}, *TRAIN)
    assert found == code
    assert REQUEUE not in noted
    ran = next(line for line in noted if line.startswith("pvdm "))
    assert ran.startswith("pvdm " + " ".join(TRAIN))
    assert ran.endswith("--nnodes 2 --rdzv-endpoint node-a:24711 --max-restarts 3")


@pytest.mark.parametrize("signals", [1, 3])
def test_a_job_told_to_stop_saves_once_and_is_queued_again(
    signals: int, cluster: dict[str, str]
) -> None:
    code, noted = submit(cluster, *TRAIN, signals=signals)
    assert code == 143
    assert noted.count("saved") == 1
    assert noted.index("saved") < noted.index(REQUEUE)
    assert noted.count(REQUEUE) == 1


def test_a_run_interrupted_behind_the_scripts_back_is_queued_again(
    cluster: dict[str, str],
) -> None:
    code, noted = submit(cluster | {"ENDS": "143"}, *TRAIN)
    assert (code, noted[-1]) == (143, REQUEUE)


def test_the_cache_is_copied_checked_and_read_from_the_copy(cluster: dict[str, str]) -> None:
    code, noted = submit(cluster | {"ENDS": "0", "CACHE": "cache/ucf101"}, *TRAIN)
    copy = f"{cluster['TMPDIR']}/pvdm-4711/cache"
    assert code == 0
    tools = [line for line in noted if line.startswith(("rsync", "pvdm"))]
    assert tools[:2] == [
        f"rsync -a --delete cache/ucf101/ {copy}/",
        f"pvdm cache verify {copy} --fast",
    ]
    assert f"--cache {copy}" in tools[2]


def test_a_bad_copy_is_not_trained_on(cluster: dict[str, str]) -> None:
    code, noted = submit(cluster | {"VERIFIED": "1", "CACHE": "cache/ucf101"}, *TRAIN)
    assert code == 1
    assert "started" not in noted
    assert REQUEUE not in noted


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    documents = list(yaml.safe_load_all(KUBERNETES.read_text()))
    return {document["kind"]: document for document in documents}


def test_the_job_keeps_the_rules_of_kubernetes(manifest: dict[str, Any]) -> None:
    service, job = manifest["Service"], manifest["Job"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    assert pod["restartPolicy"] == "Never"  # else podFailurePolicy is refused
    assert spec["podReplacementPolicy"] == "Failed"  # the only one beside a podFailurePolicy
    rules = spec["podFailurePolicy"]["rules"]
    assert all(("onExitCodes" in rule) != ("onPodConditions" in rule) for rule in rules)
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    train = pod["containers"][0]
    assert rules[1]["onExitCodes"]["containerName"] == train["name"]
    assert rules[1]["onExitCodes"]["values"] == [143]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert train["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_every_volume_mounted_is_there(manifest: dict[str, Any]) -> None:
    pod = manifest["Job"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {
        mount["name"]: mount["mountPath"]
        for container in (*pod["initContainers"], *pod["containers"])
        for mount in container["volumeMounts"]
    }
    assert set(mounted) == set(volumes)
    assert mounted["shm"] == "/dev/shm"
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in volumes["shared"]


def test_pods_have_time_to_save_and_can_be_replaced(manifest: dict[str, Any]) -> None:
    pod = manifest["Job"]["spec"]["template"]["spec"]
    told = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    patience = int(told["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 120 <= patience < pod["terminationGracePeriodSeconds"]
    assert told["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_torchrun_knows_its_options(manifest: dict[str, Any]) -> None:
    from torch.distributed.run import parse_args

    job = manifest["Job"]
    script = pod_script(manifest).replace("\\\n", " ")
    (line,) = (line for line in script.splitlines() if line.startswith("torchrun "))
    words = shlex.split(line.replace("$((JOB_COMPLETION_INDEX == 0))", "1"))
    found = parse_args(words[1:-1])
    assert words[-1] == "&"
    assert found.nnodes == str(job["spec"]["completions"])
    assert (found.module, found.training_script) == (True, "pvdm_cli")
    name, port = found.rdzv_endpoint.split(":")
    assert name == f"{job['metadata']['name']}-0.{manifest['Service']['metadata']['name']}"
    assert int(port) == manifest["Service"]["spec"]["ports"][0]["port"]


def pod_script(manifest: dict[str, Any]) -> str:
    return str(manifest["Job"]["spec"]["template"]["spec"]["containers"][0]["args"][0])


@pytest.mark.parametrize("ends", ["0", "1", ""])
def test_the_pod_tells_an_interruption_from_a_failure(
    ends: str, manifest: dict[str, Any], tmp_path: Path
) -> None:
    shim, log = tmp_path / "torchrun", tmp_path / "log"
    saves = PVDM.replace("exit 143", "exit 1")  # as torchrun does, whatever its processes did
    shim.write_text(SHIM.format(name="torchrun") + saves)
    shim.chmod(0o755)
    log.touch()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "ENDS": ends}
    env["JOB_COMPLETION_INDEX"] = "0"
    command = manifest["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    with subprocess.Popen([*command, pod_script(manifest)], env=env) as pod:
        if not ends:
            wait_for(log, "started")
            pod.send_signal(signal.SIGTERM)
        code = pod.wait(timeout=20)
    noted = log.read_text()
    assert code == int(ends or 143)
    assert ("saved" in noted) == (not ends)
    assert "is_host=1," in noted


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(TABLES.sub(lambda found: f"{found[1]}\n{MADE[found[2]]()}\n\n", text))
    sys.stdout.write(f"wrote {PAGE}\n")
