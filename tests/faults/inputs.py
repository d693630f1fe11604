"""``input``: every option with hostile values, every file that a command reads with damages;
hypothesis makes them."""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmark.__main__ import parser
from tests.faults.place import LABEL, RANDOM, REPORT, RUN, TRAIN, Place, Point, copies

# what a command needs before an option can be wrong; `ui` serves for ever, and `data get` fetches
# from elsewhere
COMMANDS: dict[str, list[str]] = {
    "run": RANDOM[1:],
    "watch": [*RUN[1:], "--backbone", "random", "--dir", "pairs", "--once"],
    "list": ["tasks"],
    "data check": ["--data-root", "."],
    "doctor": ["--data-root", "."],
    "experts train": ["unet", "--data-root", "none", "--out", "expert"],
    "labels predict": [*LABEL[2:], "--out", "labels2"],
    "labels check": ["labels"],
    "labels draw": ["labels", "--pairs", "pairs", "--out", "drawn"],
    "labels make": ["--pairs", "pairs", "--from", "seg=camvid/annotations", "--out", "made"],
    "sweep launch": ["--suite", "own", "--task", "imagefolder/linear", "--data-root", "."],
    "sweep status": [],
    "sweep show": [],
    "sweep best": [],
    "train": [*TRAIN[1:], "--out", "w2.safetensors"],
    "estimate": ["--pairs", "1000", "--label-speed", "100", "--train-speed", "100"],
    "cache ls": [],
    "cache rm": ["--dry-run", "w"],
    "cache check": [],
    "report": REPORT[1:],
}
# paths are of the copy; nothing here may name a file of the machine that a command could replace
VALUES = [
    *(
        "",
        " ",
        ",",
        "-1",
        "0",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "9" * 30,
        "4294967296",
        "0x10",
        "1_000",
        "٣",
        "True",
    ),
    *(
        "\udcff\udcfe",
        "é" * 300,
        "a" * 5000,
        "../there",
        "~nosuch/x",
        "./.",
        "[/b]",
        "{a,b}",
        "%s%n",
        "$(touch hacked)",
    ),
    *(
        "'; drop table runs;--",
        "=cmd|'/c calc'!A0",
        "\n",
        "\u202e",
        "\x1b[2J",
        "http://127.0.0.1:9",
        "file://none",
        "x://",
    ),
    *(
        "sqlite:///pairs",
        "sqlite:///mlflow.db?mode=ro",
        "key=value",
        "=",
        "a=",
        "a=b=c",
        "camvid=device",
        "max_iters=-1",
    ),
    *(
        "size=0",
        "batch_size=nan",
        "epochs=1e400",
        "meta",
        "cuda:99",
        "random@",
        "random,random",
        "camvid",
        "w.safetensors",
    ),
    *(
        "device",
        "fifo",
        "loop",
        "dangling",
        "stdin",
        "device/x",
        "w.safetensors/x",
        "whole.json",
        "mlflow.db",
        "pairs/{0..9}",
    ),
]
# file that is read → command that reads it, without results of its own
FILES: dict[str, Sequence[str]] = {
    "camvid/images/*/*.jpg": [*RANDOM, "--experiment", "again"],
    "camvid/annotations/*/*.png": [*RANDOM, "--experiment", "again"],
    "imagefolder/*/*/*": [*RANDOM, "--experiment", "again"],
    "home/features/*/*": [*RANDOM, "--experiment", "again"],
    "home/*/*": ["cache", "check"],
    "coco/annotations/*.json": ["data", "check", "--data-root", "."],
    "pairs/*": [*LABEL, "--out", "labels2"],
    "experts/*/*": [*LABEL, "--out", "labels2"],
    "labels/*": [*TRAIN, "--out", "w2.safetensors"],
    "labels/*.*": ["labels", "check", "labels"],
    "w.safetensors": [
        *RUN,
        "--backbone",
        "clip",
        "--weights",
        "w.safetensors",
        "--experiment",
        "again",
    ],
    "mlruns/*/*/artifacts/*": [*REPORT, "--format", "html,csv"],
    "mlruns/*/*/artifacts/*.*": ["report", "--verify", "--experiment", "own"],
}
Damage = Callable[[Path, random.Random], None]


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        path.write_bytes(change(path.read_bytes(), rng))

    return damage


