"""Make eight-bit copies of a network in two ways, and print what each costs and saves.

python docs/experiments/eight_bits.py resnet20_glyphs36.pt npz:glyphs36.npz --mean .4458 --std .2389

By ONNX Runtime's static quantisation, which `export --int8` takes, and by NNCF (pip install nncf
openvino), each in both runtimes. Ranges are measured on 512 images of train, top-1 on val; times
are of one image on one thread, interleaved.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch

import gatecli
from gatecli.data import batches, load_data
from gatecli.exporting.export import export
from gatecli.exporting.onnx.int8 import quantise
from gatecli.progress import silent
from gatecli.stages.clock import milliseconds
from gatecli.stages.int8 import Samples

Call = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
Way = tuple[str, str]  # a file, and where it runs
ROUNDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--mean", type=float, required=True, help="of every channel")
    parser.add_argument("--std", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = gatecli.load(args.source).eval()
    every = network.input.channels
    spec = replace(network.input, mean=(args.mean,) * every, std=(args.std,) * every)
    samples = Samples(data=load_data(args.data), input=spec)
    with tempfile.TemporaryDirectory() as folder:
        files = dict(written(Path(folder), network, samples))
        print("| file | runtime | val top-1 | ms | MB |\n|---|---|---|---|---|")
        calls = {
            (name, runtime): opened(str(file))
            for name, file in files.items()
            for runtime, opened in RUNTIMES.items()
        }
        times = interleaved(calls, network.input)
        for (name, runtime), call in calls.items():
            size = files[name].stat().st_size / 1e6
            right = top1(call, samples)
            ms = min(times[name, runtime])
            print(f"| {name} | {runtime} | {right:.2f} | {ms:.3f} | {size:.2f} |")


def written(folder: Path, network: Any, samples: Samples) -> Iterator[tuple[str, Path]]:
    """The file in full precision, and its copies."""
    full = folder / "float32.onnx"
    export(network, full, uncalibrated=True)
    yield "float32", full
    shown = [images.numpy() for images in samples.shown(silent)]
    (name,) = [each.name for each in onnx.load(full).graph.input]
    theirs = folder / "ort.onnx"
    quantise(full, theirs, ({name: images} for images in shown))
    yield "ONNX Runtime's", theirs
    yield "NNCF's", by_nncf(folder, full, name, shown)


def by_nncf(folder: Path, full: Path, name: str, shown: list[Any]) -> Path:
    """NNCF's copy: post-training quantisation as it is without options."""
    import nncf

    single = [image[None] for images in shown for image in images]
    data = nncf.Dataset(single, lambda image: {name: image})
    copy = nncf.quantize(onnx.load(full), data, subset_size=len(single))
    out = folder / "nncf.onnx"
    onnx.save(copy, str(out))
    return out


def in_onnxruntime(path: str) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(["logits"], {name: images})[0]


def in_openvino(path: str) -> Call:
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", how).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True, share_outputs=True)[0]


RUNTIMES: dict[str, Callable[[str], Call]] = {
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
}


def interleaved(calls: dict[Way, Call], spec: Any) -> dict[Way, list[float]]:
    """Milliseconds of each call, in turns."""
    image = np.random.default_rng(0).standard_normal((1, spec.channels, *spec.size))
    found: dict[Way, list[float]] = {each: [] for each in calls}
    for _ in range(ROUNDS):
        for each, call in calls.items():
            found[each].append(milliseconds(call, image.astype(np.float32)))
    return found


def top1(call: Call, samples: Samples) -> float:
    right = total = 0
    split = samples.drawn("val", samples.val)
    for images, labels in batches(split, input=samples.input, batch_size=32):
        right += int((call(images.numpy()).argmax(1) == labels.numpy()).sum())
        total += len(labels)
    return 100 * right / total


if __name__ == "__main__":
    main()
