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

import onnx
import openvino
import torch

import gatecli
from gatecli.data import batches, load_data
from gatecli.exporting.export import export
from gatecli.exporting.onnx.int8 import quantise
from gatecli.exporting.onnx.run import logits_of
from gatecli.exporting.registry import Logits
from gatecli.progress import silent
from gatecli.runtimes.base import Prepared
from gatecli.stages.int8 import Samples
from gatecli.stages.timing import Timed, interleaved
from gatecli.traced.images import InputSpec

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
        runs = {
            (name, runtime): opened(file)
            for name, file in files.items()
            for runtime, opened in RUNTIMES.items()
        }
        everyone = [ready(run, network.input) for run in runs.values()]
        times = interleaved(everyone, 1, ROUNDS, lambda: None)
        for ((name, runtime), run), ms in zip(runs.items(), times, strict=True):
            size = files[name].stat().st_size / 1e6
            print(f"| {name} | {runtime} | {top1(run, samples):.2f} | {min(ms):.3f} | {size:.2f} |")


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


def in_openvino(path: Path) -> Logits:
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", how).create_infer_request()
    return lambda images: torch.from_numpy(request.infer([images.numpy()])[0])


RUNTIMES: dict[str, Callable[[Path], Logits]] = {
    "onnxruntime": logits_of,
    "openvino": in_openvino,
}


def ready(run: Logits, spec: InputSpec) -> Timed:
    """A file to be timed with an image that is none."""
    image = torch.randn(1, spec.channels, *spec.size, generator=torch.Generator().manual_seed(0))
    prepared = Prepared(feed=lambda images: images, call=run, logits=lambda found: found)
    return Timed(prepared=prepared, images=image, rates={})


def top1(run: Logits, samples: Samples) -> float:
    right = total = 0
    split = samples.drawn("val", samples.val)
    for images, labels in batches(split, input=samples.input, batch_size=32):
        right += int((run(images).argmax(1) == labels).sum())
        total += len(labels)
    return 100 * right / total


if __name__ == "__main__":
    main()
