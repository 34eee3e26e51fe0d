"""Damage to PyTorch's files: zip archives and pickles; and pickles that would run code."""

from __future__ import annotations

import io
import pickletools
import random
import zipfile
from collections.abc import Callable

Entries = dict[str, bytes]
PICKLE = "archive/data.pkl"
NO_ARGUMENT = b"()]}.01234ae2lstubRoQ\x85\x86\x87\x88\x89\x93\x94\x81\x8f\x91N"


def entries_of(data: bytes) -> Entries:
    """The archive's entries by name, with the first folder, if there is one, called `archive`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {_renamed(name): archive.read(name) for name in archive.namelist()}


def _renamed(name: str) -> str:
    _, slash, rest = name.partition("/")
    return f"archive/{rest}" if slash else name


def archive_of(entries: Entries, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of entries, with right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def edit_entries(chance: random.Random, data: bytes) -> bytes:
    """An entry that is gone, renamed, doubled, compressed, or exchanged with another one."""
    entries = entries_of(data)
    one, two = chance.sample(sorted(entries), 2)
    how = chance.choice(["gone", "renamed", "doubled", "exchanged", "compressed", "folder"])
    if how == "compressed":
        return archive_of(entries, zipfile.ZIP_DEFLATED)
    if how == "exchanged":
        entries[one], entries[two] = entries[two], entries[one]
    elif how == "doubled":
        entries[f"{one}x"] = entries[one]
    elif how == "renamed":
        entries[chance.choice([f"../{one}", f"{one}x", "/etc/x", two.upper()])] = entries.pop(one)
    elif how == "folder":
        entries = {f"other/{name}": content for name, content in entries.items()}
    else:
        del entries[one]
    return archive_of(entries)


def resize_records(chance: random.Random, data: bytes) -> bytes:
    """Tensors' records that are shorter or longer than the pickle says, with right checksums."""
    entries = entries_of(data)
    records = [name for name in entries if name.startswith("archive/data/")]
    for name in chance.sample(records, chance.choice([1, 1, 3, len(records)])):
        content = entries[name]
        shorter = [content[: len(content) // 2], content[:-4], content[:1], b""]
        longer = [content + content, content + bytes(4096)]
        entries[name] = chance.choice([*shorter, *longer])
    return archive_of(entries)


def edit_zip_pickle(chance: random.Random, data: bytes) -> bytes:
    """Opcodes of data.pkl."""
    entries = entries_of(data)
    entries[PICKLE] = edit_opcodes(chance, entries[PICKLE])
    return archive_of(entries)


def edit_legacy_pickle(chance: random.Random, data: bytes) -> bytes:
    """Opcodes of one of the pickles with which an old file begins."""
    start, ends = 0, []
    for _ in range(4):
        start += _length(data[start:])
        ends.append(start)
    which = chance.choice([0, 1, 2, 3, 3, 3, 3])
    begin = 0 if which == 0 else ends[which - 1]
    return data[:begin] + edit_opcodes(chance, data[begin : ends[which]]) + data[ends[which] :]


def _length(data: bytes) -> int:
    stops = [place for op, _, place in pickletools.genops(data) if op.name == "STOP"]
    return (stops[0] or 0) + 1


def edit_opcodes(chance: random.Random, pickled: bytes) -> bytes:
    """One to four opcodes changed."""
    for _ in range(chance.randint(1, 4)):
        pickled = _edit_opcode(chance, pickled)
    return pickled


def _edit_opcode(chance: random.Random, pickled: bytes) -> bytes:
    try:
        starts = [place or 0 for _, _, place in pickletools.genops(pickled)]
    except Exception:  # an earlier edit left no pickle
        return pickled
    index = chance.randrange(len(starts))
    start = starts[index]
    end = starts[index + 1] if index + 1 < len(starts) else len(pickled)
    here = pickled[start:end]
    instead = chance.choice(_instead(chance, here))
    return pickled[:start] + instead + pickled[end:]


def _instead(chance: random.Random, opcode: bytes) -> list[bytes]:
    """What may stand in an opcode's place."""
    integer = int(chance.choice([-1, 0, 1, 2**31 - 1, chance.randint(0, 1000)]))
    options = [b"", opcode + opcode, bytes([chance.choice(NO_ARGUMENT)])]
    options += [b"J" + integer.to_bytes(4, "little", signed=True)] * 2
    options += [b"\x8a\x09" + b"\xff" * 8 + b"\x00"]
    options += [b"cbuiltins\neval\n", b"ctorch\nDoubleStorage\n"]
    if opcode[:1] in b"KMJ":  # integers: sizes, strides, places
        options += [opcode[:1] + chance.randbytes(len(opcode) - 1)] * 6
    if opcode[:1] in b"XU\x8c":  # texts: names, keys of records, devices
        changed = bytearray(opcode)
        changed[-1] ^= 1 << chance.randrange(7)
        options += [bytes(changed)] * 3
    return options


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _calls(canary: str) -> list[bytes]:
    """Pieces of pickles that make the file `canary` exist, each in a way of its own."""
    command, name = _text(f"touch '{canary}'"), _text(canary)
    python = _text(f"open({canary!r}, 'w')")
    import_os = _text("__import__('os').system(" + repr(f"touch '{canary}'") + ")")
    return [
        b"cos\nsystem\n" + command + b"\x85R",
        b"cposix\nsystem\n" + command + b"\x85R",
        b"csubprocess\ngetoutput\n" + command + b"\x85R",
        b"cbuiltins\neval\n" + python + b"\x85R",
        b"cbuiltins\nexec\n" + import_os + b"\x85R",
        b"cio\nopen\n" + name + _text("w") + b"\x86R",
        b"(" + command + b"ios\nsystem\n",
        b"(cos\nsystem\n" + command + b"o",
        _text("os") + _text("system") + b"\x93" + command + b"\x85R",
        b"csubprocess\nPopen\n((" + _text("touch") + name + b"ltR",
        b"csubprocess\nPopen\n(" + _text("touch") + name + b"l\x85\x81",
        b"cbuiltins\ngetattr\n(cos\n__dict__\n"
        + _text("get")
        + b"tR"
        + _text("system")
        + b"\x85R"
        + command
        + b"\x85R",
        b"cshutil\ncopyfile\n" + _text("/etc/hostname") + name + b"\x86R",
        b"ctorch.serialization\n_import_dotted_name\n"
        + _text("os.system")
        + b"\x85R"
        + command
        + b"\x85R",
        b"ctorch._utils\n_rebuild_wrapper_subclass\n(cos\nsystem\n" + command + b"tR",
        b"ctorch.hub\nload_state_dict_from_url\n" + _text(f"file://{canary}") + b"\x85R",
        b"cnumpy\nsave\n" + name + b"K\x01\x86R",
        b"clogging\nFileHandler\n" + name + b"\x85R",
        b"cpathlib\nPath.touch\n(cpathlib\nPosixPath\n" + name + b"\x85RtR",
        b"ccollections\nOrderedDict\n)R}"
        + _text("__reduce__")
        + b"cos\nsystem\nsb0cos\nsystem\n"
        + command
        + b"\x85R",
    ]


def _wrapped(call: bytes) -> list[bytes]:
    """A call as the whole pickle, within wrappings, as a key, as a state, and left on the stack."""
    one = _text("state_dict")
    return [
        b"\x80\x02" + call + b".",
        b"\x80\x02}" + one + call + b"s.",
        b"\x80\x02}" + one + b"}" + one + call + b"ss.",
        b"\x80\x02}" + call + b"K\x01s.",
        b"\x80\x02" + call + b"0}.",
        b"\x80\x02ccollections\nOrderedDict\n)R" + call + b"b.",
        b"\x80\x04" + call + b"\x94.",
    ]


def hostile(chance: random.Random, data: bytes, canary: str) -> bytes:
    """A file whose pickle asks for code: alone, or put into a whole checkpoint."""
    call = chance.choice(_calls(canary))
    pickled = chance.choice(_wrapped(call))
    homes: list[Callable[[], bytes]] = [
        lambda: pickled,
        lambda: archive_of({PICKLE: pickled, "archive/version": b"3\n"}),
        lambda: archive_of({**entries_of(data), PICKLE: pickled}),
        lambda: _smuggled(chance, data, call),
    ]
    return chance.choice(homes)()


def _smuggled(chance: random.Random, data: bytes, call: bytes) -> bytes:
    """A checkpoint whose own pickle first makes the call, then goes on as if nothing were."""
    entries = entries_of(data)
    whole = entries[PICKLE]
    starts = [place or 0 for _, _, place in pickletools.genops(whole)]
    at = chance.choice(starts[1:])
    entries[PICKLE] = whole[:at] + call + b"0" + whole[at:]
    return archive_of(entries)
