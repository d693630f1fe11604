"""Make the golden record of a protocol from a checkout of its source.

    python -m tests.protocols.record dinov3 --source DIR

imports the source's code from DIR (nothing of it is copied), lets it compute the fields of
``tests/protocols/dinov3.py``, and writes ``tests/protocols/records/dinov3.json``. The checkout must
be at the commit that the protocol names.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import probes.catalog  # noqa: F401  registers every protocol
from backbones.versions import versions
from probes.protocols.base import PROTOCOLS
from tests.protocols.fields import RECORDS, module, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("protocol", choices=sorted(set(PROTOCOLS) - {"own"}))
    parser.add_argument("--source", type=Path, required=True, help="checkout of the source")
    arguments = parser.parse_args()
    protocol = PROTOCOLS[arguments.protocol]
    git = ["git", "-C", str(arguments.source), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    if commit and not commit.startswith(protocol.commit):
        parser.error(f"{arguments.source} is at {commit[:7]}; check out {protocol.commit}")
    sys.path.insert(0, str(arguments.source))
    record = {
        "source": protocol.source,
        "commit": protocol.commit,
        "versions": versions("torch", "numpy"),
        "fields": plain(module(protocol.name).source(arguments.source)),
    }
    RECORDS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    (RECORDS / f"{protocol.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
