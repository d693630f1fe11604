from tests.cluster import slurm, slurm_config
from tests.reports.test_browser import browser

__all__ = ["browser", "slurm", "slurm_config"]
