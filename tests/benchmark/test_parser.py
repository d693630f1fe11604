"""What the parsers of all commands share: examples, nearest names, options from files, JSON."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator

import pytest

from benchmark.parser import main, parse, parser


def parsers(within: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield within
    for action in within._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


EXAMPLES = [
    example
    for each in parsers(parser())
    for example in " ".join((each.description or "").split()).split(" python -m benchmark ")[1:]
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_help_parse(example):
    assert parse(shlex.split(example))


@pytest.mark.parametrize("command", parsers(parser()), ids=lambda each: each.prog)
def test_every_command_has_a_help(command):
    assert command.usual or "show this help" in command.format_help()


def test_files_are_not_separated_by_commas():
    (run,) = (each for each in parsers(parser()) if each.prog.endswith(" run"))
    run.usual = {}
    assert "--plugin FILE" in run.format_help() and "--backbone A[,B]" in run.format_help()


def test_commands_that_read_names_take_plugins():
    without = {
        each.prog.removeprefix("python -m benchmark ")
        for each in parsers(parser())
        if each.get_default("command") and "--plugin" not in each._option_string_actions
    }
    no_names = {"new", "data get", "doctor", "ui", "cache ls", "cache rm"}
    assert without == no_names | {"results list", "results label"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --bakbone clip", "unknown argument --bakbone; did you mean --backbone"),
        ("lst", "invalid choice: 'lst' (choose from 'run', 'watch', 'list'"),
        ("list taks", "cannot list 'taks'; did you mean tasks"),
        ("labels check a b", "unknown argument b; see python -m benchmark labels check"),
        ("run --json", "argument --json: expected one argument"),
        ("watch --backbone clip", "--dir is missing"),
    ],
)
def test_an_unknown_word_is_one_line_with_the_nearest(refused, words, message):
    refused(words, message)


def test_the_help_of_run_is_a_screen_and_says_where_the_rest_is(capsys):
    assert main(["run", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    for group in ("what", "data", "settings", "machine", "record", "output"):
        assert any(line.startswith(f"{group} ") for line in lines)
    assert "--help-all" in lines[-1]
    assert main(["run", "--help-all"]) == 0
    assert "--num-workers" in capsys.readouterr().out


FILES = {
    "run.yaml": """
backbone: [clip, dinov2-b14]
suite: paper
data_root: /data
set: {max_iters: 20, crop: [32, 64], lr: 1e-3}
data:
- coco=/coco
partial: true
force: false
seeds: 3
""",
    "run.toml": """
backbone = ["clip", "dinov2-b14"]
suite = "paper"
data-root = "/data"
partial = true
seeds = 3
data = {coco = "/coco"}
[set]
max_iters = 20
crop = [32, 64]
lr = "1e-3"
""",
}
TYPED = (
    "run --backbone clip --backbone dinov2-b14 --suite paper --data-root /data --data coco=/coco"
    " --partial --seeds 3 --set max_iters=20 --set crop=32,64 --set lr=1e-3"
)


def options_of(words):
    options = vars(parse(words))
    return {name: value for name, value in options.items() if name != "config"}


@pytest.mark.parametrize("name", FILES)
def test_typed_options_override_those_of_a_file(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    words = ["run", "--config", str(tmp_path / name)]
    assert options_of(words) == options_of(TYPED.split())
    words += ["--backbone=cliptex", "--set", "lr=1", "--set", "epochs=2", "--seeds=1"]
    overrides = {"max_iters": "20", "crop": "32,64", "lr": "1", "epochs": "2"}
    changes = {"backbones": ["cliptex"], "seeds": 1, "overrides": overrides}
    assert options_of(words) == options_of(TYPED.split()) | changes


def test_a_file_may_have_required_options(tmp_path):
    (tmp_path / "train.yml").write_text("init: random\npairs: a.tar\nout: w.safetensors\n")
    options = parse(["train", "--config", str(tmp_path / "train.yml"), "--recipe", "clip"])
    assert (options.init, options.pairs, options.recipe) == ("random", "a.tar", "clip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bakbone: clip", "no option 'bakbone'; did you mean backbone"),
        ("seeds: many", "seeds=many: must be a valid integer"),
        ("- a", "must be a table of options"),
        ("a: [", "cannot read --config"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, refused, text, message):
    (tmp_path / "run.yaml").write_text(text)
    refused(f"run --config {tmp_path}/run.yaml", message)


def test_json_goes_to_a_file_or_replaces_the_lines(capsys, tmp_path, own_home):
    (own_home / "mini/abc").mkdir(parents=True)  # a path is written as text
    for words in (["list", "executors"], ["cache", "ls"]):
        assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
        assert not capsys.readouterr().out.startswith("[")
        assert main([*words, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert rows and rows == json.loads((tmp_path / "out.json").read_text())
