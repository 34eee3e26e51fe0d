"""Knowledge distillation: its formula, its teachers, and that a training with it goes on to the
same bits.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import call, refused, same, save_npz, save_source
from networks import CASES
from torch import Tensor

import gatecli
from gatecli.errors import SettingError
from gatecli.training import TrainOptions
from gatecli.training.course import Course
from gatecli.training.distill import Teacher, check_teacher, distillation


def test_the_formula_by_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    mine, its, t = torch.randn(3, 4, generator=draw), torch.randn(3, 4, generator=draw), 2.5
    total = 0.0
    for row, aimed in zip(mine.tolist(), its.tolist(), strict=True):
        p, q = (
            [math.exp(v / t) / sum(math.exp(w / t) for w in values) for v in values]
            for values in (aimed, row)
        )
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    assert distillation(mine, its, t).item() == pytest.approx(t * t * total, rel=1e-5)
    assert distillation(its, its, t).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_is_the_source() -> None:
    """All gates open and no exit taken, whatever they say, and whatever training does to the
    network afterwards.
    """
    case = CASES["cifar-projection"]
    source = case.build()
    network = gatecli.attach(
        gatecli.attach(source, "cgnet", input_size=case.size).network, "dgate"
    ).network
    for gate in network.site_gates.values():
        gate.threshold.fill_(-1e9 if gate.site in network.site_exits else 1.0)
    for gate in network.site_gates.values():
        if hasattr(gate, "neutral"):
            gate.neutral.fill_(False)
    x = case.images(3)
    teacher = Teacher(network.copy())
    for parameter in network.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        expected: Tensor = source(x)
    assert (
        torch.allclose(teacher(x), expected, atol=1e-5 * float(expected.abs().max()))
        and not teacher(x).requires_grad
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_npz(Path("data.npz"))
    save_source(Path("r20.pt"))
    return tmp_path


class Stop(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize(
    ("method", "teacher"),
    [
        pytest.param("cgnet", None, marks=pytest.mark.slow),
        pytest.param("aig-perbatch", "r20.pt", marks=pytest.mark.slow),
        ("dgate", None),
        ("early-exit", "r20.pt"),
    ],
)
def test_goes_on_to_the_same_bits(
    method: str, teacher: str | None, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("attach", "r20.pt", "--method", method, "--out", "gated.safetensors")
    plain = [
        "finetune",
        "gated.safetensors",
        "--data",
        "npz:data.npz",
        "--epochs",
        2,
        "--batch-size",
        32,
        "--lr",
        0.01,
        "--bn-batches",
        1,
        "--save-every",
        0,
    ]
    words: list[Any] = [
        *plain,
        "--distill",
        2,
        "--temperature",
        3,
        *(["--teacher", teacher] if teacher else []),
    ]
    call(*words, "--out", "whole.safetensors")
    call(*plain, "--out", "alone.safetensors")
    assert not same("alone.safetensors", "whole.safetensors")
    save, seen = Course.save, []

    def killed(loop: Course) -> None:
        save(loop)
        seen.append(loop.position.step)
        if loop.position.step == 3:
            raise Stop

    monkeypatch.setattr(Course, "save", killed)
    with pytest.raises(Stop):
        call(*words, "--out", "cut.safetensors")
    monkeypatch.setattr(Course, "save", save)
    refused("finetune --resume --temperature 4", "--temperature was 3")
    if teacher:
        shutil.move("r20.pt", "away.pt")
        Path("r20.pt").write_bytes(b"another")
        refused("finetune --resume", "is not the file that the run began with")
        shutil.move("away.pt", "r20.pt")
    call("finetune", "--resume")
    assert same("cut.safetensors", "whole.safetensors")


def test_bad_teachers(here: Path) -> None:
    call("attach", "r20.pt", "--method", "cgnet", "--out", "gated.safetensors")
    words = "finetune gated.safetensors --data npz:data.npz --epochs 1 --out tuned.safetensors"
    refused(f"{words} --teacher r20.pt", "--teacher is for distillation", "--distill 1")
    refused(f"{words} --distill -1", "--distill")
    refused(f"{words} --distill 1 --temperature 0", "--temperature")
    refused(f"{words} --distill 1 --teacher none.pt", "none.pt does not exist")
    with pytest.raises(SettingError, match="expected the teacher to"):
        check_teacher(
            CASES["own"].network(), CASES["cifar-projection"].network(), TrainOptions(distill=1.0)
        )
