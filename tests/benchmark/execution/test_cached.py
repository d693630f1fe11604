"""What a worker caches for its next unit."""

from __future__ import annotations

from benchmark.execution.unit import cached_in_process, drop_cached


def test_a_process_caches_one_result_of_all_functions():
    created = []

    @cached_in_process
    def backbone(name):
        created.append(name)
        return object()

    @cached_in_process
    def labeller(name):
        created.append(name)
        return object()

    assert backbone("clip") is backbone("clip")
    labeller("experts")
    backbone("clip")
    assert created == ["clip", "experts", "clip"], "the labeller took the backbone's place"
    drop_cached()
    backbone("clip")
    assert len(created) == 4
