"""What all commands' parsers do alike: examples that parse, nearest words, options from files, old
spellings."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from benchmark.__main__ import main, parser
from benchmark.cli.options import OPTIONS
from benchmark.cli.parser import renewed

TOP = parser()


def parsers(within: argparse.ArgumentParser = TOP) -> Iterator[argparse.ArgumentParser]:
    yield within
    for action in within._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


@pytest.mark.parametrize(
    "each", parsers(), ids=lambda each: each.prog.removeprefix("python -m ").replace(" ", "-")
)
def test_help_ends_with_two_examples_that_parse(each):
    title, *examples = each.format_help().partition("\nexamples:\n")[1:]
    lines = examples[0].splitlines()
    assert title and len(lines) == 2
    for line in lines:
        assert line.strip().startswith(each.prog)
        words = shlex.split(line)[3:]
        if "--help" not in words:
            TOP.parse_args(words)


def test_a_shared_word_has_one_form():
    """Type, number of values and metavar of an option of the table are the same in every
    command."""
    forms: dict[str, set[object]] = {}
    for each in parsers():
        for action in each._actions:
            for flag in set(action.option_strings) & set(OPTIONS):
                forms.setdefault(flag, set()).add(
                    (type(action).__name__, getattr(action.type, "__name__", None))
                )
    several = {flag for flag, found in forms.items() if len(found) > 1}
    assert set(forms) == set(OPTIONS)
    # --out is a file or a folder, one backbone is watched, a report takes several experiments,
    # estimate counts pairs
    assert several <= {
        "--out",
        "--backbone",
        "--experiment",
        "--pairs",
        "--labels",
        "--limit",
        "--json",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --bakbone clip", "no option --bakbone; did you mean --backbone"),
        ("run --back clip", "no option --back; did you mean --backbone"),  # no abbreviation
        ("train --recpie x", "no option --recpie; did you mean --recipe"),  # before what is missing
        ("sweep --stdy x status", "no option --stdy"),
        ("lst", "no command 'lst'; did you mean list?; see python -m benchmark list --help"),
        (
            "sweep lunch",
            "no command 'lunch'; did you mean launch?; see python -m benchmark sweep launch --help",
        ),
        ("list taks", "argument what: 'taks' is none; did you mean tasks"),
        ("cache ls --kind feature", "argument --kind: 'feature' is none; did you mean features"),
        ("list tasks voc more", "unexpected 'more'"),
        ("run --json", "argument --json: expected one argument"),
    ],
)
def test_an_unknown_word_names_the_nearest_and_the_help_to_read(capsys, words, said):
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    command = (
        " ".join(words.split()[:1])
        if words.split()[0] in ("run", "train", "sweep", "list", "cache")
        else ""
    )
    assert said in told and f"see python -m benchmark {command}" in told and told.count("\n") == 1


FILES = {
    "run.yaml": (
        "backbone: [clip, dinov2-b14]\nsuite: paper\ndata_root: /data\nset: {max_iters: 20, crop:"
        " [32, 64], lr: 1e-3}\ndata:\n- coco=/coco\npartial: true\nforce: false\nseeds: 3\n"
    ),
    "run.toml": (
        'backbone = ["clip", "dinov2-b14"]\nsuite = "paper"\ndata-root = "/data"\npartial ='
        ' true\nseeds = 3\ndata = {coco = "/coco"}\n[set]\nmax_iters = 20\ncrop = [32, 64]\nlr ='
        ' "1e-3"\n'
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_options_from_a_file_which_typed_ones_beat(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    words = ["run", "--config", str(tmp_path / name)]
    long = (
        "run --backbone clip --backbone dinov2-b14 --suite paper --data-root /data --set"
        " max_iters=20 --set crop=32,64"
    )
    long += " --set lr=1e-3 --data coco=/coco --partial --seeds 3"

    def parsed(words):
        return {key: value for key, value in vars(TOP.parse_args(words)).items() if key != "config"}

    assert parsed(words) == parsed(long.split())
    changed = parsed(
        [*words, "--backbone=cliptex", "--set", "lr=1", "--set", "epochs=2", "--seeds=1"]
    )
    wanted = parsed(long.split()) | {"backbones": ["cliptex"], "seeds": 1}
    assert changed == wanted | {"overrides": ["max_iters=20", "crop=32,64", "lr=1", "epochs=2"]}


def test_what_is_required_may_be_in_the_file(tmp_path):
    (tmp_path / "train.yml").write_text(
        "init: random\npairs: 'cc3m/{00..09}.tar'\nout: w.safetensors\nset: [epochs=2]\n"
    )
    found = TOP.parse_args(["train", "--config", str(tmp_path / "train.yml"), "--recipe", "clip"])
    assert (found.init, found.pairs, found.recipe, found.overrides) == (
        "random",
        "cc3m/{00..09}.tar",
        "clip",
        ["epochs=2"],
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bakbone: clip", "has no option 'bakbone'; did you mean backbone"),
        ("config: other.yaml", "has no option 'config'"),
        ("partial: perhaps", "partial is yes or no; say true or false"),
        ("seeds: many", "argument --seeds: invalid whole number value: 'many'"),
        ("suite: {a: b}", "suite must be a word, a number, or a list or table of such"),
        ("suite:", "suite must be a word"),
        ("- a", "must be a table of options"),
        ("a: [", "is no YAML"),
        ("x: &x [*x]", "is no YAML"),
        (None, "cannot read --config"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, capsys, text, said):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    assert main(["run", "--config", str(tmp_path / "run.yaml")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_old_spellings_work_and_say_the_new_one(capsys):
    for old, new in (
        ("label --pairs p", "labels predict --pairs p"),
        ("run --alone", "run --only"),
        ("experts list", "list experts"),
        ("experts train dpt --data=d", "experts train dpt --data-root=d"),
        ("labels draw l -n 3", "labels draw l --limit 3"),
    ):
        assert renewed(old.split()) == new.split()
        assert capsys.readouterr().err.count("the old spelling goes with the next release\n") == 1
    assert renewed(["run", "--data", "coco=/coco"]) == ["run", "--data", "coco=/coco"]
    assert not capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("cliptex-benchmark ")


def test_the_shell_completes_words(capsys, tmp_path):
    pytest.importorskip("shtab")
    assert main(["--completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    asked = (
        f"source {script}; COMP_WORDS=(cliptex-benchmark sweep launch --obj); COMP_CWORD=3;"
        " _shtab_cliptex_benchmark; "
    )
    told = subprocess.run(
        [shutil.which("bash"), "-c", asked + "echo ${COMPREPLY[@]}"], capture_output=True, text=True
    )
    assert told.stdout.split() == ["--objective"], told.stderr


def test_json_of_paths_goes_to_a_file_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    (tmp_path / "home/mini/abc").mkdir(parents=True)
    assert main(["cache", "ls", "--json", str(tmp_path / "a.json")]) == 0
    assert "abc" in (tmp_path / "a.json").read_text()


def test_json_goes_to_a_file_or_takes_the_place_of_the_lines(capsys, tmp_path):
    assert main(["list", "executors", "--json", str(tmp_path / "there.json")]) == 0
    lines = capsys.readouterr().out
    assert main(["list", "executors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "there.json").read_text())
    assert "local" in lines and not lines.startswith("[")
    assert main(["list", "table", "--json"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[0]["family"] == "detection"
