"""What tests share: a network, waiting. (Images and maps: ``tests/probes/datasets/make.py``;
processes: ``tests/forks.py``; commands: ``tests/benchmark/run_command.py``.)"""
