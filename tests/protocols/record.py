"""Make the golden record of a protocol, an expert or a metric from a checkout of its source.

    python -m tests.protocols.record dinov3 --source DIR

imports the source's code from DIR (nothing of it is copied), lets it compute the fields of
``tests/protocols/dinov3.py``, and writes ``tests/protocols/records/dinov3.json``. The checkout must
be at the commit that the protocol names. Those of experts (``nll-angmf``) and metrics
(``davis2017``, ``tokencut``) are made likewise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import probes.catalog  # noqa: F401  registers every protocol
from cliptex_common.process import versions
from probes.registry import PROTOCOLS
from tests.protocols.fields import OTHERS, module, plain, record_path
from tests.protocols.sources import commit_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=sorted({*PROTOCOLS, *OTHERS} - {"own"}))
    parser.add_argument("--source", type=Path, required=True, help="checkout of the source")
    arguments = parser.parse_args()
    name, code = arguments.name, module(arguments.name)
    if name in OTHERS:
        source, expected = code.SOURCE, code.COMMIT
    else:
        source, expected = PROTOCOLS[name].source, PROTOCOLS[name].commit
    commit = commit_of(arguments.source)
    if commit and not commit.startswith(expected):
        parser.error(f"{arguments.source} is at {commit[:7]}; check out {expected}")
    sys.path.insert(0, str(arguments.source))
    record = {
        "source": source,
        "commit": expected,
        "versions": versions("torch", "numpy"),
        "fields": plain(code.source(arguments.source)),
    }
    path = record_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