def _flip(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(min(len(found), 8)):
        found[rng.randrange(len(found))] ^= 1 + rng.randrange(255)
    return bytes(found)


def _instead(make: Callable[[Path], None]) -> Damage:
    def damage(path: Path, _: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Damage] = {
    "empty": _bytes(lambda data, rng: b""),
    "cut": _bytes(lambda data, rng: data[: rng.randrange(len(data) + 1)]),
    "flipped": _bytes(_flip),
    "zeros": _bytes(lambda data, rng: bytes(len(data))),
    "longer": _bytes(lambda data, rng: data + rng.randbytes(4096)),
    "text": _bytes(lambda data, rng: "not what it was: é\n".encode("latin-1") * 50),
    "null": _bytes(lambda data, rng: b"null"),
    "list": _bytes(lambda data, rng: b"[{}, 1e999, -1]"),
    "deep": _bytes(lambda data, rng: b"[" * 200_000),
    "gone": _instead(lambda path: None),
    "folder": _instead(Path.mkdir),
    "pipe": _instead(os.mkfifo),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "dangling": _instead(lambda path: path.symlink_to("nowhere")),
    "endless": _instead(lambda path: path.symlink_to("/dev/zero")),
    "vast": lambda path, rng: os.truncate(path, 8 << 30),
}


def options() -> Iterator[tuple[str, str]]:
    """(command, option with a value; '' for its positional argument) of the whole command line."""

    def walk(
        within: argparse.ArgumentParser, words: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, str]]:
        for action in within._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, each in action.choices.items():
                    yield from walk(each, (*words, name))
            elif action.nargs != 0 and " ".join(words) in COMMANDS:
                yield " ".join(words), action.option_strings[0] if action.option_strings else ""

    yield from walk(parser())


def hostile(place: Place) -> None:
    """What some of ``VALUES`` name, into a copy."""
    os.mkfifo(place.folder / "fifo")
    (place.folder / "loop").symlink_to("loop")
    (place.folder / "dangling").symlink_to("nowhere")
    (place.folder / "stdin").symlink_to("/proc/self/fd/0")
    try:
        os.mknod(place.folder / "device", stat.S_IFCHR | 0o666, os.makedev(1, 7))
    except OSError as error:
        if error.errno != errno.EPERM:
            raise


def option_point(place: Place, what: tuple[str, str], value: str) -> str:
    """One command with one hostile value."""
    hostile(place)
    name, option = what
    ended = place.run(
        [*name.split(), *COMMANDS[name], *([f"{option}={value}"] if option else [value])],
        seconds=90,
    )
    device = place.folder / "device"
    return (
        ended.wrong()
        or place.left()
        or ("" if not device.exists() or device.is_char_device() else "a device was replaced")
    )


def damage_point(whole: Place, place: Place, pattern: str, damage: str, number: int) -> str:
    """One command over a damaged file, and again after that was mended."""
    paths = sorted(path for path in place.folder.glob(pattern) if path.is_file())
    path, words = paths[number % len(paths)], FILES[pattern]
    shutil.copy2(path, kept := place.folder / "kept")
    DAMAGES[damage](path, random.Random(number))
    ended = place.run(words, seconds=120)
    if wrong := ended.wrong() or place.left():
        return f"{path.relative_to(place.folder)}: {wrong}"
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    shutil.move(kept, path)
    if words[:1] == RANDOM[:1] and "random" in words:
        return place.differs(whole, words)
    return place.run(words).wrong(codes=(0, 1, 2))


def points(whole: Place, folder: Path, count: int, number: int) -> list[Point]:
    """Two of three with options, one with damages."""
    fresh, found = copies(whole, folder), list[Point]()
    known, values = (
        sorted(set(options())),
        st.one_of(
            st.sampled_from(VALUES), st.sampled_from(VALUES), st.text(max_size=20).filter(harmless)
        ),
    )
    of_options = st.tuples(st.sampled_from(known), values)
    of_files = st.tuples(
        st.sampled_from(sorted(FILES)), st.sampled_from(sorted(DAMAGES)), st.integers(0, 10**6)
    )

    def made(strategy: st.SearchStrategy, most: int, judge: Callable[..., str]) -> None:
        how = settings(
            max_examples=most,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        @seed(number)
        @how
        @given(strategy)
        def each(case: tuple) -> None:
            if len(found) < most + before:
                found.append((" ".join(map(repr, case)), judge(next(fresh), *case)))

        before = len(found)
        each()

    made(of_options, -(-2 * count // 3), option_point)
    made(of_files, count // 3, lambda place, *case: damage_point(whole, place, *case))
    return found


def harmless(text: str) -> bool:
    """Whether a command that takes it for a path stays in its folder."""
    return "/" not in text and "\0" not in text
