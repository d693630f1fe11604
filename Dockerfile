# The suite in a container; docs/installation.md shows how to build and to use it.
FROM python:3.11-slim

# pip's index of torch for a processor or for one version of CUDA; empty: PyPI's torch, with CUDA
ARG TORCH_INDEX=""

# OpenCV's libraries, and what a development container needs
RUN apt-get update \
 && apt-get install -y --no-install-recommends git libgl1 libglib2.0-0 make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home user \
 && install -d -o user -g user /data /cache /results

WORKDIR /suite
COPY .ci/constraints-newest.txt ./
# before the sources: a change of these does not install torch again
RUN pip install --no-cache-dir -c constraints-newest.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY . ./
RUN pip install --no-cache-dir -c constraints-newest.txt .

USER 1000
ENV CLIPTEX_HOME=/cache MLFLOW_TRACKING_URI=sqlite:////results/mlflow.db
VOLUME ["/data", "/cache", "/results"]
WORKDIR /results
EXPOSE 5000
ENTRYPOINT ["cliptex-benchmark"]
CMD ["doctor"]
