"""What a worker caches for its next unit."""

from __future__ import annotations

from benchmark.unit import drop_last_model, keep_last_model


def test_a_process_caches_one_result_of_all_functions():
    created = []

    @keep_last_model
    def backbone(name):
        created.append(name)
        return object()

    @keep_last_model
    def labeller(name):
        created.append(name)
        return object()

    assert backbone("clip") is backbone("clip")
    labeller("experts")
    backbone("clip")
    assert created == ["clip", "experts", "clip"], "the labeller took the backbone's place"
    drop_last_model()
    backbone("clip")
    assert len(created) == 4
