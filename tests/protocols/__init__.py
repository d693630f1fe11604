"""Golden records: what the code of a published protocol makes of small fixed inputs.

``records/NAME.json`` holds the fields that the source's own code gave at its commit; a module
``tests/protocols/NAME.py`` computes the same fields with the source (``source``) and with this
suite (``suite``). ``record.py`` writes a record again from a checkout of the source.
"""
