"""Images a second that two gloo processes train on, over one process with one thread.

    python tests/benchmarks/processes.py

Runs are interleaved; on a machine that does other work too, the ratio says little. The bound is
what two processes give that know nothing of one another, with half a batch each at the same time:
cores share memory and caches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CODE = """
import json, sys, time, torch, gatecli
from gatecli import together
from gatecli.architectures.cifar import CifarResNet
from gatecli.training import TrainOptions
from gatecli.training.loop import Loop
from gatecli.training.trained import trained_methods
from gatecli.progress import silent
torch.set_num_threads(1)
def main():
    plain = CifarResNet(20, channels=1)
    network = gatecli.attach(plain, 'aig-perbatch', input_size=(32, 32)).network
    data = gatecli.load_data('digits')
    gatecli.fit(network, data)
    options = TrainOptions(epochs=1, batch_size=int(sys.argv[1]), lr=0.01)
    loop = Loop(network, data, trained_methods(network.recipe, {}, options), options, silent)
    loop.goal.begin(0.0)
    times = []
    step = loop._step
    def timed(*args):
        begin = time.perf_counter(); step(*args); times.append(time.perf_counter() - begin)
    loop._step = timed
    loop._epoch(0)
    if together.rank() == 0:
        print(json.dumps(sorted(times)[len(times) // 2]))
if 'RANK' in __import__('os').environ:
    with together.joined(torch.device('cpu')):
        main()
else:
    main()
"""


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "train.py"
        script.write_text(CODE, encoding="utf-8")
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        ones, twos, apart = [], [], []
        for _ in range(asked.rounds):
            ones.append(_seconds([str(script), "128"]))
            twos.append(_seconds([*torchrun, str(script), "128"]))
            apart.append(_seconds(*[[str(script), "64"]] * 2))
    one, two, bound = map(statistics.median, (ones, twos, apart))
    print(f"a step of 128 images, ResNet-20 at 32, aig-perbatch: {one:.3f} s and {two:.3f} s")
    print(f"throughput of two processes over one: {one / two:.2f} (asked: 1.7)")
    print(f"bound, of two that have nothing to do with one another: {one / bound:.2f}")
    print(f"load when it was measured: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _seconds(*lines: list[str]) -> float:
    """The mean of the medians of runs' steps, all at the same time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    running = []
    for line in lines:
        command = [sys.executable, *line]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    found = [each.communicate()[0].decode().splitlines() for each in running]
    return statistics.mean(float(json.loads(lines[-1])) for lines in found)


if __name__ == "__main__":
    main()
