"""``MlflowClient`` with the requests that ``database.Database`` has too: of plain values, as this
package writes them. Importing it imports MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.tracking import MlflowClient

from reports.database import Point

AT_ONCE = 100  # params or tags that a server accepts


class Requests(MlflowClient):
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        entities = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(entities), AT_ONCE):
            self.log_batch(run_id, tags=entities[start : start + AT_ONCE])

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        entities = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entities), AT_ONCE):
            self.log_batch(run_id, params=entities[start : start + AT_ONCE])

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        self.log_batch(run_id, [Metric(**point._asdict()) for point in points])

    def log_dataset(self, run_id: str, dataset: Mapping[str, str], context: str) -> None:
        tags = [InputTag("mlflow.data.context", context)]
        self.log_inputs(run_id, [DatasetInput(Dataset(source_type="local", **dataset), tags)])

    def link_models(self, run_id: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        if inputs:
            self.log_inputs(run_id, models=[LoggedModelInput(each) for each in inputs])
        if outputs:
            self.log_outputs(run_id, [LoggedModelOutput(each, step=0) for each in outputs])

    def create_model(
        self,
        experiment_id: str,
        name: str,
        run_id: str | None,
        tags: dict[str, str],
        params: dict[str, str],
    ) -> Any:
        model = self.create_logged_model(experiment_id, name, run_id, tags, params, "backbone")
        return self.finalize_logged_model(model.model_id, "READY")
