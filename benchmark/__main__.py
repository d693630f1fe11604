"""``python -m benchmark``: one verb, one module. Exit codes: 0 done, 1 a run failed, 2 wrong input, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from benchmark.execution import interrupts as interrupt

# OpenMP's threads spin while they wait, by default. Beside loading processes on few cores that made a forward pass eleven
# times slower (measured on two cores); read when torch is imported, which is after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VERBS = {
    "run": "probe backbones on a suite's tasks, every number into MLflow",
    "list": "names of backbones, tasks, suites",
    "data": "which datasets are there, and whether they are whole",
    "experts": "the models that write pseudo-labels: list, train",
    "label": "let experts write pseudo-labels for image-caption pairs",
    "labels": "check or draw pseudo-labels",
    "sweep": "search λs with Optuna: launch, worker, status, best, show",
    "train": "make a backbone's weights by a recipe: clip, clip-ft, cliptex",
    "cache": "big things that can be made again: list, remove, check",
    "report": "compare what is in MLflow: one page, and tables for a paper",
    "ui": "MLflow's own UI on the right store",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """One line, exit code 2."""
        sys.stderr.write(f"error: {message}; see {self.prog} --help\n")
        raise SystemExit(2)


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The command line's parser; ``only`` builds just that verb's options, so that quick verbs start quickly."""
    top = _Parser(prog="python -m benchmark", description="Is this backbone better, at what, and by how much?")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="verb", parser_class=_Parser)
    for verb, about in VERBS.items():
        sub = verbs.add_parser(verb, help=about, description=about)
        if only in (None, verb):
            module = import_module(f"benchmark.cli.{verb}")
            module.add_arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    interrupt.install()
    # Libraries' own deprecation notes are not for users; -W or PYTHONWARNINGS brings them back.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        verb = next((word for word in argv if word in VERBS), None)
        options = parser(verb).parse_args(argv)
        return int(import_module(f"benchmark.cli.{options.verb}").main(options) or 0)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\ninterrupted; what was finished is kept. Go on with: python -m benchmark {shlex.join(argv)}\n"
        )
        return 130
    except BrokenPipeError:  # `… list tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return 2


def _user_message(error: BaseException) -> str | None:
    """The one line for an error that the user can mend, looked for along the chain of causes; None for a bug of ours."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "exit_code", None) == 2:
            return " ".join(str(seen).split())
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return (
                f"cannot write {seen.filename or 'a file'}: {seen.strerror}; free some space and run the command again"
            )
        seen = seen.__cause__ or seen.__context__
    return None


if __name__ == "__main__":
    raise SystemExit(main())
